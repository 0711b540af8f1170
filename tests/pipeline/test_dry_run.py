"""Dry runs: what they count is what the run then does, they write nothing, and rates tell time and cost."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.flow_engine import run_flow

from styleclip.flows.build_relevance import build_relevance
from styleclip.flows.edit_images import edit_images
from styleclip.flows.estimates import Forecast
from styleclip.flows.invert_images import invert_images
from styleclip.flows.run import RunResult
from styleclip.flows.train_mapper import train_mapper
from styleclip.tasks.photographs.inversion import invert_shard
from styleclip.tasks.running.progress import ShardsFailedError
from styleclip.tasks.running.rates import Range, Rates, Spent, keep_rates, makespan, rates_uri, read_rates
from styleclip.tasks.settings import (
    Execution,
    Instant,
    Inversion,
    MapperTraining,
    Models,
    Nightly,
    Relevance,
    Sampling,
)
from styleclip.tasks.settings.edits import Edit
from styleclip.tasks.storage import (
    delete_objects,
    join,
    list_objects,
    write_bytes_atomic,
)
from tests.left import files_of
from tests.pipeline.test_by_image import BY_COLOUR, SMILE
from tests.pipeline.test_by_image import photos as photos  # a fixture
from tests.pipeline.test_changed_objects import Place
from tests.pipeline.test_changed_objects import place as place  # a fixture
from tests.pipeline.test_command_line import called as called  # a fixture
from tests.pipeline.test_faces import photograph

pytestmark = pytest.mark.usefixtures("prefect_server")
EDITS = [
    Edit(name="smile", target="a smiling face", relevance="instant", alpha=(1.0, 3.0), top_k=5),
    Edit(name="hat", target="a face with a hat", relevance="instant", alpha=2.0, top_k=5),
]
CODES = Sampling(codes=4, statistics=8)
SMALL = {
    "sampling": CODES, "instant": Instant(codes=4, probes=2), "inversion": Inversion(steps=1),
    "execution": Execution(device="cpu", shard_size=2),
}  # fmt: skip
TABLE = {"sampling": CODES, "relevance": Relevance(samples=2, channels_per_shard=8)}


def lying(place: Place) -> dict[str, tuple[str, int]]:
    """Return version and size of everything that lies in a place, photographs and results."""
    root = place.out.rpartition("/")[0]
    return {item.key: (item.etag, item.size) for item in list_objects(root)}


def edited(place: Place, networks: dict[str, str], **options: object) -> RunResult:
    return edit_images(Models(**networks), place.photos, place.out, EDITS, **{**SMALL, **options})


def looked(place: Place, networks: dict[str, str], **options: object) -> Forecast:
    """Return what a dry run says, which has left everything as it was."""
    before = lying(place)
    seen = edited(place, networks, **options, dry_run=True).forecast
    assert lying(place) == before
    assert seen is not None
    return seen


def check(place: Place, networks: dict[str, str], **options: object) -> Forecast:
    """Compare what a dry run says with what the run then does, and return the former."""
    seen, before = looked(place, networks, **options), lying(place)
    result, after = edited(place, networks, **options), lying(place)
    told = {step.step: (step.found, step.computed, step.task_runs) for step in seen.steps}
    done = {step.step: (step.rows - step.tried, step.tried, step.shards) for step in result.steps}
    assert told == done

    # pictures are counted one by one, their bytes as large as others were
    new = {key: size for key, (etag, size) in after.items() if before.get(key, ("", 0))[0] != etag}
    written = {key: size for key, size in new.items() if "/images/" in key or "/reconstructions/" in key}
    assert seen.files == len(written)
    assert seen.size is None or seen.size == pytest.approx(sum(written.values()), rel=0.25)
    return seen


def numbers(seen: Forecast) -> dict[str, tuple[int, int]]:
    return {step.step: (step.found, step.computed) for step in seen.steps}


@pytest.mark.timeout(600)
def test_what_is_counted_is_what_the_run_does_in_every_state_of_a_workspace(place, network_files):
    fresh = check(place, network_files)
    assert numbers(fresh) == {"sample-styles": (0, 12), "invert-images": (0, 3), "edit-images": (0, 9)}
    assert fresh.read_files == 3
    assert fresh.read_size == sum(item.size for item in list_objects(place.photos))
    assert fresh.sampled

    done = check(place, network_files)
    assert numbers(done) == {"sample-styles": (12, 0), "invert-images": (3, 0), "edit-images": (9, 0)}
    assert (done.files, done.read_files, done.sampled) == (0, 0, [])

    # an image of one edit, and what was drawn of a photograph, which needs no inversion to come back
    pictures = [item.key for item in list_objects(place.out, (".png",))]
    lost = [next(key for key in pictures if key.startswith("images/smile") and "b.png" in key)]
    lost += [next(key for key in pictures if "/reconstructions/" in key)]
    delete_objects(place.out, lost)
    gone = check(place, network_files)
    assert numbers(gone) == {"sample-styles": (12, 0), "invert-images": (3, 0), "edit-images": (8, 1)}
    assert gone.files == 2

    write_bytes_atomic(join(place.photos, "b.png"), photograph(7))
    replaced = check(place, network_files)
    assert numbers(replaced)["invert-images"] == (2, 1)
    assert numbers(replaced)["edit-images"] == (6, 3)
    assert [step.changed for step in replaced.steps][1] == 1

    # half done: latents are there that other edits want, and a photograph is new
    write_bytes_atomic(join(place.photos, "d.png"), photograph(4))
    more = {"inversion": Inversion(steps=1), "execution": Execution(device="cpu", shard_size=2)}
    invert_images(Models(**network_files), place.photos, join(place.out, "workspace"), **more)
    half = check(place, network_files)
    assert numbers(half)["invert-images"][1] == 4 or numbers(half)["invert-images"] == (4, 0)
    assert numbers(half)["edit-images"] in ((9, 3), (0, 12))

    # a photograph that is broken is tried again by every run, and is edited by none
    write_bytes_atomic(join(place.photos, "d.png"), b"this is no image")
    edited(place, network_files)
    broken = looked(place, network_files)
    result = edited(place, network_files)
    assert numbers(broken)["invert-images"] == (3, 1)
    assert [step.again for step in broken.steps][1] == 1
    assert [step.tried for step in result.steps] == [0, 1, 0]
    assert numbers(broken)["edit-images"] == (9, 0)


def test_a_table_is_found_where_it_was_built_and_parts_of_it_are_counted(network_files, tmp_path):
    models, workspace = Models(**network_files), str(tmp_path / "workspace")
    fresh = build_relevance(models, workspace, **TABLE, dry_run=True).forecast
    assert not Path(workspace).exists()
    built = build_relevance(models, workspace, **TABLE)
    assert [(s.found, s.computed, s.task_runs) for s in fresh.steps] == [
        (s.rows - s.tried, s.tried, s.shards) for s in built.steps
    ]
    assert f"would lie at: {built.table.relevance}" in " ".join(fresh.notes)

    done = build_relevance(models, workspace, **TABLE, dry_run=True).forecast
    assert [step.computed for step in done.steps] == [0, 0]
    assert f"is there: {built.table.relevance}" in " ".join(done.notes)

    # however its parts were cut, and by which device, or whether they are there
    left = files_of(Path(workspace))
    otherwise = {**TABLE, "relevance": Relevance(samples=2)}
    again = build_relevance(models, workspace, **otherwise)
    assert (again.table, [step.computed for step in again.steps]) == (built.table, [0, 0])
    seen = build_relevance(models, workspace, **otherwise, dry_run=True).forecast
    assert [step.computed for step in seen.steps] == [0, 0]
    assert files_of(Path(workspace)) == left

    # a table that was begun is gone on with
    table = Path(built.table.relevance)
    part = min((table.parent / "parts").glob("*.parquet"))
    contents = {each: each.read_bytes() for each in (table, part)}
    for each in contents:
        each.unlink()
    half = build_relevance(models, workspace, **TABLE, dry_run=True).forecast
    assert half.steps[1].computed == 6  # channels of its layer
    for each, content in contents.items():
        each.write_bytes(content)

    # adding to it, by number and by night, decides nothing
    more = build_relevance(models, workspace, **TABLE, add_samples=3, dry_run=True).forecast
    assert [step.computed for step in more.steps[:2]] == [0, 3]
    night = Nightly(samples=4, night="2031-05-17")
    nightly = build_relevance(models, workspace, **TABLE, nightly=night, dry_run=True).forecast
    assert nightly.steps[1].computed == 4
    assert "adds 4 samples" in " ".join(nightly.notes)
    assert not (Path(workspace) / "nights").exists()


def test_a_sample_says_what_a_fast_table_takes_too(network_files, tmp_path):
    fast = Relevance(samples=4, derivatives=4, tolerance=0.15, minimum=2)
    seen = build_relevance(
        Models(**network_files), str(tmp_path / "w"), sampling=CODES, relevance=fast, dry_run=True
    ).forecast
    assert seen.unknown == []
    assert seen.seconds is not None
    assert {"derivatives", "measure"} <= set(seen.sampled)


def test_an_edit_by_a_table_that_is_not_built_yet_says_that_it_is_built_first(network_files, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(photograph(1))
    given = (Models(**network_files), str(tmp_path / "photos"), str(tmp_path / "out"))
    edits = [Edit(target="a face with a hat", top_k=3)]
    options = {**TABLE, "inversion": Inversion(steps=0)}
    seen = edit_images(*given, edits, **options, dry_run=True).forecast
    assert not (tmp_path / "out").exists()
    assert "is built first" in " ".join(seen.notes)

    result = edit_images(*given, edits, **options)
    assert [(s.step, s.found, s.computed) for s in seen.steps] == [
        (s.step, s.rows - s.tried, s.tried) for s in result.steps
    ]
    after = edit_images(*given, edits, **options, dry_run=True).forecast
    assert [step.computed for step in after.steps] == [0, 0, 0, 0]
    assert result.table.relevance in " ".join(after.notes)


def test_a_strength_that_is_still_to_be_chosen_leaves_its_edits_open_until_it_is_found(
    network_files, tmp_path
):
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.png").write_bytes(photograph(number))
    given = (Models(**network_files), str(tmp_path / "photos"), str(tmp_path / "out"))
    hat = {"target": "a face with a hat", "relevance": "instant", "alpha": "auto", "top_k": 5}
    edits = [Edit(**hat), Edit(**hat, name="again")]  # which share one choice
    seen = edit_images(*given, edits, **SMALL, dry_run=True).forecast
    assert numbers(seen)["edit-images"] == (0, 6)
    assert "1 strengths are still to be chosen" in " ".join(seen.notes)
    # said to be unknown, and not at once to have been measured
    assert seen.unknown == ["choose strength (24 images)"]
    assert "choose strength" not in seen.sampled

    assert len(edit_images(*given, edits, **SMALL).choices) == 1
    done = edit_images(*given, edits, **SMALL, dry_run=True).forecast
    assert numbers(done)["edit-images"] == (6, 0)


def test_edits_that_hang_on_columns_are_counted_for_the_images_that_they_are_for(
    photos, network_files, tmp_path
):
    given = (Models(**network_files), str(photos), str(tmp_path / "out"), [BY_COLOUR, SMILE])
    options = {**SMALL, "inversion": Inversion(steps=0)}
    seen = edit_images(*given, **options, dry_run=True).forecast
    assert not (tmp_path / "out").exists()
    result = edit_images(*given, **options)
    assert [(s.step, s.found, s.computed, s.task_runs) for s in seen.steps] == [
        (s.step, s.rows - s.tried, s.tried, s.shards) for s in result.steps
    ]
    assert numbers(seen)["edit-images"] == (0, 10)
    assert numbers(edit_images(*given, **options, dry_run=True).forecast)["edit-images"] == (10, 0)


def test_a_training_is_found_done_or_begun(network_files, tmp_path):
    models, workspace = Models(**network_files), str(tmp_path / "workspace")
    few = MapperTraining(preset="small", steps=6, codes=30, validation=4, validate_every=3, batch_size=2)
    seen = train_mapper(models, ["hat"], workspace, few, dry_run=True).forecast
    assert not Path(workspace).exists()
    assert (seen.steps[0].found, seen.steps[0].computed) == (0, 6)
    assert seen.seconds is not None

    (trained,) = train_mapper(models, ["hat"], workspace, few).mappers
    assert trained.steps == 6
    done = train_mapper(models, ["hat"], workspace, few, dry_run=True).forecast
    assert (done.steps[0].found, done.steps[0].computed) == (6, 0)

    # the curve is written last, so without it the training is as it was stored
    Path(trained.curve).unlink()
    stored = train_mapper(models, ["hat"], workspace, few, dry_run=True).forecast
    assert (stored.steps[0].found, stored.steps[0].computed) == (6, 0)


# ---- time and cost -------------------------------------------------------------------------------------


def report_of(run_id: UUID, key: str) -> str:
    wanted = ArtifactFilter(
        key=ArtifactFilterKey(any_=[key]), flow_run_id=ArtifactFilterFlowRunId(any_=[run_id])
    )
    with get_client(sync_client=True) as client:
        (found,) = client.read_artifacts(artifact_filter=wanted)
    return str(found.data)


def test_the_parameter_of_the_form_makes_a_dry_run_whose_report_says_time_and_cost(network_files, tmp_path):
    """As a run that is begun in the UI: by its id, with parameters as JSON."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(photograph(1))
    parameters = {
        "models": network_files, "photos": str(tmp_path / "photos"), "workspace": str(tmp_path / "workspace"),
        "inversion": {"steps": 1}, "dry_run": True, "execution": {"price_per_hour": 3.6},
    }  # fmt: skip
    with get_client(sync_client=True) as client:
        created = client.create_flow_run(invert_images, parameters=parameters)
    state = run_flow(invert_images, flow_run=created, parameters=parameters, return_type="state")
    assert state.is_completed(), state.message
    assert state.name == "DryRun"  # which is none of the names that alerts and metrics wait for
    seen = state.result().forecast
    assert seen.cost.middle == pytest.approx(seen.seconds.middle * 0.001)

    with get_client(sync_client=True) as client:
        assert client.read_flow_run(created.id).name.startswith("dry run: invert ")
    text = report_of(created.id, "invert-images-report")
    assert "A dry run: nothing was computed or written" in text
    assert "| invert-images | images | 0 | 1 |" in text
    assert f"{seen.price}" in text
    assert not (tmp_path / "workspace").exists()


