"""Latents + edits of any method -> edited images and their manifest, a shard of images at a time."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from styleclip_core.batches import Batches
from styleclip_core.errors import ArtifactConflictError, StyleCLIPError
from styleclip_core.images import encode_png
from tasks.artifacts import Provenance, Recipe, write_table
from tasks.artifacts.outcomes import OK, SKIPPED, OutcomeLog, Row, failure, success
from tasks.directions.style_directions import PreparedStep
from tasks.editing.methods import PreparedEdit, apply_step, units
from tasks.editing.optimization import TRAJECTORY_SCHEMA, Optimized, latents_table
from tasks.editing.schemas import MANIFEST_SCHEMA, TIMING_SCHEMA
from tasks.editing.sources import Sources
from tasks.editing.videos import encode_video
from tasks.photographs.images import ImageShard
from tasks.photographs.inversion import InversionPlan
from tasks.running.caching import unit_of_work
from tasks.running.overlap import Writes, computing, read_ahead
from tasks.running.progress import ShardResult
from tasks.running.run import Run
from tasks.storage import join, output_key, write_bytes_atomic

STEP, VERSION = "edit-images", "3"
_BATCH = 32


class NotInvertedError(StyleCLIPError):
    """A photograph has no latent, so it cannot be edited."""


class EditPlan(BaseModel):
    """One edit variant over one set of latents: where its rows and its images lie."""

    model_config = ConfigDict(frozen=True)

    out: str
    folder: str
    recipe: Recipe
    prepared: PreparedEdit
    inversion: InversionPlan

    @property
    def fingerprint(self) -> str:
        """Return the name of the edit's rows."""
        return self.recipe.fingerprint

    @property
    def variant(self) -> str:
        """Return what tells this edit from others of its name, e.g. of other strengths, in every table."""
        return f"{self.prepared.variant.label}_{self.fingerprint[:8]}"

    @property
    def images(self) -> str:
        """Return the folder of the edited images, relative to ``out``."""
        return f"images/{self.variant}"

    def made(self) -> Provenance:
        """Return what the metadata of rows, and of what lies beside them, says."""
        steps = self.prepared.variant.steps
        inputs = {"direction": self.prepared.fingerprint, "latents": self.inversion.fingerprint}
        return self.recipe.made("edits", inputs, units=[units(step) for step in steps])

    def log(self, shard: ImageShard) -> OutcomeLog:
        """Return the attempts at a shard."""
        return OutcomeLog(self.folder, shard.digest, ("image_key",))

    def output_key(self, image_key: str) -> str:
        """Return where an edited image lies, relative to ``out``."""
        return f"{self.images}/{output_key(image_key, suffix='.png')}"


def plan(run: Run, prepared: PreparedEdit, inversion: InversionPlan) -> EditPlan:
    """Return where the rows and images of an edit lie; nothing is computed."""
    hashes = run.hashes
    inputs = {"direction": prepared.fingerprint, "latents": inversion.fingerprint}

    # judges decide the scores in the rows, so they are part of their name
    judges = {"identity": hashes.identity, "perceptual": hashes.perceptual}
    inputs |= {name: hash_ for name, hash_ in judges.items() if hash_}

    parameters = {**prepared.variant.parameters(), "out": run.out}
    recipe = Recipe(STEP, VERSION, parameters, inputs, hashes.generator, hashes.clip)
    folder = recipe.folder(run.workspace, "edits")
    return EditPlan(out=run.out, folder=folder, recipe=recipe, prepared=prepared, inversion=inversion)


@unit_of_work("edit-shard", "edit-shard-{shard.number}")
def edit_shard(run: Run, plans: list[EditPlan], shard: ImageShard) -> ShardResult:
    """Apply every edit to the images of one shard that it has not been applied to."""
    started = time.monotonic()
    latents = plans[0].inversion.log(shard).latest()

    # the attempts of all edits are read together: each is a request
    known = list(read_ahead(plans, lambda planned: _known(planned, shard), ahead=len(plans)))
    todo = [[row for row in latents if rows.get(row["image_key"], {}).get("status") != OK] for rows in known]
    ready = [[row for row in rows if row["status"] == OK] for rows in todo]

    # unedited images are drawn and looked at once for all edits
    sources = Sources(run, plans[0].inversion, {row["image_key"]: row for rows in ready for row in rows})
    writes = _Writes()
    under_way = []
    for planned, missing, inverted in zip(plans, todo, ready, strict=True):
        skipped = [_skipped_row(planned, row) for row in missing if row["status"] != OK]
        # an image whose own generator cannot be had fails in every edit, and holds up none
        broken = [row["image_key"] for row in inverted if row["image_key"] in sources.broken]
        skipped += [_row(planned, key) | sources.broken[key] for key in broken]
        able = [row for row in inverted if row["image_key"] not in sources.broken]
        under_way.append(_edit(planned, sources, able, skipped, writes))

    # rows say ok only of images that are written
    for each in under_way:
        each.wait()
    finished = read_ahead(under_way, lambda each: _finish(each, shard), ahead=len(plans))
    for rows, new in zip(known, finished, strict=True):
        rows |= {row["image_key"]: row for row in new}

    return ShardResult(
        uri=plans[0].log(shard).uri(0),
        rows=sum(len(rows) for rows in known),
        failed=sum(row["status"] != OK for rows in known for row in rows.values()),
        reused=not any(ready),
        seconds=time.monotonic() - started,
    )


