"""What a run that ended early leaves: manifest and page of what is done, marked, until Retry completes it."""

import os
import signal
from pathlib import Path
from threading import Event

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.exceptions import TerminationSignal

from styleclip.flows.align_faces import align_faces
from styleclip.flows.edit_images import edit_images
from styleclip.flows.report_batch import report_partial
from styleclip.flows.score_images import score_images
from styleclip.tasks.artifacts import Provenance, read_provenance, read_table
from styleclip.tasks.artifacts.outcomes import OutcomeLog, success
from styleclip.tasks.editing import shards as editing_task
from styleclip.tasks.evaluation import image_scores
from styleclip.tasks.evaluation.labels import LabelPrompt
from styleclip.tasks.photographs import faces as faces_task
from styleclip.tasks.reports.notes import NoBatchError, noted_batches
from styleclip.tasks.running import partial
from styleclip.tasks.running.partial import Part, done_shards, supersede
from styleclip.tasks.settings import Execution, FaceSource
from tests.pipeline.test_retry import press_retry, six_photographs

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def job(network_files, tmp_path):
    """An edit of six photographs in a few shards, one after the other."""
    _, parameters = six_photographs(network_files, tmp_path)
    from styleclip.flows.run import task_runner

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STYLECLIP_WORKERS", "1")
        yield edit_images.with_options(task_runner=task_runner()), parameters


def partials(out: Path) -> list[Path]:
    return sorted((out / "partial").iterdir()) if (out / "partial").exists() else []


def ending(monkeypatch, end, good: set[int]):
    """Let editing end in some way in all shards but the good ones, and only when those are done."""
    done, real, ready = set(), editing_task._finish, Event()

    def finish(begun, shard, places):
        if shard.number not in good:
            assert not good or ready.wait(300)
            return end()
        rows = real(begun, shard, places)
        done.add(shard.number)
        if done == good:
            ready.set()
        return rows

    monkeypatch.setattr(editing_task, "_finish", finish)


def broken(*_given):
    raise RuntimeError("injected fault")


def test_a_failed_run_shows_what_is_done_and_retry_completes_it(job, tmp_path, monkeypatch):
    flow, parameters = job
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        ending(patch, broken, good={0})
        first = flow(**parameters, return_state=True)
    assert first.is_failed()
    assert "edit-images shards failed" in first.message  # the failure is what it was

    (folder,) = partials(out)
    rows = pd.read_parquet(folder / "manifest.parquet")
    index = next(noted_batches(str(out / "workspace"), str(out))).index
    of = len(index.shards)
    assert of == 3
    assert len(rows) == index.shards[0].rows
    assert set(rows.status) == {"ok"}
    made = read_provenance(str(folder / "manifest.parquet"))
    assert made.parameters["partial"] == {"shards": 1, "of": of}
    page = (folder / "index.html").read_text()
    assert f"partial: 1 of {of} shards; the run failed, start it again" in page
    assert "thumbs-0-0" in page  # with its pictures
    assert not (out / "batches").exists()

    second = press_retry(flow, first.state_details.flow_run_id, parameters)
    assert second.is_completed(), second.message
    whole = second.result().report
    assert whole.rows == 6
    assert "partial" not in read_provenance(whole.manifest).parameters
    assert 'id="partial"' not in Path(whole.page).read_text()
    assert [folder] == partials(out)
    told = (folder / "index.html").read_text()
    assert "Superseded" in told
    link = told.partition('href="../../')[2].partition('"')[0]
    assert (out / link).samefile(whole.page)
    assert Part.model_validate_json((folder / "partial.json").read_text()).superseded_by == whole.page


def test_a_second_failure_has_a_report_of_its_own(job, tmp_path, monkeypatch):
    flow, parameters = job
    found = []
    for good in ({0}, {0, 1}):
        with monkeypatch.context() as patch:
            ending(patch, broken, good)
            assert flow(**parameters, return_state=True).is_failed()
        found.append(len(partials(tmp_path / "out")))
    assert found == [1, 2]
    whole = flow(**parameters)
    for folder in partials(tmp_path / "out"):
        assert partial.read_part(str(folder)).superseded_by == whole.report.page


def test_a_run_that_does_nothing_well_leaves_no_report(job, tmp_path, monkeypatch):
    flow, parameters = job
    ending(monkeypatch, broken, good=set())
    assert flow(**parameters, return_state=True).is_failed()
    assert partials(tmp_path / "out") == []


def test_what_cannot_be_written_down_hides_no_failure(job, monkeypatch):
    flow, parameters = job
    ending(monkeypatch, broken, good={0})
    monkeypatch.setattr("styleclip.tasks.reports.batch.done_shards", broken)
    first = flow(**parameters, return_state=True)
    assert first.is_failed()
    assert "edit-images shards failed" in first.message


def test_a_step_that_fails_after_the_edits_leaves_the_whole_report(job, tmp_path, monkeypatch):
    flow, parameters = job
    monkeypatch.setattr("styleclip.flows.steps.editing.compare", broken)
    assert flow(**parameters, return_state=True).is_failed()
    (batch,) = (tmp_path / "out" / "batches").iterdir()
    assert len(pd.read_parquet(batch / "manifest.parquet")) == 6
    assert (batch / "index.html").exists()
    assert partials(tmp_path / "out") == []