def test_runs_keep_what_they_took_also_failed_ones_and_say_what_the_next_costs(
    place, network_files, monkeypatch, caplog
):
    real = invert_shard.fn

    def failing(run, planned, shard):
        if shard.number == 0:
            raise RuntimeError("injected fault")
        return real(run, planned, shard)

    monkeypatch.setattr(invert_shard, "fn", failing)
    workspace = join(place.out, "workspace")
    given = (Models(**network_files), place.photos, workspace, Inversion(steps=1))
    one_each = Execution(device="cpu", shard_size=1)
    with pytest.raises(ShardsFailedError):
        invert_images(*given, one_each)
    measured = {each.kind: each for each in read_rates(workspace).measured}
    assert measured["invert"].about == "encoder+1"
    assert measured["invert"].resolution == 16
    assert measured["invert"].size > 0
    assert "around" not in measured  # it did not come to its end

    monkeypatch.setattr(invert_shard, "fn", real)
    invert_images(*given, one_each)
    kinds = {each.kind for each in read_rates(workspace).measured}
    assert kinds == {"invert", "task run", "around", "ending"}

    # the first line of the next one
    write_bytes_atomic(join(place.photos, "d.png"), photograph(9))
    with caplog.at_level(logging.INFO):
        invert_images(*given, one_each.model_copy(update={"price_per_hour": 36000.0}))
    said = [line.message for line in caplog.records if line.message.startswith("this run inverts")][-1]
    assert "it takes about" in said
    assert "and costs" in said