def _known(planned: EditPlan, shard: ImageShard) -> dict[str, Row]:
    return {row["image_key"]: row for row in planned.log(shard).latest()}


class _Writes:
    """What a shard has under way: bounded, so that memory does not grow with the number of edits."""

    def __init__(self) -> None:
        self.images, self.videos = Writes[str](2 * _BATCH), Writes[None](_BATCH)


@dataclass(frozen=True)
class _UnderWay:
    """An edit of a shard that is computed, and whose images may still be being written.

    Attributes:
        rows: Row of each image that was computed, and its write; None where there is nothing to write.
        skipped: Rows of those that were not.
    """

    planned: EditPlan
    rows: list[tuple[Row, Future[str] | None]]
    skipped: list[Row]
    timings: list[Row]
    parts: list[_Part]
    videos: list[Future[None]]

    def wait(self) -> None:
        """Wait for the writes; what became of each lies in its future."""
        wait([written for _, written in self.rows if written])
        wait(self.videos)


def _edit(
    planned: EditPlan, sources: Sources, ready: list[Row], skipped: list[Row], writes: _Writes
) -> _UnderWay:
    """Edit the latents of a shard by one edit, and begin to write images and videos."""
    label = planned.prepared.variant.label
    begun = _UnderWay(planned, [], skipped, [], [], [])

    for batch, (edited, share) in Batches(_BATCH).run(ready, partial(_timed, planned, sources)):
        for part in edited.parts:
            begun.videos.extend(writes.videos.submit(each) for each in _videos(planned, part))
            # frames go as soon as their video is under way: they are most of a batch's memory
            begun.parts.append(replace(part, optimized=replace(part.optimized, frames=[])))

        begun.timings.extend(
            {"image_key": row["image_key"], "edit": label, "seconds": share} for row in batch
        )

        for row, image in zip(edited.rows, edited.images, strict=True):
            write = partial(_write_image, planned, row["image_key"], image)
            begun.rows.append((row, None if "status" in row else writes.images.submit(write)))

    return begun


def _finish(begun: _UnderWay, shard: ImageShard) -> list[Row]:
    """Write the rows of an edit, now that its images are written, and return them."""
    planned = begun.planned
    extras = _write_optimized(planned, shard, begun.parts)

    # raises what a write did: no row may name a video that is not there
    for video in begun.videos:
        video.result()

    rows = begun.skipped + [_finished(planned, row, written, extras) for row, written in begun.rows]
    uri = planned.log(shard).append(rows, MANIFEST_SCHEMA, planned.made())

    if uri and begun.timings:
        table = pa.Table.from_pylist(begun.timings, schema=TIMING_SCHEMA)
        with suppress(ArtifactConflictError):  # a run beside this one was first, and its times are as good
            write_table(_timings_uri(uri), table, planned.made())

    return rows


def _timed(planned: EditPlan, sources: Sources, batch: list[Row]) -> tuple[_Edited, float]:
    """Edit a batch, and return the seconds of computing per image with it."""
    with computing(sources.run.device) as elapsed:
        return _edit_batch(planned, sources, batch), elapsed() / len(batch)


def _write_image(planned: EditPlan, image_key: str, image: Tensor) -> str:
    key = planned.output_key(image_key)
    write_bytes_atomic(join(planned.out, key), encode_png(image))
    return key


def _finished(planned: EditPlan, row: Row, written: Future[str] | None, extras: dict[int, str]) -> Row:
    """Return a row with what became of its image."""
    whole = _row(planned, row["image_key"])
    if written is None:
        return whole | row

    # raises what the write did: no row may say ok of an image that is not there
    key = written.result()
    for number, uri in extras.items():
        row["steps"][number]["latents"] = uri
        if planned.prepared.steps[number].variant.frames:
            row["steps"][number]["video"] = _video_key(planned, row["image_key"], number)
    return whole | row | {"output_key": key} | success()


