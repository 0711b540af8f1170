"""Whose fault an error is: a store's fails the shard of every task of items, an object's own is its row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import s3fs

from styleclip.flows.edit_images import edit_images
from styleclip.flows.steps import editing as editing_steps
from styleclip.tasks.artifacts.outcomes import OK, OutcomeLog, Row, failure
from styleclip.tasks.editing import plans as planning
from styleclip.tasks.editing import shards as editing
from styleclip.tasks.evaluation import image_scores
from styleclip.tasks.evaluation import shards as evaluation
from styleclip.tasks.evaluation.attributes import AttributePrompts
from styleclip.tasks.evaluation.labels import LabelPrompt
from styleclip.tasks.evaluation.manifest import index_edits
from styleclip.tasks.photographs import faces, images, inversion, pasting
from styleclip.tasks.photographs.edited_faces import EditedFaces
from styleclip.tasks.reports.page import thumbnails
from styleclip.tasks.running.progress import ShardResult
from styleclip.tasks.running.run import Run
from styleclip.tasks.settings import (
    Alignment,
    Comparison,
    Execution,
    FaceSource,
    Instant,
    Inversion,
    Models,
    Pasting,
    PivotalTuning,
    Sampling,
)
from styleclip.tasks.settings.edits import Edit
from styleclip.tasks.storage import (
    AccessDeniedError,
    ChangedObjectError,
    MissingObjectError,
    StorageError,
    StoreError,
    item_under,
    join,
    outages,
    read_bytes,
    write_bytes_atomic,
)
from styleclip.tasks.storage.outages import (
    CredentialsError,
    StoreUnavailableError,
    UnreadablePrefixError,
    UnservedObjectError,
    explained,
)
from tests.faulty_proxy import Answer, FaultyProxy, Refuse, Request, Rule, faulty_proxy
from tests.pipeline.test_faces import FACE
from tests.pipeline.test_flows import encoded, portrait

PLACE = "s3://results/whose"
KEYS = [f"p{number}.png" for number in range(3)]


@dataclass(frozen=True)
class Batch:
    """A batch in a bucket whose images are aligned, inverted with tunings, and edited."""

    run: Run
    shard: images.ImageShard
    edited: planning.EditPlan
    aligned: faces.AlignmentPlan
    table: str
    manifest: str


@pytest.fixture(scope="module")
def batch(prefect_server, s3, network_files, tmp_path_factory) -> Batch:
    s3fs.S3FileSystem.clear_instance_cache()
    photos = f"{PLACE}/photos"
    for number, key in enumerate(KEYS):
        write_bytes_atomic(join(photos, key), encoded(portrait(number, (96, 96))))

    seen, real = [], editing_steps.invert_and_edit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(editing_steps, "invert_and_edit", lambda *given: seen.append(given) or real(*given))
        result = edit_images(
            Models(**network_files), photos, f"{PLACE}/out",
            [Edit(name="hat", target="face with a hat", alpha=1, top_k=5, relevance="instant")],
            sampling=Sampling(statistics=20, codes=2), instant=Instant(codes=2),
            inversion=Inversion(steps=0, pivotal=PivotalTuning(steps=1, rank=2)),
            execution=Execution(shard_size=100, device="cpu"),
        )  # fmt: skip
    run, plans, index = seen[0]

    landmarks = tmp_path_factory.mktemp("faces") / "landmarks.json"
    landmarks.write_text(json.dumps(dict.fromkeys(KEYS, (FACE + 48).tolist())))
    source = FaceSource(landmarks=str(landmarks))
    found = faces.identify_source.fn(run, source)
    aligned = faces.plan(run, photos, source, found, Alignment(output_size=32))
    faces.align_shard.fn(run, aligned, index.shards[0])
    return Batch(
        run=run,
        shard=index.shards[0],
        edited=plans[0],
        aligned=aligned,
        table=faces.write_faces.fn(aligned, index).table,
        manifest=result.report.manifest,
    )


Rows = Callable[[], list[Row]]


def rows_of(*logs: OutcomeLog) -> Rows:
    return lambda: [row for log in logs for row in log.latest()]


def align(batch: Batch, folder: str) -> tuple[Callable[[], ShardResult], Rows]:
    planned = batch.aligned.model_copy(update={"folder": folder})
    return lambda: faces.align_shard.fn(batch.run, planned, batch.shard), rows_of(planned.log(batch.shard))


def invert(batch: Batch, folder: str) -> tuple[Callable[[], ShardResult], Rows]:
    planned = batch.edited.inversion.model_copy(update={"folder": folder})
    return (
        lambda: inversion.invert_shard.fn(batch.run, planned, batch.shard),
        rows_of(planned.log(batch.shard)),
    )


def edit(batch: Batch, folder: str) -> tuple[Callable[[], ShardResult], Rows]:
    planned = batch.edited.model_copy(update={"folder": folder, "out": folder})
    return lambda: editing.edit_shard.fn(batch.run, [planned], batch.shard), rows_of(planned.log(batch.shard))


def score(batch: Batch, folder: str) -> tuple[Callable[[], ShardResult], Rows]:
    prompts = [LabelPrompt(prompt="a smile", negative="a face")]
    planned = image_scores.plan_scores.fn(batch.run, f"{PLACE}/photos", prompts, "none")
    planned = planned.model_copy(update={"folder": folder})
    return (
        lambda: image_scores.score_shard.fn(batch.run, planned, batch.shard),
        rows_of(planned.log(batch.shard)),
    )


def evaluate(batch: Batch, folder: str, before: str = "photos") -> tuple[Callable[[], ShardResult], Rows]:
    run = batch.run.model_copy(update={"workspace": folder})
    index = index_edits.fn(run, batch.manifest, f"{PLACE}/out", 100)
    planned = evaluation.plan_evaluation.fn(
        run, index, Comparison(before="photograph", templates="none"),
        [AttributePrompts(name="hat", positive="face with a hat")], f"{PLACE}/{before}",
    )  # fmt: skip
    (shard,) = index.shards
    return lambda: evaluation.evaluate_shard.fn(run, planned, shard), rows_of(planned.log(shard))


def paste(batch: Batch, folder: str) -> tuple[Callable[[], ShardResult], Rows]:
    run = batch.run.model_copy(update={"workspace": folder, "out": folder})
    table = pasting.identify_faces.fn(batch.table, "")
    edited = EditedFaces(prefix=batch.aligned.faces)
    planned = pasting.plan(run, table, edited, Pasting())
    (shard,) = pasting.index_edited.fn(run, table, edited, 100).shards
    return lambda: pasting.paste_shard.fn(planned, shard), rows_of(planned.log(shard))


def thumbnail(batch: Batch, folder: str) -> tuple[Callable[[], ShardResult], Rows]:
    planned = thumbnails.plan_page.fn(batch.run, batch.manifest)
    (chunk,) = planned.chunks
    columns = {
        "photographs": planned.source.photographs.model_copy(update={"folder": f"{folder}/photographs"}),
        "inversions": None,
        "edits": [planned.source.edits[0].model_copy(update={"folder": f"{folder}/edits"})],
    }
    source = planned.source.model_copy(update=columns)
    logs = [column.log(chunk.digest) for column in (source.photographs, *source.edits)]
    return lambda: thumbnails.thumbnail_chunk.fn(source, chunk), rows_of(*logs)


# What each task does, and a part of the paths of the objects that are its items.
TASKS = {
    "align": (align, "/photos/"),
    "invert": (invert, "/photos/"),
    "edit": (edit, "/tunings/"),
    "score": (score, "/photos/"),
    "evaluate": (evaluate, "/images/"),
    "evaluate what was before": (evaluate, "/photos/"),
    "paste": (paste, "/photos/"),
    "paste edited faces": (paste, "/faces_"),
    "thumbnail": (thumbnail, "/photos/"),
    "thumbnail edits": (thumbnail, "/images/"),
}


@pytest.fixture(scope="module")
def proxy(s3) -> Iterator[FaultyProxy]:
    with faulty_proxy(s3.endpoint) as running:
        yield running


@pytest.fixture
def store(proxy, monkeypatch) -> Iterator[FaultyProxy]:
    """The store behind the proxy, for somebody who does not wait long."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    monkeypatch.setenv("STYLECLIP_STORAGE_PATIENCE", "0.2")
    monkeypatch.setattr(outages, "_watch", outages._Watch())
    s3fs.S3FileSystem.clear_instance_cache()
    yield proxy
    s3fs.S3FileSystem.clear_instance_cache()


