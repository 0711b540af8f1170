"""A nightly build starts the table once, adds to it once a night, and says what it decided."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from styleclip.flows.build_relevance import build_relevance
from styleclip.tasks.artifacts import read_provenance
from styleclip.tasks.directions import relevance as relevance_task
from styleclip.tasks.directions.nights import decide_night
from styleclip.tasks.settings import Models, Nightly, Relevance, Sampling, SettingsError
from styleclip.tasks.storage import create_bytes, join, list_objects, read_bytes
from styleclip_core.errors import ArtifactConflictError

pytestmark = pytest.mark.usefixtures("prefect_server")
SAMPLING = Sampling(statistics=40, codes=4)


@pytest.fixture
def models(network_files) -> Models:
    return Models(**network_files)


@pytest.fixture
def measured(monkeypatch):
    """The ranges of samples that are measured, in order."""
    ranges, real = [], relevance_task.measure_channels

    def counted(generator, embed, codes, **given):
        ranges.append((given["layer"], len(codes)))
        return real(generator, embed, codes, **given)

    monkeypatch.setattr(relevance_task, "measure_channels", counted)
    return ranges


def night(models, workspace, date, **nightly):
    settings = Relevance(samples=4, channels_per_shard=8, batch_size=16)
    wanted = Nightly(**{"samples": 3, "most": 9, "night": date, **nightly})
    return build_relevance(models, str(workspace), SAMPLING, settings, nightly=wanted)


def ranges_of(result):
    return read_provenance(result.table.relevance).parameters["sample_ranges"]


def test_nights_start_add_and_stop(models, tmp_path, measured):
    first = night(models, tmp_path, "2031-05-17")
    assert ranges_of(first) == [[0, 4]]
    second = night(models, tmp_path, "2031-05-18")
    assert ranges_of(second) == [[0, 4], [4, 7]]
    executions = len(measured)
    for _ in range(2):  # twice in one night: found done, and nothing is measured
        again = night(models, tmp_path, "2031-05-18")
        assert again.table == second.table
    assert ranges_of(night(models, tmp_path, "2031-05-17")) == [[0, 4]]
    assert len(measured) == executions
    third = night(models, tmp_path, "2031-05-19")
    assert ranges_of(third) == [[0, 4], [4, 7], [7, 9]]  # only as many as are still wanted
    executions = len(measured)
    fourth = night(models, tmp_path, "2031-05-20")
    assert fourth.table == third.table
    assert len(measured) == executions


def test_a_night_that_failed_is_made_up_for_by_the_next(models, tmp_path, measured, monkeypatch):
    night(models, tmp_path, "2031-05-17")
    executions = len(measured)
    counted = relevance_task.measure_channels
    failing = [True]

    def fail_once(*given, layer, **others):
        if failing[0] and layer == "b8.conv1":
            raise RuntimeError("injected")
        return counted(*given, layer=layer, **others)

    monkeypatch.setattr(relevance_task, "measure_channels", fail_once)
    with pytest.raises(Exception, match="injected"):
        night(models, tmp_path, "2031-05-18")
    done = len(measured) - executions
    assert done > 0
    failing[0] = False
    result = night(models, tmp_path, "2031-05-19")
    assert ranges_of(result) == [[0, 4], [4, 7]]
    assert len(measured) - executions == done + 1  # the failed shard alone
    assert night(models, tmp_path, "2031-05-18").table == result.table


def test_two_runs_of_one_night_at_once_make_one_table(models, tmp_path):
    night(models, tmp_path, "2031-05-17")
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: night(models, tmp_path, "2031-05-18"), range(2)))
    assert both[0].table == both[1].table
    tables = [entry.key for entry in list_objects(str(tmp_path / "relevance"))]
    assert sum(key.endswith("/relevance.parquet") for key in tables) == 3  # first, added, both


def test_a_night_reaches_from_noon_to_noon_of_the_time_zone_and_has_the_date_of_its_morning():
    due = datetime(2031, 5, 17, 23, 30, tzinfo=UTC)
    assert Nightly().date_of(due) == "2031-05-18"
    assert Nightly(time_zone="Europe/Berlin").date_of(due) == "2031-05-18"
    assert Nightly(time_zone="America/New_York").date_of(due) == "2031-05-18"
    assert Nightly(time_zone="America/Los_Angeles").date_of(due) == "2031-05-18"
    assert Nightly(time_zone="Asia/Tokyo").date_of(due) == "2031-05-18"
    assert Nightly().date_of(datetime(2031, 5, 17, 11, 59, tzinfo=UTC)) == "2031-05-17"
    assert Nightly().date_of(datetime(2031, 5, 17, 12, 0, tzinfo=UTC)) == "2031-05-18"
    assert Nightly(night="2031-01-02").date_of(due) == "2031-01-02"
    for wrong in ({"night": "2031-13-40"}, {"night": "tonight"}, {"time_zone": "Berlin"}):
        with pytest.raises(ValueError, match=r"month|pattern|unknown time zone"):
            Nightly(**wrong)


def test_what_cannot_work_says_what_to_do(models, tmp_path):
    with pytest.raises(SettingsError, match="decides itself what to add; leave add_samples"):
        build_relevance(models, str(tmp_path), add_samples=2, nightly=Nightly())
    first = night(models, tmp_path, "2031-05-17")
    second = night(models, tmp_path, "2031-05-18")
    (tmp_path / "relevance" / first.table.fingerprint / "relevance.parquet").unlink()
    with pytest.raises(ArtifactConflictError, match="which has gone; delete it, and the next run decides"):
        night(models, tmp_path, "2031-05-18")
    decisions = [entry.key for entry in list_objects(str(tmp_path / "nights"))]
    assert [key.split("/")[1] for key in decisions] == ["2031-05-17.json", "2031-05-18.json"]
    (tmp_path / "nights" / decisions[1]).write_text("{}")
    with pytest.raises(ArtifactConflictError, match="is no decision about a night"):
        night(models, tmp_path, "2031-05-18")
    assert second.table


def check_created_once(uri, writers):
    with ThreadPoolExecutor(writers) as pool:
        made = list(pool.map(lambda number: create_bytes(uri, b"%d" % number), range(4)))
    assert made.count(True) == 1
    assert read_bytes(uri) == b"%d" % made.index(True)
    assert not create_bytes(uri, b"later")
    folder, name = uri.rsplit("/", 1)
    assert [entry.key for entry in list_objects(folder)] == [name]


def test_of_several_that_create_an_object_one_does(tmp_path):
    check_created_once(str(tmp_path / "deep" / "made.json"), writers=4)


def test_an_object_in_a_bucket_is_created_once(s3_identities):
    # one after the other: this store checks the condition of a PUT, but not in the same instant
    check_created_once(join(s3_identities.uri("results"), "created", "made.json"), writers=1)


def test_the_decision_is_a_task_of_its_own():
    assert decide_night.persist_result
