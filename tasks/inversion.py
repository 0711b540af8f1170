"""Photographs -> latents, a shard of images at a time; a broken image is a row with its error."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass

import pyarrow as pa
import torch
from prefect import task
from pydantic import BaseModel, ConfigDict
from torch import Tensor

import styleclip_core
from styleclip_core.errors import StyleCLIPError
from styleclip_core.images import decode_image, encode_png, fit, psnr
from styleclip_core.inversion import refine
from styleclip_core.models.stylegan2 import Generator
from tasks import models
from tasks.artifacts import Provenance, artifact_uri, fingerprint
from tasks.caching import PER_RUN
from tasks.identity import ModelHashes
from tasks.images import ImageShard, read_shard
from tasks.outcomes import OK, STATUS_FIELDS, OutcomeLog, Row, failure, success
from tasks.progress import ShardResult
from tasks.settings import Inversion, Models
from tasks.storage import join, output_key, read_bytes, write_bytes_atomic

STEP, VERSION = "invert-images", "1"


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


def plan(
    photos: str, workspace: str, chosen: Models, hashes: ModelHashes, settings: Inversion
) -> InversionPlan:
    """Return where the latents of these settings lie; nothing is computed."""
    parameters = {"photos": photos, **settings.model_dump(exclude={"batch_size"})}
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
    generator = models.generator(planned.models.generator, device)
    rows: list[Row] = []
    batch: list[_Photo] = []
    for key, etag in todo:
        try:
            batch.append(_read(planned, key, etag, generator.image_size))
        except (StyleCLIPError, OSError) as error:
            rows.append({**_empty_row(key, etag), **failure(error)})
        if len(batch) == planned.settings.batch_size:
            rows += _invert_batch(planned, generator, batch, device)
            batch = []
    return rows + (_invert_batch(planned, generator, batch, device) if batch else [])


def _read(planned: InversionPlan, key: str, etag: str, size: tuple[int, int]) -> _Photo:
    data = read_bytes(join(planned.photos, key))
    image = fit(decode_image(data), *size)
    return _Photo(key, etag, hashlib.sha256(data).hexdigest(), image)


def _invert_batch(
    planned: InversionPlan, generator: Generator, batch: list[_Photo], device: str
) -> list[Row]:
    target = torch.stack([photo.image for photo in batch]).to(device)
    start = _first_guess(planned, generator, target, device)
    chosen = planned.models
    perceptual = models.perceptual(chosen.perceptual, device).distance if chosen.perceptual else None
    *_, end = refine(generator, target, start, planned.settings.settings(), perceptual=perceptual)
    with torch.no_grad():
        image = generator.synthesize(generator.styles(end.w_plus))
        quality = psnr(image, target)
        scores = {
            "mse": (image.clamp(-1, 1) - target).square().mean(dim=(1, 2, 3)),
            "psnr": quality,
            **_likeness(chosen, image.clamp(-1, 1), target, device),
        }
    rows = []
    for index, photo in enumerate(batch):
        row = {**_empty_row(photo.key, photo.etag), "content_hash": photo.content_hash}
        if not (end.w_plus[index].isfinite().all() and quality[index].isfinite()):
            rows.append(row | failure(DivergedError("the latent is not finite; lower the learning rate")))
            continue
        write_bytes_atomic(planned.reconstruction_uri(photo.key), encode_png(image[index].cpu()))
        row |= {
            "w_plus": end.w_plus[index].flatten().cpu().numpy(),
            "method": _method(planned),
            **{name: score[index].item() for name, score in scores.items()},
        }
        rows.append(row | success())
    return rows


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
        return models.encoder(planned.models.encoder, device).encode(target)
    return generator.mapping.w_avg.expand(len(target), generator.num_ws, -1).clone()


def _method(planned: InversionPlan) -> str:
    first = "encoder" if planned.models.encoder else "average"
    return f"{first}+{planned.settings.steps}" if planned.settings.steps else first


def _empty_row(key: str, etag: str) -> Row:
    return {"image_key": key, "etag": etag} | dict.fromkeys(
        ("content_hash", "w_plus", "mse", "psnr", "lpips", "identity", "method")
    )


def latents_schema(width: int) -> pa.Schema:
    """Return the columns of latents: a row per image."""
    return pa.schema([
        ("image_key", pa.string()), ("etag", pa.string()), ("content_hash", pa.string()),
        ("w_plus", pa.list_(pa.float32(), width)), ("mse", pa.float32()), ("psnr", pa.float32()),
        ("lpips", pa.float32()), ("identity", pa.float32()), ("method", pa.string()), *STATUS_FIELDS,
    ])  # fmt: skip


def provenance(planned: InversionPlan) -> Provenance:
    """Return what the Parquet metadata of latents says."""
    return Provenance(
        kind="latents",
        fingerprint=planned.fingerprint,
        step=STEP,
        version=VERSION,
        parameters={"photos": planned.photos, **planned.settings.model_dump(exclude={"batch_size"})},
        inputs=_inputs(planned.hashes),
        generator=planned.hashes.generator,
        clip="",
        code_version=styleclip_core.__version__,
    )