@dataclass(frozen=True)
class _Part:
    """What an optimization made of a batch."""

    step: int
    keys: list[str]
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
            parts.append(_Part(number, keys, applied.optimized))
        latents, errors = applied.latents, applied.errors | errors

        image = generator.synthesize(latents.codes(generator))
        after = judge.see(image)
        # a step is scored against the one before it, the whole edit against the source
        scores = judge.score((step.variant,), before, after)
        for record, values in zip(records, _per_image(scores), strict=True):
            record.append(_settings(step) | values)
        before = after

    if len(planned.prepared.steps) > 1:  # a single step's scores are the whole edit's
        scores = judge.score(planned.prepared.variant.steps, source.seen, after)

    # a pair whose optimization diverged has no image worth a score, and keeps its error
    rows = [
        {"image_key": key}
        | (failure(errors[index]) if index in errors else {**values, "steps": records[index]})
        for index, (key, values) in enumerate(zip(keys, _per_image(scores), strict=True))
    ]
    return _Edited(rows, image.cpu(), parts)


def _per_image(scores: dict[str, Tensor]) -> Iterator[Row]:
    """Yield the scores of each image of a batch."""
    columns = [score.tolist() for score in scores.values()]
    return (dict(zip(scores, values, strict=True)) for values in zip(*columns, strict=True))


def _row(planned: EditPlan, image_key: str) -> Row:
    """Return a row that says what the edit is; settings are those of its one step, if it has one."""
    variant = planned.prepared.variant
    steps = planned.prepared.steps
    return (
        dict.fromkeys(MANIFEST_SCHEMA.names)
        | (_settings(steps[0]) if len(steps) == 1 else {})
        | {
            "image_key": image_key,
            "edit": variant.name,
            "variant": planned.variant,
            "neutral": variant.neutral,
            "target": variant.target,
            "method": variant.method,
        }
    )


def _settings(step: PreparedStep) -> Row:
    """Return the settings of a step, with the unit of its strength."""
    variant = step.variant
    apart = ("neutral", "target", "method")
    settings: dict[str, Any] = {k: v for k, v in variant.parameters().items() if k not in apart}
    settings |= units(variant) | ({"mapper": variant.mapper} if variant.mapper else {})
    settings |= {"reason": variant.reason} if variant.reason else {}
    return {
        "neutral": variant.neutral,
        "target": variant.target,
        "method": variant.method,
        "alpha": variant.alpha,
        "beta": variant.beta,
        "top_k": variant.top_k,
        "strength": variant.strength,
        "channels": step.channels,
        "layers": " ".join(step.layers) or None,
        "settings": json.dumps(settings, sort_keys=True),
    }


def _write_optimized(planned: EditPlan, shard: ImageShard, parts: list[_Part]) -> dict[int, str]:
    """Write latents and trajectories of a shard's optimizations; return where the latents lie, by step."""
    places = {}
    for number in sorted({part.step for part in parts}):
        mine = [part for part in parts if part.step == number]
        keys = [key for part in mine for key in part.keys]
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


def _videos(planned: EditPlan, part: _Part) -> Iterator[Callable[[], None]]:
    """Yield what encodes and writes the video of each image of a batch, if there are frames."""

    def write(key: str, frames: list[np.ndarray]) -> None:
        uri = join(planned.out, _video_key(planned, key, part.step))
        write_bytes_atomic(uri, encode_video(frames))

    if part.optimized.frames:
        for place, key in enumerate(part.keys):
            yield partial(write, key, [frame[place] for frame in part.optimized.frames])


def _video_key(planned: EditPlan, image_key: str, number: int) -> str:
    """Return where the video of an optimization lies, relative to ``out``."""
    folder = planned.images.replace("images/", "videos/", 1)
    return f"{folder}/step-{number}/{output_key(image_key, suffix='.mp4')}"


def _skipped_row(planned: EditPlan, latent: Row) -> Row:
    # the type stays the inversion's own, so that causes can be counted
    error = NotInvertedError(f"{latent['error_type']}: {latent['error']}")
    return (
        _row(planned, latent["image_key"])
        | failure(error, status=SKIPPED)
        | {"error_type": latent["error_type"]}
    )


def _timings_uri(rows_uri: str) -> str:
    return rows_uri.replace(".attempt-", ".timings-")
