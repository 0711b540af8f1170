"""What the Retry button does, through the server's own states: only what failed is executed again."""

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.states import State, StateType

from styleclip.flows.edit_images import edit_images
from styleclip.tasks.editing import shards as editing_task
from styleclip.tasks.photographs import inversion as inversion_task
from styleclip.tasks.photographs import reading
from styleclip.tasks.running.caching import ResultStorageError, probe_result_storage
from styleclip.tasks.settings import Execution, Inversion, Models, Relevance, Sampling
from styleclip.tasks.settings.edits import Edit
from styleclip.tasks.storage import AccessDeniedError
from tests.pipeline.test_flows import encoded, portrait

pytestmark = pytest.mark.usefixtures("prefect_server")


def press_retry(a_flow, flow_run_id, parameters):
    """Do what the UI's button and then the worker do."""
    with get_client(sync_client=True) as client:
        retry = State(type=StateType.SCHEDULED, name="AwaitingRetry")
        client.set_flow_run_state(flow_run_id, retry, force=True)
        flow_run = client.read_flow_run(flow_run_id)
    return run_flow(a_flow, flow_run=flow_run, parameters=parameters, return_type="state")


def six_photographs(network_files, tmp_path):
    """Return a folder of photographs, in a few shards, and what edits them."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(6):
        (photos / f"p{index}.png").write_bytes(encoded(portrait(index)))
    return photos, {
        "models": Models(**network_files),
        "photos": str(photos),
        "out": str(tmp_path / "out"),
        "edits": [Edit(target="hat", beta=0.0, templates="none")],
        "workspace": "",
        "sampling": Sampling(statistics=20, codes=2),
        "relevance": Relevance(samples=2, channels_per_shard=8),
        "inversion": Inversion(steps=2),
        "execution": Execution(shard_size=2),
    }


def test_retry_executes_only_the_failed_shard(network_files, tmp_path, monkeypatch):
    _, parameters = six_photographs(network_files, tmp_path)
    executed, broken, first_shard = [], [True], []
    bodies = {name: getattr(inversion_task, name) for name in ("read_shard", "_invert")}

    def read(shard):
        executed.append(shard.number)
        items = bodies["read_shard"](shard)
        first_shard.extend(items if shard.number == 0 else [])
        return items

    def fail_on_the_first(run, plan, log, reader, todo):
        if broken[0] and todo[0] in first_shard:
            raise RuntimeError("injected fault")
        return bodies["_invert"](run, plan, log, reader, todo)

    monkeypatch.setattr(inversion_task, "read_shard", read)

    monkeypatch.setattr(inversion_task, "_invert", fail_on_the_first)
    monkeypatch.setenv("STYLECLIP_WORKERS", "1")
    from styleclip.flows.run import task_runner

    one_at_a_time = edit_images.with_options(task_runner=task_runner())
    first = one_at_a_time(**parameters, return_state=True)
    assert first.is_failed()
    assert "invert-images shards failed" in first.message
    assert len(executed) >= 2
    # what was inverted was edited, though the run failed
    assert len(list((tmp_path / "out" / "images").rglob("*.png"))) == 6 - len(first_shard) > 0
    broken[0], executed[:] = False, []
    second = press_retry(one_at_a_time, first.state_details.flow_run_id, parameters)
    assert second.is_completed(), second.message
    # the bodies of finished tasks did not run at all: their results were found under the root run
    assert executed == [0]
    assert second.result().report.failed == 0


def test_a_result_storage_that_does_not_work_fails_at_once(tmp_path):
    (tmp_path / "taken").write_text("a file where a folder must be")

    @flow(persist_result=True, result_storage=tmp_path / "taken" / "results")
    def probe() -> str:
        return probe_result_storage()

    with pytest.raises((ResultStorageError, OSError), match=r"taken|does not work"):
        probe()


def test_retry_reaches_failed_items_inside_finished_shards(network_files, tmp_path, monkeypatch):
    _, parameters = six_photographs(network_files, tmp_path)
    read = reading.read_version

    def refuse_one(uri, etag):
        if uri.endswith("p3.png"):
            raise AccessDeniedError(f"cannot read {uri}")
        return read(uri, etag)

    monkeypatch.setattr(reading, "read_version", refuse_one)
    first = edit_images(**parameters, return_state=True)
    assert first.is_completed()  # an image that cannot be read is a row
    assert first.result().report.failed == 1
    monkeypatch.setattr(reading, "read_version", read)
    inverted, edited, real = [], [], inversion_task._invert
    edit_batch = editing_task._edit_batch
    monkeypatch.setattr(
        inversion_task,
        "_invert",
        lambda run, plan, log, reader, todo: inverted.extend(todo) or real(run, plan, log, reader, todo),
    )
    monkeypatch.setattr(
        editing_task,
        "_edit_batch",
        lambda plan, sources, batch: (
            edited.extend(row["image_key"] for row in batch) or edit_batch(plan, sources, batch)
        ),
    )
    second = press_retry(edit_images, first.state_details.flow_run_id, parameters)
    assert second.is_completed(), second.message
    assert [key for key, _ in inverted] == ["p3.png"] == edited
    assert second.result().report.failed == 0
    assert second.result().report.rows == 6
    third = press_retry(edit_images, first.state_details.flow_run_id, parameters)
    assert third.is_completed()
    assert [key for key, _ in inverted] == ["p3.png"]  # nothing is left to try again
