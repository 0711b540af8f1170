"""Latents + edits of any method -> edited images and their manifest, a shard of images at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from styleclip.tasks.artifacts import write_table
from styleclip.tasks.artifacts.outcomes import OK, SKIPPED, Item, Row, failure, success
from styleclip.tasks.directions.style_directions import read_direction
from styleclip.tasks.editing.accounts import edit_work, work
from styleclip.tasks.editing.leavings import Part, videos_of, write_optimized
from styleclip.tasks.editing.methods import apply_step
from styleclip.tasks.editing.plans import EditPlan, edit_row, step_settings
from styleclip.tasks.editing.saving import Packed, Saved, Waiting, pack, save_image
from styleclip.tasks.editing.schemas import ROW_SCHEMA, TIMING_SCHEMA
from styleclip.tasks.editing.sources import Sources
from styleclip.tasks.photographs.images import ImageShard
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.overlap import Account, Writes, computing, io_threads, read_ahead
from styleclip.tasks.running.progress import ShardResult
from styleclip.tasks.running.rates import Spent
from styleclip.tasks.running.run import Run
from styleclip.tasks.running.shards import Outcomes, lost, taken_over
from styleclip_core.batches import Batches
from styleclip_core.errors import ArtifactConflictError, StyleCLIPError
from styleclip_core.images import to_uint8

_BATCH = 16  # as many as are inverted at once, so that what was seen of them then is found


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

    # unedited images are drawn and looked at once for all edits, and directions are read before any computes
    sources = Sources(run, plans[0].inversion, {row["image_key"]: row for rows in ready for row in rows})
    for _ in read_ahead(_directions(plans, ready), lambda each: read_direction(*each), ahead=io_threads()):
        pass

    begun = []
    for planned, state, missing, inverted in zip(plans, states, todo, ready, strict=True):
        skipped = [_skipped_row(planned, row) for row in missing if row["status"] != OK]
        # an image whose own generator cannot be had fails in every edit, and holds up none
        broken = [row for row in inverted if row["image_key"] in sources.broken]
        skipped += [edit_row(planned, row) | sources.broken[row["image_key"]] for row in broken]
        able = [row for row in inverted if row["image_key"] not in sources.broken]
        begun.append(_UnderWay(planned, state, able, skipped, [], [], [], [], Account()))

    with Waiting() as waiting:
        writes, groups = _Writes(waiting), _together(begun)
        # a batch is edited by all before the next one: what is not edited is kept of one batch alone
        for _ in zip_longest(*(_edit(group, sources, writes) for group in groups)):
            pass

        # rows say ok only of images that are written
        for each in begun:
            each.wait()
        packing = read_ahead(groups, lambda group: _packed(group, shard, waiting), ahead=len(groups))
        places = {id(each): found for group, found in zip(groups, packing, strict=True) for each in group}
        finished = list(
            read_ahead(begun, lambda each: _finish(each, shard, places[id(each)]), ahead=len(plans))
        )

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
        spent=tuple(_spent(run, sources, begun)),
    )


def _directions(plans: Sequence[EditPlan], ready: Sequence[list[Row]]) -> list[tuple[str, str]]:
    """Return where the style directions lie of the edits that have images, with their fingerprints."""
    return list(dict.fromkeys(
        (step.uri, step.fingerprint)
        for planned, rows in zip(plans, ready, strict=True) if rows
        for step in planned.prepared.steps if step.variant.method == "global"
    ))  # fmt: skip


def _together(begun: Sequence[_UnderWay]) -> list[list[_UnderWay]]:
    """Return edits in groups that are computed and packed together, most of one edit, in order."""
    groups: dict[str, list[_UnderWay]] = {}
    for each in begun:
        groups.setdefault(each.planned.together, []).append(each)
    return list(groups.values())


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
        planned: The edit.
        state: What was known of it before.
        ready: Latents that it is applied to.
        skipped: Rows of those that it cannot be applied to.
        rows: Row of each image that was computed, and its write; None where there is nothing to write.
        account: What computing it took.
    """

    planned: EditPlan
    state: State
    ready: list[Row]
    skipped: list[Row]
    rows: list[tuple[Row, Future[Saved] | None]]
    timings: list[Row]
    parts: list[Part]
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