def test_a_run_that_is_cancelled_shows_what_is_done(job, tmp_path, monkeypatch):
    flow, parameters = job
    before, sent = signal.getsignal(signal.SIGTERM), []

    def terminate():
        # what Prefect's worker does to the process of a run that is cancelled; no shard ends after that
        if not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("the process is ending")

    ending(monkeypatch, terminate, good={0})
    # by Prefect's rule the signal is sent again, to the handler there was before the flow's own
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.raises(TerminationSignal):
            flow(**parameters)
    finally:
        signal.signal(signal.SIGTERM, before)
    (folder,) = partials(tmp_path / "out")
    page = (folder / "index.html").read_text()
    assert "the run was cancelled, or its worker stopped, start it again" in page
    assert "thumbs-0-0" in page


def test_of_a_run_that_was_killed_somebody_else_shows_what_is_done(job, tmp_path, monkeypatch):
    flow, parameters = job
    out = str(tmp_path / "out")
    with monkeypatch.context() as patch:
        ending(patch, broken, good={0})
        patch.setattr(
            "styleclip.flows.edit_images.partial_report", lambda *_, **__: None
        )  # nobody is left to do it
        assert flow(**parameters, return_state=True).is_failed()
    assert partials(tmp_path / "out") == []
    (page,) = report_partial(out)
    assert "press Retry or start it again" in Path(page).read_text()
    assert report_partial(out) == [page]

    whole = flow(**parameters)
    assert report_partial(out) == [whole.report.page]
    assert "Superseded" in Path(page).read_text()
    with pytest.raises(NoBatchError, match=r"no run has begun to edit into .*/other, going by"):
        report_partial(f"{out}/other", f"{out}/workspace")


def test_what_is_noted_of_a_batch_is_what_the_batch_is(job, tmp_path):
    flow, parameters = job
    flow(**parameters)
    (noted,) = noted_batches(str(tmp_path / "out" / "workspace"), str(tmp_path / "out"))
    again = type(noted).model_validate_json(noted.model_dump_json())
    assert again == noted
    assert [plan.fingerprint for plan in again.plans] == [plan.recipe.fingerprint for plan in noted.plans]


def test_tables_of_faces_and_scores_are_left_too(network_files, tmp_path, monkeypatch):
    photos, _ = six_photographs(network_files, tmp_path)
    # of nobody in these photographs, which is an answer and no failure
    landmarks = pd.DataFrame({"image_key": ["other.png"], "landmarks": [list(np.zeros(10))]})
    landmarks.to_parquet(tmp_path / "landmarks.parquet")
    jobs = (
        (faces_task, "_align_photograph", "faces.parquet", lambda out: align_faces(
            FaceSource(landmarks=str(tmp_path / "landmarks.parquet")), str(photos), out,
            execution=Execution(shard_size=2),
        ).faces.table),
        (image_scores, "_read", "scores.parquet", lambda out: score_images(
            str(photos), [LabelPrompt(name="hat", prompt="hat")], out, network_files["clip"],
            execution=Execution(shard_size=2),
        ).scores.scores),
    )  # fmt: skip
    for module, name, table, work in jobs:
        out, real, calls = str(tmp_path / table), getattr(module, name), []

        def once(*given, real=real, calls=calls):
            calls.append(given)
            if any(
                part == "p5.png" or part[0] == "p5.png" for part in given if isinstance(part, str | tuple)
            ):
                raise RuntimeError("injected fault")
            return real(*given)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, once)
            with pytest.raises(Exception, match="injected fault"):
                work(out)
        (folder,) = partials(Path(out))
        part = partial.read_part(str(folder))
        assert 0 < part.shards == part.of - 1
        assert "the run failed" in part.text
        keys = read_table(str(folder / table))["image_key"].to_pylist()
        assert "p5.png" not in keys
        whole = work(out)
        assert set(keys) < set(read_table(whole)["image_key"].to_pylist())
        assert partial.read_part(str(folder)).superseded_by == whole


MADE = Provenance("rows", "0" * 32, "step", "1", {}, {}, "", "", "0")


@given(done=st.lists(st.booleans(), min_size=1, max_size=6))
def test_a_partial_table_has_the_shards_that_are_done_and_no_others(tmp_path_factory, done):
    import pyarrow as pa

    place = tmp_path_factory.mktemp("part")
    out, folder = str(place / "out"), str(place / "rows")
    schema = pa.schema([("image_key", pa.string()), ("status", pa.string()), ("error_type", pa.string()),
                        ("error", pa.string())])  # fmt: skip
    logs = [OutcomeLog(folder, f"shard{number}", ("image_key",)) for number in range(len(done))]
    for number, log in enumerate(logs):
        if done[number]:
            log.append([{"image_key": f"k{number}"} | success()], schema, MADE)
    assert done_shards(logs, lambda log: [log]) == [
        log for log, is_done in zip(logs, done, strict=True) if is_done
    ]

    def written(why: str) -> str:
        return partial.write_partial_table("rows.parquet", out, schema, MADE, logs, lambda log: log, why)

    uri = written("the run failed")
    if all(done) or not any(done):
        assert uri == ""
        return
    assert read_table(uri)["image_key"].to_pylist() == [f"k{n}" for n, is_done in enumerate(done) if is_done]
    assert written("the run was cancelled") == uri  # however it ended: the same outcomes, the same table

    whose = {MADE.step: MADE.fingerprint}
    assert supersede(out, {MADE.step: "1" * 32}, "elsewhere") == []
    assert supersede(out, whose, "the whole") == [uri.rpartition("/")[0]]
    assert supersede(out, whose, "the whole") == []