def test_a_run_goes_on_where_rates_can_be_neither_read_nor_kept(network_files, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(photograph(1))
    workspace = tmp_path / "workspace"
    (workspace / "timings").mkdir(parents=True)
    (workspace / "timings" / "rates.json").write_text("{ damaged")
    given = (Models(**network_files), str(tmp_path / "photos"), str(workspace), Inversion(steps=0))
    assert invert_images(*given).steps[0].rows == 1
    assert read_rates(str(workspace)).measured  # begun anew

    (workspace / "timings" / "rates.json").unlink()
    (workspace / "timings" / "rates.json").mkdir()
    (tmp_path / "photos" / "b.png").write_bytes(photograph(2))
    assert invert_images(*given).steps[0].rows == 2


def spent(units: int, seconds: float, **other: object) -> Spent:
    return Spent(
        **{"kind": "invert", "device": "d", "resolution": 16, "units": units, "seconds": seconds, **other}
    )


def test_rates_are_medians_of_the_last_runs_with_their_spread():
    rates = Rates().adding([spent(10, 10.0), spent(10, 20.0), spent(1, 4.0)])
    assert rates.of(spent(1, 0)) == Range(low=1.0, middle=2.0, high=4.0)
    assert rates.of(spent(1, 0, resolution=32)) is None
    assert rates.of(spent(1, 0, device="other")) is None
    assert rates.of(spent(1, 0, device="")) is not None  # beside a cluster it may be any
    assert Range.over([3.0]) == Range(low=2.0, middle=3.0, high=4.5)
    tenths = Range.over([float(value) for value in range(1, 12)])
    assert (tenths.low, tenths.middle, tenths.high) == (2.0, 6.0, 10.0)

    # the oldest go, each kind apart
    many = rates.adding([spent(1, float(number)) for number in range(40)] + [spent(1, 1.0, about="other")])
    assert len(many.measured) == 21
    assert many.measured[0].seconds == 20.0


def test_shards_go_on_the_first_place_that_is_free():
    assert makespan([], 2) == 0
    assert makespan([3.0, 1.0, 1.0, 1.0], 2) == 3.0
    assert makespan([1.0, 1.0, 1.0], 2) == 2.0


def test_a_store_that_refuses_rates_is_told_and_fails_nobody(tmp_path, caplog):
    (tmp_path / "timings").write_text("a file where a folder must be")
    keep_rates(str(tmp_path), [spent(1, 1.0)])
    assert "cannot be kept for later estimates" in caplog.text
    assert rates_uri(str(tmp_path)).endswith("timings/rates.json")


# ---- the command line ----------------------------------------------------------------------------------


def test_the_command_line_prints_a_table_or_one_object_and_ends_with_0(called, network_files, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(photograph(1))
    networks = [f"--{name}={network_files[name]}" for name in ("generator", "encoder")]
    given = ["invert", "--photos", tmp_path / "photos", "--workspace", tmp_path / "workspace", "--steps", 1]
    given += ["--dry-run", "--price-per-hour", 2.5, *networks]
    status, printed, told = called(*given)
    assert status == 0
    assert printed.startswith("a dry run: this run inverts 1 photographs")
    assert "and costs 0.0" in printed
    assert "to compute" in told

    status, printed, _ = called(*given, "--json")
    (line,) = printed.splitlines()
    said = json.loads(line)
    assert (status, said["status"]) == (0, "done")
    assert said["result"]["forecast"]["steps"][0]["computed"] == 1
    assert said["result"]["forecast"]["files"] == 1
    assert not (tmp_path / "workspace").exists()


def test_a_price_is_no_less_than_nothing(called, tmp_path):
    given = ["invert", "--photos", tmp_path, "--workspace", tmp_path / "w", "--dry-run"]
    status, _, told = called(*given, "--price-per-hour", -1)
    assert status == 2
    assert "price-per-hour" in told


def test_what_would_be_refused_is_refused_by_a_dry_run_too(called, network_files, tmp_path):
    networks = [f"--{name}={network_files[name]}" for name in ("generator", "clip")]
    status, _, told = called(
        "invert", "--photos", tmp_path / "no", "--workspace", tmp_path, "--dry-run", *networks[:1]
    )
    assert status == 2
    assert str(tmp_path / "no") in told
