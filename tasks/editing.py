"""Latents + style directions -> edited images and their manifest, a shard of images at a time."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from prefect import task
from pydantic import BaseModel, ConfigDict
from torch import Tensor

import styleclip_core
from styleclip_core.errors import StyleCLIPError
from styleclip_core.images import encode_png
from styleclip_core.metrics import clip_similarity, directional_similarity
from styleclip_core.style_space import StyleCode
from tasks import models
from tasks.artifacts import Provenance, artifact_uri, fingerprint, write_table
from tasks.caching import PER_RUN
from tasks.directions import ALPHA_UNIT, DirectionRef, read_direction, target_embedding
from tasks.images import ImageShard
from tasks.inversion import InversionPlan
from tasks.outcomes import OK, SKIPPED, STATUS_FIELDS, OutcomeLog, Row, failure, success
from tasks.progress import ShardResult
from tasks.storage import StorageError, join, output_key, write_bytes_atomic

STEP, VERSION = "edit-images", "2"
_BATCH = 32

MANIFEST_FIELDS = [
    ("image_key", pa.string()), ("edit", pa.string()), ("method", pa.string()),
    ("neutral", pa.string()), ("target", pa.string()), ("alpha", pa.float64()), ("beta", pa.float64()),
    ("top_k", pa.int32()), ("channels", pa.int32()), ("layers", pa.string()), ("output_key", pa.string()),
    ("clip_before", pa.float32()), ("clip_after", pa.float32()), ("directional", pa.float32()),
    ("identity", pa.float32()), *STATUS_FIELDS,
]  # fmt: skip
MANIFEST_SCHEMA = pa.schema(MANIFEST_FIELDS)
TIMING_SCHEMA = pa.schema([("image_key", pa.string()), ("edit", pa.string()), ("seconds", pa.float32())])


class NotInvertedError(StyleCLIPError):
    """A photograph has no latent, so it cannot be edited."""


class EditPlan(BaseModel):
    """One edit variant over one set of latents: where its rows and its images lie."""

    model_config = ConfigDict(frozen=True)

    out: str
    folder: str
    fingerprint: str
    direction: DirectionRef
    inversion: InversionPlan

    @property
    def images(self) -> str:
        """Return the folder of the edited images, relative to ``out``."""
        return f"images/{self.direction.variant.label}_{self.fingerprint[:8]}"

    def log(self, shard: ImageShard) -> OutcomeLog:
        """Return the attempts at a shard."""
        return OutcomeLog(self.folder, shard.digest, ("image_key",))

    def output_key(self, image_key: str) -> str:
        """Return where an edited image lies, relative to ``out``."""
        return f"{self.images}/{output_key(image_key, suffix='.png')}"


def plan(out: str, workspace: str, direction: DirectionRef, inversion: InversionPlan) -> EditPlan:
    """Return where the rows and images of an edit lie; nothing is computed."""
    parameters = {**direction.variant.model_dump(), "out": out}
    inputs = {"direction": direction.fingerprint, "latents": inversion.fingerprint}
    print_ = fingerprint(STEP, VERSION, parameters, inputs)
    return EditPlan(
        out=out,
        folder=artifact_uri(workspace, "edits", print_),
        fingerprint=print_,
        direction=direction,
        inversion=inversion,
    )


@task(name="edit-shard", task_run_name="edit-shard-{shard.number}", cache_policy=PER_RUN, persist_result=True)
def edit_shard(plans: list[EditPlan], shard: ImageShard, device: str) -> ShardResult:
    """Apply every edit to the images of one shard that it has not been applied to."""
    started = time.monotonic()
    latents = plans[0].inversion.log(shard).latest()
    rows_total, failed, computed = 0, 0, False
    latent_batches = _LatentBatches(plans[0], device)
    for planned in plans:
        log = planned.log(shard)
        known = {row["image_key"]: row for row in log.latest()}
        todo = [row for row in latents if known.get(row["image_key"], {}).get("status") != OK]
        missing = [row for row in todo if row["status"] != OK]
        ready = [row for row in todo if row["status"] == OK]
        rows = [_skipped_row(planned, row) for row in missing]
        timings: list[Row] = []
        for first in range(0, len(ready), _BATCH):
            edited = _edit_batch(planned, latent_batches, ready[first : first + _BATCH], device)
            rows += edited.rows
            timings += edited.timings
        uri = log.append(rows, MANIFEST_SCHEMA, provenance(planned))
        if uri and timings:
            table = pa.Table.from_pylist(timings, schema=TIMING_SCHEMA)
            write_table(_timings_uri(uri), table, provenance(planned))
        computed = computed or bool(ready)
        known |= {row["image_key"]: row for row in rows}
        rows_total += len(known)
        failed += sum(row["status"] != OK for row in known.values())
    return ShardResult(
        uri=plans[0].log(shard).uri(0),
        rows=rows_total,
        failed=failed,
        reused=not computed,
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True)
class _Source:
    codes: StyleCode
    embedding: Tensor


class _LatentBatches:
    """Style codes and embeddings of unedited batches, kept for the next edit of the same shard."""

    def __init__(self, planned: EditPlan, device: str) -> None:
        chosen = planned.inversion.models
        self.generator = models.generator(chosen.generator, device)
        self.clip = models.clip(chosen.clip, device)
        self.device = device
        self._kept: dict[tuple[str, ...], _Source] = {}

    def get(self, rows: list[Row]) -> _Source:
        """Return the source of a batch of latents."""
        keys = tuple(row["image_key"] for row in rows)
        if keys not in self._kept:
            flat = np.asarray([row["w_plus"] for row in rows], dtype=np.float32)
            w_plus = torch.from_numpy(flat).view(len(rows), self.generator.num_ws, -1).to(self.device)
            codes = self.generator.styles(w_plus)
            self._kept[keys] = _Source(codes, self.clip.embed_whole(self.generator.synthesize(codes)))
        return self._kept[keys]


@dataclass(frozen=True)
class _Edited:
    rows: list[Row]
    timings: list[Row]


@torch.no_grad()
def _edit_batch(planned: EditPlan, sources: _LatentBatches, rows: list[Row], device: str) -> _Edited:
    started = time.monotonic()
    variant = planned.direction.variant
    source = sources.get(rows)
    delta, text = (tensor.to(device) for tensor in read_direction(planned.direction.uri))
    image = sources.generator.synthesize(source.codes.add(variant.alpha * delta))
    after = sources.clip.embed_whole(image)
    target = target_embedding(planned.inversion.models.clip, variant.target, variant.templates, device)
    scores = {
        "clip_before": clip_similarity(source.embedding, target),
        "clip_after": clip_similarity(after, target),
        "directional": directional_similarity(source.embedding, after, text),
    }
    done = []
    for index, row in enumerate(rows):
        outcome = _row(planned, row["image_key"])
        try:
            key = planned.output_key(row["image_key"])
            write_bytes_atomic(join(planned.out, key), encode_png(image[index].cpu()))
        except (StorageError, OSError) as error:
            done.append(outcome | failure(error))
            continue
        values = {name: score[index].item() for name, score in scores.items()}
        done.append(outcome | values | {"output_key": key} | success())
    share = (time.monotonic() - started) / len(rows)
    timings = [{"image_key": row["image_key"], "edit": variant.label, "seconds": share} for row in rows]
    return _Edited(done, timings)


def _row(planned: EditPlan, image_key: str) -> Row:
    variant = planned.direction.variant
    return dict.fromkeys(MANIFEST_SCHEMA.names) | {
        "image_key": image_key,
        "edit": variant.name,
        "method": "global",
        "neutral": variant.neutral,
        "target": variant.target,
        "alpha": variant.alpha,
        "beta": variant.beta,
        "top_k": variant.top_k,
        "channels": planned.direction.channels,
        "layers": " ".join(planned.direction.layers),
    }


def _skipped_row(planned: EditPlan, latent: Row) -> Row:
    error = NotInvertedError(f"{latent['error_type']}: {latent['error']}")
    return (
        _row(planned, latent["image_key"])
        | failure(error, status=SKIPPED)
        | {"error_type": latent["error_type"]}
    )


def _timings_uri(rows_uri: str) -> str:
    return rows_uri.replace(".attempt-", ".timings-")


def provenance(planned: EditPlan) -> Provenance:
    """Return what the Parquet metadata of a manifest says."""
    hashes = planned.inversion.hashes
    return Provenance(
        kind="edits",
        fingerprint=planned.fingerprint,
        step=STEP,
        version=VERSION,
        parameters={**planned.direction.variant.model_dump(), "alpha_unit": ALPHA_UNIT},
        inputs={"direction": planned.direction.fingerprint, "latents": planned.inversion.fingerprint},
        generator=hashes.generator,
        clip=hashes.clip,
        code_version=styleclip_core.__version__,
    )