def _edit(group: Sequence[_UnderWay], sources: Sources, writes: _Writes) -> Iterator[None]:
    """Edit the latents of a shard by edits of which each image has one, and begin to write what comes out.

    Yields:
        After each batch.
    """
    drawing = 0.0
    mine = {row["image_key"]: each for each in group for row in each.ready}
    rows = [row for each in group for row in each.ready]
    if len(group) > 1:
        rows.sort(key=lambda row: str(row["image_key"]))

    def work(batch: list[Row]) -> tuple[_Edited, float, float]:
        plans, before = [mine[row["image_key"]].planned for row in batch], sources.seconds
        with computing(sources.run.device) as elapsed:
            edited = _edit_batch(plans, sources, batch)
            return edited, elapsed() / len(batch), sources.seconds - before

    for batch, (edited, share, drew) in Batches(_BATCH).run(rows, work):
        drawing += drew
        for part in edited.parts:  # of an optimization, which is never in a group
            group[0].videos.extend(writes.videos.submit(each) for each in videos_of(group[0].planned, part))
            # frames go as soon as their video is under way: they are most of a batch's memory
            group[0].parts.append(replace(part, optimized=replace(part.optimized, frames=[])))

        for latent, row, image in zip(batch, edited.rows, edited.images, strict=True):
            each = mine[latent["image_key"]]
            names = {"edit": each.planned.prepared.variant.name, "variant": each.planned.variant}
            each.timings.append({"image_key": latent["image_key"], **names, "seconds": share})
            write = partial(save_image, each.planned, row, image, writes.waiting)
            each.rows.append((row, None if "status" in row else writes.images.submit(write)))
        yield

    # what is not edited was drawn within the first edit's time, and is counted apart
    drawn = drawing / max(1, len(rows))
    for each in group:
        together = sum(row["seconds"] for row in each.timings)
        each.account.seconds = max(0.0, together - drawn * len(each.ready))


def _packed(group: Sequence[_UnderWay], shard: ImageShard, waiting: Waiting) -> Mapping[str, str]:
    """Write the images of a group into tars or tables, if they are packed; return where each lies."""
    if not group[0].planned.saving.packed:
        return {}
    saved = [
        (each, edit_row(each.planned, row) | row, written.result())
        for each in group for row, written in each.rows if written
    ]  # fmt: skip
    return pack(
        [
            Packed(each.planned, row, image, each.state.known.get((row["image_key"],)))
            for each, row, image in saved
        ],
        shard,
        waiting,
    )


def _finish(begun: _UnderWay, shard: ImageShard, places: Mapping[str, str]) -> list[Row]:
    """Write the rows of an edit, now that its images are written, and return the new ones."""
    planned, state = begun.planned, begun.state
    extras = write_optimized(planned, shard, begun.parts)

    # raises what a write did: no row may name a video that is not there
    for video in begun.videos:
        video.result()

    rows = begun.skipped + [_finished(planned, row, written, extras) for row, written in begun.rows]
    if planned.saving.packed:
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
class _Edited:
    """A batch after an edit: a row and pixels each; a row with a status has failed."""

    rows: list[Row]
    images: np.ndarray
    parts: list[Part] = field(default_factory=list)


@torch.no_grad()
def _edit_batch(plans: list[EditPlan], sources: Sources, batch: list[Row]) -> _Edited:
    """Edit each image of a batch by its plan; plans are alike in all but prompts, strengths and channels."""
    keys = [row["image_key"] for row in batch]
    source, judge = sources.get(batch), sources.judge
    generator, latents, before = source.generator, source.latents, source.seen
    errors: dict[int, StyleCLIPError] = {}
    records: list[list[Row]] = [[] for _ in batch]
    parts, count = [], len(plans[0].prepared.steps)

    for number in range(count):
        steps = [planned.prepared.steps[number] for planned in plans]
        applied = apply_step(sources.run, steps, latents, keys, generator)
        if applied.optimized:
            parts.append(Part(number, batch, applied.optimized))
        latents, errors = applied.latents, applied.errors | errors

        image = generator.synthesize(latents.codes(generator))
        after = judge.see(image)
        # a step is scored against the one before it, the whole edit against the source
        scored = list(_per_image(judge.score([(step.variant,) for step in steps], before, after)))
        for record, step, values in zip(records, steps, scored, strict=True):
            record.append(step_settings(step) | values)
        before = after

    if count > 1:  # a single step's scores are the whole edit's
        edits = [planned.prepared.variant.steps for planned in plans]
        scored = list(_per_image(judge.score(edits, source.seen, after)))

    # a pair whose optimization diverged has no image worth a score, and keeps its error
    rows = [
        {name: latent[name] for name in ("image_key", "content_hash")}
        | (failure(errors[index]) if index in errors else {**values, "steps": records[index]})
        for index, (latent, values) in enumerate(zip(batch, scored, strict=True))
    ]
    return _Edited(rows, to_uint8(image), parts)


def _per_image(scores: dict[str, Tensor]) -> Iterator[Row]:
    """Yield the scores of each image of a batch."""
    # together, so that the device is waited for once
    columns = torch.stack(list(scores.values())).float().T.tolist()
    return (dict(zip(scores, values, strict=True)) for values in columns)


def _skipped_row(planned: EditPlan, latent: Row) -> Row:
    # the type stays the inversion's own, so that causes can be counted
    error = NotInvertedError(f"{latent['error_type']}: {latent['error']}")
    return edit_row(planned, latent) | failure(error, status=SKIPPED) | {"error_type": latent["error_type"]}


def _timings_uri(rows_uri: str) -> str:
    return rows_uri.replace(".attempt-", ".timings-")
