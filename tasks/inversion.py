"""Photographs -> latents, a shard of images at a time; a broken image is a row with its error."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import torch
from prefect import task
from pydantic import BaseModel, ConfigDict
from torch import Tensor

import styleclip_core
from styleclip_core.batches import Batches
from styleclip_core.descent import in_chunks
from styleclip_core.errors import CheckpointError, LayoutMismatchError, StyleCLIPError
from styleclip_core.images import decode_image, encode_png, fit, psnr
from styleclip_core.inversion import PerceptualLoss, refine
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.pivotal import tune
from styleclip_core.tuned import AnyGenerator, TunedGenerator, Tuning
from tasks import models
from tasks.artifacts import Provenance, artifact_uri, fingerprint
from tasks.caching import PER_RUN
from tasks.identity import ModelHashes
from tasks.images import ImageShard, read_shard
from tasks.outcomes import OK, STATUS_FIELDS, OutcomeLog, Row, failure, success
from tasks.overlap import Writes, computing, read_ahead
from tasks.progress import ShardResult
from tasks.settings import Inversion, Models
from tasks.storage import is_outage, join, output_key, read_bytes, write_bytes_atomic

STEP, VERSION = "invert-images", "2"


class DivergedError(StyleCLIPError):
    """An inversion ended in numbers that are not finite."""


class InversionPlan(BaseModel):
    """Everything a shard needs to know, and where its latents will lie."""

    model_config = ConfigDict(frozen=True)

    photos: str
    folder: str
    fingerprint: str
    models: Models
    hashes: ModelHashes
    settings: Inversion

    def log(self, shard: ImageShard) -> OutcomeLog:
        """Return the attempts at a shard."""
        return OutcomeLog(self.folder, shard.digest, ("image_key",))

    def reconstruction_uri(self, image_key: str) -> str:
        """Return where the generator's version of a photograph lies."""
        return join(self.folder, "reconstructions", output_key(image_key, suffix=".png"))

    def tuning_key(self, image_key: str) -> str:
        """Return where the tuning of a photograph's generator lies, relative to the folder."""
        return f"tunings/{output_key(image_key, suffix='.safetensors')}"


def plan(
    photos: str, workspace: str, chosen: Models, hashes: ModelHashes, settings: Inversion
) -> InversionPlan:
    """Return where the latents of these settings lie; nothing is computed."""
    parameters = {"photos": photos, **settings.parameters()}
    print_ = fingerprint(STEP, VERSION, parameters, _inputs(hashes))
    return InversionPlan(
        photos=photos,
        folder=artifact_uri(workspace, "latents", print_),
        fingerprint=print_,
        models=chosen,
        hashes=hashes,
        settings=settings,
    )


def _inputs(hashes: ModelHashes) -> dict[str, str]:
    """Return the networks behind latents; those that only some runs have count only there."""
    others = {"identity": hashes.identity, "perceptual": hashes.perceptual}
    return {"generator": hashes.generator, "encoder": hashes.encoder} | {k: v for k, v in others.items() if v}


@task(
    name="invert-shard",
    task_run_name="invert-shard-{shard.number}",
    cache_policy=PER_RUN,
    persist_result=True,
)
def invert_shard(planned: InversionPlan, shard: ImageShard, device: str) -> ShardResult:
    """Invert the images of one shard that have no latent yet."""
    started = time.monotonic()
    log = planned.log(shard)
    known = {row["image_key"]: row for row in log.latest()}
    todo = [item for item in read_shard(shard) if known.get(item[0], {}).get("status") != OK]
    if todo:
        rows = _invert(planned, todo, device)
        generator = models.generator(planned.models.generator, device)
        width = generator.num_ws * generator.config.w_dim
        log.append(rows, latents_schema(width), provenance(planned))
        known |= {row["image_key"]: row for row in rows}
    failed = sum(row["status"] != OK for row in known.values())
    return ShardResult(
        uri=log.uri(0), rows=shard.rows, failed=failed, reused=not todo, seconds=time.monotonic() - started
    )


@dataclass(frozen=True)
class _Photo:
    key: str
    etag: str
    content_hash: str
    image: Tensor