def from_the_first(part: str, answer: Answer, *, lists: bool) -> Rule:
    """Return the rule that, from the first item that is read on, nothing is served, and perhaps listed."""
    begun: list[bool] = []

    def rule(request: Request) -> Answer | None:
        reads = request.method in ("GET", "HEAD") and not request.lists
        if reads and part in request.path:
            begun.append(True)
        return answer if begun and (reads or not lists) else None

    return rule


FAULTS = {
    "it answers 503": (Answer(503, "SlowDown"), False),
    "it lists and serves nothing": (Answer(503, "SlowDown"), True),
    "it lists and denies everything": (Answer(403, "AccessDenied"), True),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("task", TASKS)
def test_a_store_s_fault_fails_the_shard_of_every_task_and_is_no_row(store, batch, tmp_path, task, fault):
    begin, part = TASKS[task]
    answer, lists = FAULTS[fault]
    work, rows = begin(batch, str(tmp_path))
    with store.misbehaving(from_the_first(part, answer, lists=lists)), pytest.raises(StoreError):
        work()
    assert rows() == [] or {row["status"] for row in rows()} == {OK}  # of a column that was done before
    assert work().failed == 0
    assert {row["status"] for row in rows()} == {OK}


@pytest.mark.parametrize("task", TASKS)
def test_an_object_that_is_never_served_is_a_row_and_the_others_are_done(store, batch, tmp_path, task):
    begin, part = TASKS[task]
    work, rows = begin(batch, str(tmp_path))
    broken = Answer(500, "InternalError")
    with store.misbehaving(lambda seen: broken if part in seen.path and "p1.png" in seen.path else None):
        assert work().failed == 1
    assert {row["image_key"] for row in rows() if row["status"] == OK} >= {"p0.png", "p2.png"}
    (failed,) = (row for row in rows() if row["status"] != OK)
    assert (failed["image_key"], failed["error_type"]) == ("p1.png", "UnservedObjectError")
    assert "p1.png" in failed["error"]
    assert "fails for this object, though not for others" in failed["error"]
    assert work().failed == 0


# ---- the law itself -------------------------------------------------------------------------------------


def judged(prefix: str, key: str) -> Exception | None:
    """Return what reading an item raises."""
    try:
        with item_under(prefix, key):
            read_bytes(join(prefix, key))
    except StorageError as error:
        return error
    return None


def test_an_object_is_to_blame_only_while_another_can_be_read(store):
    place = f"{PLACE}/law"
    for key in ("a", "b", "c"):
        write_bytes_atomic(join(place, key), b"content")
    write_bytes_atomic(f"{PLACE}/alone/a", b"content")
    write_bytes_atomic(f"{PLACE}/alone/empty", b"")

    def when(answer, *parts: str, prefix: str = place) -> type:
        with store.misbehaving(lambda seen: answer if any(part in seen.path for part in parts) else None):
            return type(judged(prefix, "a"))

    broken, denied = Answer(500, "InternalError"), Answer(403, "AccessDenied")
    assert when(broken, "/a") is UnservedObjectError
    assert when(Refuse(), "/a") is UnservedObjectError
    assert when(broken, "/a", "/b") is UnservedObjectError  # the third is enough
    assert when(broken, "/a", "/b", "/c") is StoreUnavailableError
    assert when(broken, "/a", "list-type") is StoreUnavailableError
    assert when(broken, "/a", prefix=f"{PLACE}/alone") is StoreUnavailableError
    assert when(denied, "/a") is AccessDeniedError
    assert when(denied, "/a", "/b", "/c") is UnreadablePrefixError
    assert when(denied, "/a", prefix=f"{PLACE}/alone") is UnreadablePrefixError
    assert when(Answer(403, "ExpiredToken"), "/a") is CredentialsError
    assert type(judged(place, "gone")) is MissingObjectError
    assert type(judged(f"{PLACE}/nothing", "gone")) is UnreadablePrefixError  # a disk that is not mounted
    assert judged(place, "a") is None


def test_a_store_that_lists_and_serves_nothing_is_waited_for_once(store, monkeypatch):
    for key in ("a", "b", "c"):
        write_bytes_atomic(f"{PLACE}/once/{key}", b"content")
    monkeypatch.setenv("STYLECLIP_STORAGE_PATIENCE", "1")
    with store.misbehaving(lambda seen: None if seen.lists else Answer(503, "SlowDown")):
        assert type(judged(f"{PLACE}/once", "a")) is StoreUnavailableError
        waited = store.hits
        assert type(judged(f"{PLACE}/once", "b")) is StoreUnavailableError
        assert store.hits <= waited + 3 * 3  # one read and two others, each of which s3fs tries again


def test_a_machine_s_own_fault_is_no_file_s(tmp_path):
    for key in ("a", "b"):
        (tmp_path / key).write_bytes(b"content")
    with pytest.raises(StoreUnavailableError), item_under(str(tmp_path), "a"):
        raise StoreUnavailableError("too many open files")
    with pytest.raises(ChangedObjectError), item_under(str(tmp_path / "nothing"), "a"):
        raise ChangedObjectError("another version")
    with pytest.raises(ZeroDivisionError), item_under(str(tmp_path), "a"):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("status", "kind"),
    [(None, StoreUnavailableError), (503, StoreUnavailableError), (429, StoreUnavailableError),
     (404, MissingObjectError), (403, AccessDeniedError), (400, StorageError)],
)  # fmt: skip
def test_errors_of_other_clients_go_by_their_answer(status, kind):
    request = httpx.Request("GET", "https://example.org/x")
    error: Exception = httpx.ConnectError("Name or service not known", request=request)
    if status:
        answer = httpx.Response(status, request=request)
        error = httpx.HTTPStatusError("no", request=request, response=answer)
    with pytest.raises(StorageError) as caught, explained("hf://datasets/a/b", "list"):
        raise error
    assert type(caught.value) is kind
    assert "hf://datasets/a/b" in str(caught.value)


def test_no_row_is_made_of_a_store_s_fault():
    for error in (StoreUnavailableError("x"), CredentialsError("x"), UnreadablePrefixError("x")):
        with pytest.raises(StoreError):
            failure(error)
    assert failure(UnservedObjectError("x  y")) == {
        "status": "failed", "error_type": "UnservedObjectError", "error": "x y",
    }  # fmt: skip


def test_nobody_reads_items_without_asking():
    """Who makes rows of errors and reads objects does so inside ``item_under``."""
    tasks = Path(images.__file__).parents[1]
    for path in sorted(tasks.rglob("*.py")):
        text = path.read_text()
        if "failure(error)" in text and ("read_bytes(" in text or "read_version(" in text):
            # a shard's reader does it for whoever holds one
            assert "item_under(" in text or "ShardReader(" in text, path
