"""Latents + edits of any method -> edited images and their manifest, a shard of images at a time."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from styleclip.tasks.artifacts import write_table
from styleclip.tasks.artifacts.outcomes import OK, SKIPPED, Item, Row, failure, success
from styleclip.tasks.editing.accounts import edit_work, work
from styleclip.tasks.editing.methods import apply_step
from styleclip.tasks.editing.optimization import TRAJECTORY_SCHEMA, Optimized, latents_table
from styleclip.tasks.editing.plans import EditPlan, edit_row, step_settings
from styleclip.tasks.editing.saving import Saved, Waiting, pack, save_image
from styleclip.tasks.editing.schemas import ROW_SCHEMA, TIMING_SCHEMA
from styleclip.tasks.editing.sources import Sources
from styleclip.tasks.editing.videos import encode_video
from styleclip.tasks.photographs.images import ImageShard
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.overlap import Account, Writes, computing, read_ahead
from styleclip.tasks.running.progress import ShardResult
from styleclip.tasks.running.rates import Spent
from styleclip.tasks.running.run import Run
from styleclip.tasks.running.shards import Outcomes, lost, taken_over
from styleclip.tasks.storage import join, write_bytes_atomic
from styleclip_core.batches import Batches
from styleclip_core.errors import ArtifactConflictError, StyleCLIPError

_BATCH = 32


class NotInvertedError(StyleCLIPError):
    """A photograph has no latent, so it cannot be edited."""


@unit_of_work("edit-shard", "edit-shard-{shard.number}")
def edit_shard(run: Run, plans: list[EditPlan], shard: ImageShard) -> ShardResult:
    """Apply every edit to the images of one shard that it has not been applied to."""
    started = time.monotonic()
    latents = plans[0].inversion.log(shard).latest()
    wanted = [wanted_of(planned, shard, latents) for planned in plans]

    # the attempts of all edits are read together: each is a request
    pairs = list(zip(plans, wanted, strict=True))
    states = list(read_ahead(pairs, lambda pair: state_of(*pair, shard), ahead=len(plans)))
    todo = [
        [row for row in mine if not state.is_done(row)] for mine, state in zip(wanted, states, strict=True)
    ]
    ready = [[row for row in rows if row["status"] == OK] for rows in todo]

    # unedited images are drawn and looked at once for all edits
    sources = Sources(run, plans[0].inversion, {row["image_key"]: row for rows in ready for row in rows})
    under_way = []
    with Waiting() as waiting:
        writes = _Writes(waiting)
        for planned, missing, inverted in zip(plans, todo, ready, strict=True):
            skipped = [_skipped_row(planned, row) for row in missing if row["status"] != OK]
            # an image whose own generator cannot be had fails in every edit, and holds up none
            broken = [row for row in inverted if row["image_key"] in sources.broken]
            skipped += [edit_row(planned, row) | sources.broken[row["image_key"]] for row in broken]
            able = [row for row in inverted if row["image_key"] not in sources.broken]
            under_way.append(_edit(planned, sources, able, skipped, writes))

        # rows say ok only of images that are written
        for each in under_way:
            each.wait()
        computed = list(zip(under_way, states, strict=True))
        finished = list(read_ahead(computed, lambda pair: _finish(*pair, shard, waiting), ahead=len(plans)))

    known = [
        state.known | {(row["image_key"],): row for row in new}
        for state, new in zip(states, finished, strict=True)
    ]

    return ShardResult(
        uri=plans[0].log(shard).uri(0),
        rows=sum(len(rows) for rows in known),
        failed=sum(row["status"] != OK for rows in known for row in rows.values()),
        reused=not any(ready),
        seconds=time.monotonic() - started,
        tried=sum(map(len, ready)),
        spent=tuple(_spent(run, sources, under_way)),
    )


def _spent(run: Run, sources: Sources, under_way: Sequence[_UnderWay]) -> Iterator[Spent]:
    """Yield what the work on a shard took: drawing what is not edited, and each edit."""
    yield work(run, "draw", "", sources.drawn, sources.seconds)
    for each in under_way:
        yield edit_work(run, each.planned, len(each.timings), each.account.seconds, each.size)


@dataclass(frozen=True)
class State:
    """What is known of an edit of a shard before it is applied.

    Attributes:
        known: Outcomes, those of older shards among them.
        older: The latter alone, which are to be written down.
        lost: Items whose image is gone.
    """

    known: Outcomes
    older: Outcomes
    lost: set[Item]

    def is_done(self, latent: Row) -> bool:
        """Return whether there is nothing to do of an image, whose latent is given."""
        item = (latent["image_key"],)
        return item not in self.lost and self.known.get(item, {}).get("status") == OK


def wanted_of(planned: EditPlan, shard: ImageShard, latents: list[Row]) -> list[Row]:
    """Return the latents of the images that an edit is for."""
    keys = planned.wanted_in(shard)
    return latents if keys is None else [row for row in latents if row["image_key"] in keys]


def state_of(planned: EditPlan, latents: list[Row], shard: ImageShard) -> State:
    """Return what there is of an edit of a shard, of the latents that it is for."""
    log, keys = planned.log(shard), planned.wanted_in(shard)
    versions = {row["image_key"]: row["content_hash"] for row in latents if row["status"] == OK}
    # an earlier run may have had the edit for other images
    own = {log.item(row): row for row in log.latest() if keys is None or row["image_key"] in keys}

    def enough(known: Outcomes) -> bool:
        return all(known.get((key,), {}).get("status") == OK for key in versions)

    older = taken_over(log, own, versions, enough)
    known = older | own
    return State(known, older, lost(planned.files(), known)[0])


class _Writes:
    """What a shard has under way: bounded, so that memory does not grow with the number of edits."""

    def __init__(self, waiting: Waiting) -> None:
        self.images, self.videos, self.waiting = Writes[Saved](2 * _BATCH), Writes[int](_BATCH), waiting


@dataclass(frozen=True)
class _UnderWay:
    """An edit of a shard that is computed, and whose images may still be being written.

    Attributes:
        rows: Row of each image that was computed, and its write; None where there is nothing to write.
        skipped: Rows of those that were not.
        account: What computing it took.
    """

    planned: EditPlan
    rows: list[tuple[Row, Future[Saved] | None]]
    skipped: list[Row]
    timings: list[Row]
    parts: list[_Part]
    videos: list[Future[int]]
    account: Account

    @property
    def size(self) -> int:
        """Return the bytes of what was written; raises what a write did."""
        images = (written.result().size for _, written in self.rows if written)
        return sum(images) + sum(video.result() for video in self.videos)

    def wait(self) -> None:
        """Wait for the writes; what became of each lies in its future."""
        wait([written for _, written in self.rows if written])
        wait(self.videos)


def _edit(
    planned: EditPlan, sources: Sources, ready: list[Row], skipped: list[Row], writes: _Writes
) -> _UnderWay:
    """Edit the latents of a shard by one edit, and begin to write images and videos."""
    names = {"edit": planned.prepared.variant.name, "variant": planned.variant}
    begun, drawing = _UnderWay(planned, [], skipped, [], [], [], Account()), sources.seconds

    for batch, (edited, share) in Batches(_BATCH).run(ready, partial(_timed, planned, sources)):
        for part in edited.parts:
            begun.videos.extend(writes.videos.submit(each) for each in _videos(planned, part))
            # frames go as soon as their video is under way: they are most of a batch's memory
            begun.parts.append(replace(part, optimized=replace(part.optimized, frames=[])))

        begun.timings.extend({"image_key": row["image_key"], **names, "seconds": share} for row in batch)

        for row, image in zip(edited.rows, edited.images, strict=True):
            write = partial(save_image, planned, row, image, writes.waiting)
            begun.rows.append((row, None if "status" in row else writes.images.submit(write)))

    # what is not edited was drawn within the first edit's time, and is counted apart
    together = sum(row["seconds"] for row in begun.timings)
    begun.account.seconds = max(0.0, together - (sources.seconds - drawing))
    return begun


def _finish(begun: _UnderWay, state: State, shard: ImageShard, waiting: Waiting) -> list[Row]:
    """Write the rows of an edit, now that its images are written, and return the new ones."""
    planned = begun.planned
    extras = _write_optimized(planned, shard, begun.parts)

    # raises what a write did: no row may name a video that is not there
    for video in begun.videos:
        video.result()

    rows = begun.skipped + [_finished(planned, row, written, extras) for row, written in begun.rows]
    if planned.saving.packed:
        saved = [written.result() if written else None for _, written in begun.rows]
        pairs = list(zip(rows[len(begun.skipped) :], saved, strict=True))
        places = pack(planned, shard, [(row, each) for row, each in pairs if each], state.known, waiting)
        rows = [row | {"output_key": places.get(row["image_key"])} for row in rows]

    log = planned.log(shard)
    new = {log.item(row) for row in rows}
    older = [row for item, row in state.older.items() if item not in new]
    uri = log.append([*older, *rows], ROW_SCHEMA, planned.made(), lost=state.lost)

    if uri and begun.timings:
        table = pa.Table.from_pylist(begun.timings, schema=TIMING_SCHEMA)
        with suppress(ArtifactConflictError):  # a run beside this one was first, and its times are as good
            write_table(_timings_uri(uri), table, planned.made())

    return rows


def _timed(planned: EditPlan, sources: Sources, batch: list[Row]) -> tuple[_Edited, float]:
    """Edit a batch, and return the seconds of computing per image with it."""
    with computing(sources.run.device) as elapsed:
        return _edit_batch(planned, sources, batch), elapsed() / len(batch)


def _finished(planned: EditPlan, row: Row, written: Future[Saved] | None, extras: dict[int, str]) -> Row:
    """Return a row with what became of its image."""
    whole = edit_row(planned, row)
    if written is None:
        return whole | row

    # raises what the write did: no row may say ok of an image that is not there
    saved = written.result()
    for number, uri in extras.items():
        row["steps"][number]["latents"] = uri
        if planned.prepared.steps[number].variant.frames:
            row["steps"][number]["video"] = planned.video_key(row, number)
    size = {"width": saved.width, "height": saved.height}
    return whole | row | {"output_key": saved.key or None} | size | success()


@dataclass(frozen=True)
class _Part:
    """What an optimization made of a batch."""

    step: int
    images: list[Row]
    optimized: Optimized


@dataclass(frozen=True)
class _Edited:
    """A batch after an edit: a row and an image each; a row with a status has failed."""

    rows: list[Row]
    images: Tensor
    parts: list[_Part] = field(default_factory=list)


@torch.no_grad()
def _edit_batch(planned: EditPlan, sources: Sources, batch: list[Row]) -> _Edited:
    keys = [row["image_key"] for row in batch]
    source, judge = sources.get(batch), sources.judge
    generator, latents, before = source.generator, source.latents, source.seen
    errors: dict[int, StyleCLIPError] = {}
    records: list[list[Row]] = [[] for _ in batch]
    parts = []

    for number, step in enumerate(planned.prepared.steps):
        applied = apply_step(sources.run, step, latents, keys, generator)
        if applied.optimized:
            parts.append(_Part(number, batch, applied.optimized))
        latents, errors = applied.latents, applied.errors | errors

        image = generator.synthesize(latents.codes(generator))
        after = judge.see(image)
        # a step is scored against the one before it, the whole edit against the source
        scored = list(_per_image(judge.score((step.variant,), before, after)))
        for record, values in zip(records, scored, strict=True):
            record.append(step_settings(step) | values)
        before = after

    if len(planned.prepared.steps) > 1:  # a single step's scores are the whole edit's
        scored = list(_per_image(judge.score(planned.prepared.variant.steps, source.seen, after)))

    # a pair whose optimization diverged has no image worth a score, and keeps its error
    rows = [
        {name: latent[name] for name in ("image_key", "content_hash")}
        | (failure(errors[index]) if index in errors else {**values, "steps": records[index]})
        for index, (latent, values) in enumerate(zip(batch, scored, strict=True))
    ]
    return _Edited(rows, image.cpu(), parts)


def _per_image(scores: dict[str, Tensor]) -> Iterator[Row]:
    """Yield the scores of each image of a batch."""
    # together, so that the device is waited for once
    columns = torch.stack(list(scores.values())).float().T.tolist()
    return (dict(zip(scores, values, strict=True)) for values in columns)


def _write_optimized(planned: EditPlan, shard: ImageShard, parts: list[_Part]) -> dict[int, str]:
    """Write latents and trajectories of a shard's optimizations; return where the latents lie, by step."""
    places = {}
    for number in sorted({part.step for part in parts}):
        mine = [part for part in parts if part.step == number]
        keys = [image["image_key"] for part in mine for image in part.images]
        variant = planned.prepared.steps[number].variant

        latents = latents_table(keys, torch.cat([part.optimized.latents for part in mine]), variant)

        # one order whatever the batches were: the rows name the file
        trajectory = sorted(
            (row for part in mine for row in part.optimized.trajectory),
            key=lambda row: (row["image_key"], row["step"]),
        )
        digest = hashlib.sha256(repr(trajectory).encode()).hexdigest()[:8]  # a killed run may leave others

        way = pa.Table.from_pylist(trajectory, schema=TRAJECTORY_SCHEMA)
        for kind, table in (("latents", latents), ("trajectory", way)):
            name = f"{shard.digest}.step-{number}.{kind}-{digest}.parquet"
            write_table(join(planned.folder, name), table, planned.made())

        places[number] = f"edits/{planned.fingerprint}/{shard.digest}.step-{number}.latents-{digest}.parquet"
    return places


def _videos(planned: EditPlan, part: _Part) -> Iterator[Callable[[], int]]:
    """Yield what encodes and writes the video of each image of a batch, if there are frames."""

    def write(image: Row, frames: list[np.ndarray]) -> int:
        uri, content = join(planned.out, planned.video_key(image, part.step)), encode_video(frames)
        write_bytes_atomic(uri, content)
        return len(content)

    if part.optimized.frames:
        for place, image in enumerate(part.images):
            yield partial(write, image, [frame[place] for frame in part.optimized.frames])


def _skipped_row(planned: EditPlan, latent: Row) -> Row:
    # the type stays the inversion's own, so that causes can be counted
    error = NotInvertedError(f"{latent['error_type']}: {latent['error']}")
    return edit_row(planned, latent) | failure(error, status=SKIPPED) | {"error_type": latent["error_type"]}


def _timings_uri(rows_uri: str) -> str:
    return rows_uri.replace(".attempt-", ".timings-")