def _invert(planned: InversionPlan, todo: list[tuple[str, str]], device: str) -> list[Row]:
    """Invert photographs in batches; the next ones are read, and the last ones written, meanwhile."""
    size, count = models.generator(planned.models.generator, device).image_size, planned.settings.batch_size
    writes, batches = Writes[None](2 * count), Batches(count)
    pending: list[tuple[Row, Future[None] | None]] = []
    batch: list[_Photo] = []
    found = read_ahead(todo, partial(_read, planned, size), ahead=2 * count)
    for number, photo in enumerate(found, start=1):
        if isinstance(photo, _Photo):
            batch.append(photo)
        else:
            pending.append((photo, None))
        if batch and (len(batch) == count or number == len(todo)):
            for _, inverted in batches.run(batch, partial(_invert_batch, planned, device=device)):
                for row, image, tuning in inverted:
                    write = partial(_write_files, planned, row["image_key"], image, tuning)
                    pending.append((row, writes.submit(write) if row["status"] == OK else None))
            batch = []
    for _, written in pending:
        if written:
            written.result()
    return [row for row, _ in pending]


def _read(planned: InversionPlan, size: tuple[int, int], item: tuple[str, str]) -> _Photo | Row:
    """Read and decode a photograph, or return the row of one that cannot be."""
    key, etag = item
    try:
        data = read_bytes(join(planned.photos, key))
        image = fit(decode_image(data), *size)
    except (StyleCLIPError, OSError) as error:
        if is_outage(error, planned.photos):
            raise
        return {**_empty_row(key, etag), **failure(error)}
    return _Photo(key, etag, hashlib.sha256(data).hexdigest(), image)


def _write_files(planned: InversionPlan, image_key: str, image: Tensor, tuning: bytes) -> None:
    if tuning:
        write_bytes_atomic(join(planned.folder, planned.tuning_key(image_key)), tuning)
    write_bytes_atomic(planned.reconstruction_uri(image_key), encode_png(image))


def _invert_batch(
    planned: InversionPlan, batch: list[_Photo], device: str
) -> list[tuple[Row, Tensor, bytes]]:
    """Return row, generator's version and stored tuning of each photograph."""
    with computing(device):
        return list(_inverted(planned, batch, device))


def _inverted(
    planned: InversionPlan, batch: list[_Photo], device: str
) -> Iterator[tuple[Row, Tensor, bytes]]:
    generator = models.generator(planned.models.generator, device)
    target = torch.stack([photo.image for photo in batch]).to(device)
    start = _first_guess(planned, generator, target, device)
    chosen = planned.models
    perceptual = models.perceptual(chosen.perceptual, device).distance if chosen.perceptual else None
    *_, end = refine(generator, target, start, planned.settings.settings(), perceptual=perceptual)
    tunings = _tune(planned, generator, target, end.w_plus, perceptual)
    tuned = with_tunings(generator, tunings)
    with torch.no_grad():
        image = tuned.synthesize(tuned.styles(end.w_plus))
        quality = psnr(image, target)
        scores = {
            "mse": (image.clamp(-1, 1) - target).square().mean(dim=(1, 2, 3)),
            "psnr": quality,
            **_likeness(chosen, image.clamp(-1, 1), target, device),
        }
    rows = []
    contents = [tuning.to_bytes() if tuning else b"" for tuning in tunings]
    for index, photo in enumerate(batch):
        row = {**_empty_row(photo.key, photo.etag), "content_hash": photo.content_hash}
        if not (end.w_plus[index].isfinite().all() and quality[index].isfinite()):
            rows.append(row | failure(DivergedError("the latent is not finite; lower the learning rate")))
            continue
        if planned.settings.pivotal and not contents[index]:
            message = "the tuning of the generator is not finite; lower the learning rate of pivotal"
            rows.append(row | failure(DivergedError(message)))
            continue
        if contents[index]:
            row |= {"tuning": planned.tuning_key(photo.key), "tuning_bytes": len(contents[index])}
        row |= {
            "w_plus": end.w_plus[index].flatten().cpu().numpy(),
            "method": _method(planned),
            **{name: score[index].item() for name, score in scores.items()},
        }
        rows.append(row | success())
    return zip(rows, image.cpu(), contents, strict=True)


