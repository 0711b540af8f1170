"""Latents + edits of any method -> edited images and their manifest, a shard of images at a time."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from prefect import task
from pydantic import BaseModel, ConfigDict
from torch import Tensor

import styleclip_core
from styleclip_core.errors import StyleCLIPError
from styleclip_core.images import encode_png
from styleclip_core.mapper_training import apply_mapper
from styleclip_core.metrics import clip_similarity, directional_similarity
from styleclip_core.style_space import StyleCode
from tasks import models
from tasks.artifacts import Provenance, artifact_uri, fingerprint, write_table
from tasks.caching import PER_RUN
from tasks.directions import ALPHA_UNIT, PreparedEdit, read_direction, target_embedding, text_vector
from tasks.images import ImageShard
from tasks.inversion import InversionPlan
from tasks.mappers import STRENGTH_UNIT
from tasks.optimization import TRAJECTORY_SCHEMA, Optimized, latents_table, optimize_batch
from tasks.outcomes import OK, SKIPPED, STATUS_FIELDS, OutcomeLog, Row, failure, success
from tasks.progress import ShardResult
from tasks.settings import EditVariant
from tasks.storage import StorageError, join, output_key, write_bytes_atomic

STEP, VERSION = "edit-images", "2"
_BATCH = 32

MANIFEST_FIELDS = [
    ("image_key", pa.string()), ("edit", pa.string()), ("method", pa.string()),
    ("neutral", pa.string()), ("target", pa.string()), ("alpha", pa.float64()), ("beta", pa.float64()),
    ("top_k", pa.int32()), ("channels", pa.int32()), ("layers", pa.string()), ("output_key", pa.string()),
    ("clip_before", pa.float32()), ("clip_after", pa.float32()), ("directional", pa.float32()),
    ("identity", pa.float32()), ("strength", pa.float64()), ("settings", pa.string()),
    ("latents", pa.string()), *STATUS_FIELDS,
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
    prepared: PreparedEdit
    inversion: InversionPlan

    @property
    def images(self) -> str:
        """Return the folder of the edited images, relative to ``out``."""
        return f"images/{self.prepared.variant.label}_{self.fingerprint[:8]}"

    def log(self, shard: ImageShard) -> OutcomeLog:
        """Return the attempts at a shard."""
        return OutcomeLog(self.folder, shard.digest, ("image_key",))

    def output_key(self, image_key: str) -> str:
        """Return where an edited image lies, relative to ``out``."""
        return f"{self.images}/{output_key(image_key, suffix='.png')}"


def plan(out: str, workspace: str, prepared: PreparedEdit, inversion: InversionPlan) -> EditPlan:
    """Return where the rows and images of an edit lie; nothing is computed."""
    parameters = {**prepared.variant.parameters(), "out": out}
    inputs = {"direction": prepared.fingerprint, "latents": inversion.fingerprint}
    if inversion.hashes.identity:
        inputs["identity"] = inversion.hashes.identity
    print_ = fingerprint(STEP, VERSION, parameters, inputs)
    return EditPlan(
        out=out,
        folder=artifact_uri(workspace, "edits", print_),
        fingerprint=print_,
        prepared=prepared,
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
        optimized: list[Optimized] = []
        for first in range(0, len(ready), _BATCH):
            edited = _edit_batch(planned, latent_batches, ready[first : first + _BATCH], device)
            rows += edited.rows
            timings += edited.timings
            optimized += [edited.optimized] if edited.optimized else []
        if optimized:
            _write_optimized(planned, shard, [row["image_key"] for row in ready], optimized, rows)
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
    w_plus: Tensor
    codes: StyleCode
    embedding: Tensor
    identity: Tensor | None


class _LatentBatches:
    """Style codes and embeddings of unedited batches, kept for the next edit of the same shard."""

    def __init__(self, planned: EditPlan, device: str) -> None:
        chosen = planned.inversion.models
        self.generator = models.generator(chosen.generator, device)
        self.clip = models.clip(chosen.clip, device)
        self.identity = models.identity(chosen.identity, device) if chosen.identity else None
        self.device = device
        self._kept: dict[tuple[str, ...], _Source] = {}

    def get(self, rows: list[Row]) -> _Source:
        """Return the source of a batch of latents."""
        keys = tuple(row["image_key"] for row in rows)
        if keys not in self._kept:
            flat = np.asarray([row["w_plus"] for row in rows], dtype=np.float32)
            w_plus = torch.from_numpy(flat).view(len(rows), self.generator.num_ws, -1).to(self.device)
            codes = self.generator.styles(w_plus)
            image = self.generator.synthesize(codes)
            known = self.identity.embed(image) if self.identity else None
            self._kept[keys] = _Source(w_plus, codes, self.clip.embed_whole(image), known)
        return self._kept[keys]


@dataclass(frozen=True)
class _Edited:
    rows: list[Row]
    timings: list[Row]
    optimized: Optimized | None


@torch.no_grad()
def _edit_batch(planned: EditPlan, sources: _LatentBatches, rows: list[Row], device: str) -> _Edited:
    started = time.monotonic()
    variant = planned.prepared.variant
    source, optimized = sources.get(rows), None
    chosen = planned.inversion.models
    if variant.method == "optimization":
        keys = [row["image_key"] for row in rows]
        optimized = optimize_batch(variant, chosen, source.w_plus, keys, device)
        codes = optimized.codes
    elif variant.method == "mapper":
        network = models.mapper(planned.prepared.uri, device)
        codes = apply_mapper(network, sources.generator, source.w_plus, variant.strength or 0.0)
    else:
        delta = read_direction(planned.prepared.uri)[0].to(device)
        codes = source.codes.add((variant.alpha or 0.0) * delta)
    image = sources.generator.synthesize(codes)
    after = sources.clip.embed_whole(image)
    target = target_embedding(chosen.clip, variant.target, variant.templates, device)
    scores = {
        "clip_before": clip_similarity(source.embedding, target),
        "clip_after": clip_similarity(after, target),
        "directional": directional_similarity(
            source.embedding, after, text_vector(variant, chosen.clip, device)
        ),
    }
    if sources.identity and source.identity is not None:
        scores["identity"] = (sources.identity.embed(image) * source.identity).sum(dim=1)
    errors = optimized.errors if optimized else {}
    done = []
    for index, row in enumerate(rows):
        outcome = _row(planned, row["image_key"])
        if index in errors:
            done.append(outcome | failure(errors[index]))
            continue
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
    return _Edited(done, timings, optimized)


def _row(planned: EditPlan, image_key: str) -> Row:
    variant = planned.prepared.variant
    return dict.fromkeys(MANIFEST_SCHEMA.names) | {
        "image_key": image_key,
        "edit": variant.name,
        "method": variant.method,
        "neutral": variant.neutral,
        "target": variant.target,
        "alpha": variant.alpha,
        "beta": variant.beta,
        "top_k": variant.top_k,
        "channels": planned.prepared.channels,
        "layers": " ".join(planned.prepared.layers) or None,
        "strength": variant.strength,
        "settings": json.dumps(_settings(variant), sort_keys=True),
    }


def _settings(variant: EditVariant) -> dict[str, Any]:
    """Return the settings of an edit with the unit of its strength."""
    apart = ("name", "neutral", "target", "method")
    settings = {name: value for name, value in variant.parameters().items() if name not in apart}
    return settings | _units(variant) | ({"mapper": variant.mapper} if variant.mapper else {})


def _write_optimized(
    planned: EditPlan, shard: ImageShard, keys: list[str], parts: list[Optimized], rows: list[Row]
) -> None:
    """Write latents and trajectories of a shard's optimizations, and name the file in the rows."""
    latents = latents_table(keys, torch.cat([part.latents for part in parts]), planned.prepared)
    trajectory = sorted(
        (row for part in parts for row in part.trajectory), key=lambda row: (row["image_key"], row["step"])
    )
    digest = hashlib.sha256(repr(trajectory).encode()).hexdigest()[:8]  # a killed run may leave others
    names = {kind: f"{shard.digest}.{kind}-{digest}.parquet" for kind in ("latents", "trajectory")}
    tables = {"latents": latents, "trajectory": pa.Table.from_pylist(trajectory, schema=TRAJECTORY_SCHEMA)}
    for kind, table in tables.items():
        write_table(join(planned.folder, names[kind]), table, provenance(planned))
    for row in rows:
        if row["status"] == OK:
            row["latents"] = f"edits/{planned.fingerprint}/{names['latents']}"


def _skipped_row(planned: EditPlan, latent: Row) -> Row:
    error = NotInvertedError(f"{latent['error_type']}: {latent['error']}")
    return (
        _row(planned, latent["image_key"])
        | failure(error, status=SKIPPED)
        | {"error_type": latent["error_type"]}
    )


def _units(variant: EditVariant) -> dict[str, str]:
    if variant.method == "global":
        return {"alpha_unit": ALPHA_UNIT}
    return {"strength_unit": STRENGTH_UNIT} if variant.method == "mapper" else {}


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
        parameters={**planned.prepared.variant.parameters(), **_units(planned.prepared.variant)},
        inputs={"direction": planned.prepared.fingerprint, "latents": planned.inversion.fingerprint},
        generator=hashes.generator,
        clip=hashes.clip,
        code_version=styleclip_core.__version__,
    )