def _likeness(chosen: Models, image: Tensor, target: Tensor, device: str) -> dict[str, Tensor]:
    """Return LPIPS and identity similarity of inversions, ``[B]`` each, where there are networks for them."""
    scores = {}
    if chosen.perceptual:
        scores["lpips"] = models.perceptual(chosen.perceptual, device).distance(image, target)
    if chosen.identity:
        network = models.identity(chosen.identity, device)
        scores["identity"] = (network.embed(image) * network.embed(target)).sum(dim=1)
    return scores


@torch.no_grad()
def _first_guess(planned: InversionPlan, generator: Generator, target: Tensor, device: str) -> Tensor:
    if planned.models.encoder:
        # descent starts here, and would make much of how a batch is rounded
        encode, size = (
            models.encoder(planned.models.encoder, device).encode,
            planned.settings.settings().chunk,
        )
        return in_chunks(target, encode, size=size)
    return generator.mapping.w_avg.expand(len(target), generator.num_ws, -1).clone()


def _tune(
    planned: InversionPlan,
    generator: Generator,
    target: Tensor,
    w_plus: Tensor,
    perceptual: PerceptualLoss | None,
) -> list[Tuning | None]:
    """Return what makes the generator draw each photograph; None for all if that is not wanted."""
    if not planned.settings.pivotal:
        return [None] * len(target)
    settings = planned.settings.pivotal.settings()
    *_, end = tune(generator, target, w_plus, settings, perceptual=perceptual)
    return [end.tuning(index) for index in range(len(target))]


def with_tunings(generator: Generator, tunings: list[Tuning | None]) -> AnyGenerator:
    """Return the generator that draws image b with tuning b, or the plain one if there are none."""
    return TunedGenerator(generator, tunings) if any(tunings) else generator


def read_tuning(planned: InversionPlan, generator: Generator, row: Row) -> Tuning | None:
    """Return the tuning that a row of latents names, or None if it names none.

    Raises:
        CheckpointError: If its file is damaged; the message names it.
        LayoutMismatchError: If it is of another generator.
        StorageError: If its file is missing or cannot be read.
    """
    if not row.get("tuning"):
        return None
    uri = join(planned.folder, planned.tuning_key(row["image_key"]))
    content = read_bytes(uri)
    try:
        return Tuning.from_bytes(content, generator)
    except (CheckpointError, LayoutMismatchError) as error:
        raise type(error)(f"{uri}: {error}") from error


def _method(planned: InversionPlan) -> str:
    steps, pivotal = planned.settings.steps, planned.settings.pivotal
    parts = ["encoder" if planned.models.encoder else "average"]
    parts += [str(steps)] if steps else []
    return "+".join([*parts, f"pivotal-{pivotal.steps}"] if pivotal else parts)


def _empty_row(key: str, etag: str) -> Row:
    return {"image_key": key, "etag": etag} | dict.fromkeys(
        ("content_hash", "w_plus", "mse", "psnr", "lpips", "identity", "method", "tuning", "tuning_bytes")
    )


def latents_schema(width: int, *, tunings: bool = True) -> pa.Schema:
    """Return the columns of latents: a row per image; those of tunings are left out where there are none."""
    named = [("tuning", pa.string()), ("tuning_bytes", pa.int64())] if tunings else []
    return pa.schema([
        ("image_key", pa.string()), ("etag", pa.string()), ("content_hash", pa.string()),
        ("w_plus", pa.list_(pa.float32(), width)), ("mse", pa.float32()), ("psnr", pa.float32()),
        ("lpips", pa.float32()), ("identity", pa.float32()), ("method", pa.string()), *named, *STATUS_FIELDS,
    ])  # fmt: skip


def provenance(planned: InversionPlan) -> Provenance:
    """Return what the Parquet metadata of latents says."""
    return Provenance(
        kind="latents",
        fingerprint=planned.fingerprint,
        step=STEP,
        version=VERSION,
        parameters={"photos": planned.photos, **planned.settings.parameters()},
        inputs=_inputs(planned.hashes),
        generator=planned.hashes.generator,
        clip="",
        code_version=styleclip_core.__version__,
    )
