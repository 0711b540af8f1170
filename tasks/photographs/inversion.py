"""Photographs -> latents, a shard of images at a time; a broken image is a row with its error."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from styleclip.tasks.artifacts import ChangedInputError, Recipe
from styleclip.tasks.artifacts.outcomes import OK, STATUS_FIELDS, OutcomeLog, Row, failure, success
from styleclip.tasks.photographs.images import ImageShard, read_shard
from styleclip.tasks.photographs.own import Own, parse_own, with_tunings
from styleclip.tasks.photographs.reading import ShardReader
from styleclip.tasks.photographs.seen import MEMORY, likeness
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.overlap import Writes, computing, read_ahead, wrote
from styleclip.tasks.running.progress import ShardResult
from styleclip.tasks.running.rates import Spent, device_name
from styleclip.tasks.running.run import Run
from styleclip.tasks.running.shards import Files, finish_shard, without_result
from styleclip.tasks.settings import Inversion
from styleclip.tasks.storage import exists, join, output_key, read_item, write_bytes_atomic
from styleclip_core.batches import Batches
from styleclip_core.descent import in_chunks
from styleclip_core.errors import StyleCLIPError
from styleclip_core.feature_inversion import find_residuals
from styleclip_core.features import FeatureResidual
from styleclip_core.images import decode_image, encode_pixels, fit, psnr, to_uint8
from styleclip_core.inversion import PerceptualLoss, refine
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.pivotal import tune
from styleclip_core.tuned import Tuning

STEP, VERSION = "invert-images", "4"


class DivergedError(StyleCLIPError):
    """An inversion ended in numbers that are not finite."""


class InversionPlan(BaseModel):
    """What a shard needs to know beside the run: settings, where its latents lie, whether edits follow."""

    model_config = ConfigDict(frozen=True)

    photos: str
    folder: str
    recipe: Recipe
    settings: Inversion
    edited_next: bool = False

    @property
    def fingerprint(self) -> str:
        """Return the name of the latents."""
        return self.recipe.fingerprint

    def log(self, shard: ImageShard) -> OutcomeLog:
        """Return the attempts at a shard."""
        return OutcomeLog(self.folder, shard.digest, ("image_key",), shard.before)

    @property
    def reconstructions(self) -> str:
        """Return the prefix of the generator's versions of photographs."""
        return join(self.folder, "reconstructions")

    def reconstruction_key(self, row: Row) -> str:
        """Return where the generator's version of a photograph lies, relative to ``reconstructions``."""
        return output_key(row["image_key"], suffix=".png", version=row["content_hash"])

    def reconstruction_uri(self, row: Row) -> str:
        """Return where the generator's version of a photograph lies."""
        return join(self.reconstructions, self.reconstruction_key(row))

    def tuning_key(self, row: Row) -> str:
        """Return where a photograph's tuning or residual lies, relative to the folder."""
        name = output_key(row["image_key"], suffix=".safetensors", version=row["content_hash"])
        return f"tunings/{name}"


def plan(run: Run, photos: str, settings: Inversion) -> InversionPlan:
    """Return where the latents of these settings lie; nothing is computed."""
    hashes = run.hashes
    inputs = {"generator": hashes.generator, "encoder": hashes.encoder}

    # networks that only some runs have count only there, so that latents of the others keep their names
    others = {"identity": hashes.identity, "perceptual": hashes.perceptual}
    inputs |= {name: hash_ for name, hash_ in others.items() if hash_}

    parameters = {"photos": photos, **settings.parameters()}
    recipe = Recipe(STEP, VERSION, parameters, inputs, hashes.generator)
    return InversionPlan(
        photos=photos, folder=recipe.folder(run.workspace, "latents"), recipe=recipe, settings=settings
    )


@unit_of_work("invert-shard", "invert-shard-{shard.number}")
def invert_shard(run: Run, planned: InversionPlan, shard: ImageShard) -> ShardResult:
    """Invert the images of one shard that have no latent yet."""

    def schema() -> pa.Schema:
        return latents_schema(run.generator.num_ws * run.generator.config.w_dim)

    log, images = planned.log(shard), read_shard(shard)
    reader = ShardReader(planned.photos, shard)
    return finish_shard(
        log,
        without_result(images),
        partial(_invert, run, planned, log, reader),
        planned.recipe.made("latents"),
        schema,
        versions=dict(images),
        files=files_of(run, planned),
        work=partial(work, run, planned),
    )


def files_of(run: Run, planned: InversionPlan) -> list[Files]:
    """Return what the rows of latents speak of; what is drawn of a latent can be drawn again."""
    drawn = Files(planned.reconstructions, planned.reconstruction_key, restore=partial(_draw, run, planned))
    tunings = Files(planned.folder, lambda row: planned.tuning_key(row) if row.get("tuning") else None)
    return [tunings, drawn]


def work(run: Run, planned: InversionPlan, images: int, seconds: float = 0.0, size: int = 0) -> Spent:
    """Return the inverting of some images as it is measured and estimated: per image, of such settings."""
    judges = "".join(f"+{name}" for name in ("identity", "perceptual") if getattr(run.models, name))
    # a chunk that is not full takes as long as a full one
    units = -(-images // planned.settings.chunk) * planned.settings.chunk
    return Spent(
        kind="invert", about=_method(run, planned) + judges, device=device_name(run.device),
        resolution=run.generator.image_size[0], units=units, seconds=seconds, items=images,
        size=size,
    )  # fmt: skip


@dataclass(frozen=True)
class _Photo:
    key: str
    etag: str
    content_hash: str
    image: Tensor


def _invert(
    run: Run,
    planned: InversionPlan,
    log: OutcomeLog,
    reader: ShardReader,
    todo: Sequence[tuple[str, str]],
) -> list[Row]:
    """Invert photographs in batches; the next ones are read, and the last ones written, meanwhile."""
    size, count = run.generator.image_size, planned.settings.batch_size

    # a photograph may have been written anew and be the same
    keys = {key for key, _ in todo}
    older = (row for rows in log.earlier() for row in rows if row["image_key"] in keys)
    done = {(row["image_key"], row["content_hash"]): row for row in older}
    writes, batches = Writes[int](2 * count), Batches(count)
    pending: list[tuple[Row, Future[int] | None]] = []
    batch: list[_Photo] = []

    found = read_ahead(todo, partial(_read, planned, reader, size, done), ahead=2 * count)
    for number, photo in enumerate(found, start=1):
        if isinstance(photo, _Photo):
            batch.append(photo)
        else:
            pending.append((photo, None))

        # a broken last photograph must not leave a begun batch behind
        if batch and (len(batch) == count or number == len(todo)):
            for _, inverted in batches.run(batch, partial(_invert_batch, run, planned)):
                for row, image, tuning in inverted:
                    write = partial(_write_files, planned, row, image, tuning)
                    pending.append((row, writes.submit(write) if row["status"] == OK else None))
            batch = []

    # a row says ok only once its files are there
    for _, written in pending:
        if written:
            wrote(written.result())
    return [row for row, _ in pending]


def _read(
    planned: InversionPlan,
    reader: ShardReader,
    size: tuple[int, int],
    done: Mapping[tuple[str, str], Row],
    item: tuple[str, str],
) -> _Photo | Row:
    """Read and decode a photograph, or return the row of one that cannot be, or of one that is done."""
    key, etag = item
    try:
        data = reader.read(key, etag)
        content_hash = hashlib.sha256(data).hexdigest()
        if (same := done.get((key, content_hash))) and _is_whole(planned, same):
            return {**same, "etag": etag}
        image = fit(decode_image(data), *size)
    except (StyleCLIPError, OSError) as error:
        return {**_empty_row(key, etag), **failure(error)}
    return _Photo(key, etag, content_hash, image)


def _is_whole(planned: InversionPlan, row: Row) -> bool:
    """Return whether the files are there that a row of latents speaks of."""
    tuned = not row.get("tuning") or exists(join(planned.folder, planned.tuning_key(row)))
    return tuned and exists(planned.reconstruction_uri(row))


def _write_files(planned: InversionPlan, row: Row, pixels: np.ndarray, tuning: bytes) -> int:
    """Write what a row speaks of, and return its bytes."""
    if tuning:
        write_bytes_atomic(join(planned.folder, planned.tuning_key(row)), tuning)
    drawn = encode_pixels(pixels)
    write_bytes_atomic(planned.reconstruction_uri(row), drawn)
    return len(drawn) + len(tuning)


@torch.no_grad()
def _draw(run: Run, planned: InversionPlan, rows: Sequence[Row]) -> None:
    """Draw the generator's versions of photographs again, of their latents."""

    def draw(batch: list[Row]) -> np.ndarray:
        generator = run.generator
        tunings = [read_tuning(planned, generator, row) for row in batch]
        with computing(run.device):
            w_plus = latents_of(run, batch)
            tuned = with_tunings(generator, tunings, w_plus)
            return to_uint8(tuned.synthesize(tuned.styles(w_plus)))

    for batch, images in Batches(planned.settings.batch_size).run(list(rows), draw):
        for row, pixels in zip(batch, images, strict=True):
            write_bytes_atomic(planned.reconstruction_uri(row), encode_pixels(pixels))


def latents_of(run: Run, rows: Sequence[Row]) -> Tensor:
    """Return the latents that rows hold, ``[B, num_ws, w_dim]``, on the run's device."""
    flat = np.asarray([row["w_plus"] for row in rows], dtype=np.float32)
    return torch.from_numpy(flat).view(len(rows), run.generator.num_ws, -1).to(run.device)


def _invert_batch(
    run: Run, planned: InversionPlan, batch: list[_Photo]
) -> list[tuple[Row, np.ndarray, bytes]]:
    """Return row, generator's version and stored tuning of each photograph."""
    with computing(run.device):
        return list(_inverted(run, planned, batch))


def _inverted(
    run: Run, planned: InversionPlan, batch: list[_Photo]
) -> Iterator[tuple[Row, np.ndarray, bytes]]:
    generator, perceptual = run.generator, run.perceptual
    distance = perceptual.distance if perceptual else None
    target = torch.stack([photo.image for photo in batch]).to(run.device)

    # encoder or average, refined, and where that is wanted what the latent leaves out of the photograph
    start = _first_guess(run, planned, target)
    *_, end = refine(generator, target, start, planned.settings, perceptual=distance)
    tunings = _tune(planned, generator, target, end.w_plus, distance)
    tuned = with_tunings(generator, tunings, end.w_plus)

    with torch.no_grad():
        image = tuned.synthesize(tuned.styles(end.w_plus))
        quality = psnr(image, target)
        scores = {
            "mse": (image.clamp(-1, 1) - target).square().mean(dim=(1, 2, 3)),
            "psnr": quality,
            **likeness(run, image.clamp(-1, 1), target),
        }
        if planned.edited_next and not any(tunings):
            MEMORY.keep(run, end.w_plus, image)

    # the device is waited for once for each of these, not for each image
    finite = (end.w_plus.isfinite().flatten(1).all(dim=1) & quality.isfinite()).tolist()
    latents = end.w_plus.flatten(1).cpu().numpy()
    measured = {name: score.tolist() for name, score in scores.items()}

    rows = []
    contents = [tuning.to_bytes() if tuning else b"" for tuning in tunings]
    for index, photo in enumerate(batch):
        row = {**_empty_row(photo.key, photo.etag), "content_hash": photo.content_hash}

        # what is not finite is this image's own failure; its neighbours are none the worse
        if not finite[index]:
            rows.append(row | failure(DivergedError("the latent is not finite; lower the learning rate")))
            continue
        if planned.settings.own and not contents[index]:
            message = "the tuning of the generator is not finite; lower the learning rate of pivotal"
            if planned.settings.features:
                message = "the residual of the features is not finite; give features fewer steps"
            rows.append(row | failure(DivergedError(message)))
            continue

        if contents[index]:
            digest = hashlib.sha256(contents[index]).hexdigest()
            row |= {"tuning": planned.tuning_key(row), "tuning_bytes": len(contents[index])}
            row |= {"tuning_hash": digest}
        row |= {
            "w_plus": latents[index],
            "method": _method(run, planned),
            **{name: values[index] for name, values in measured.items()},
        }
        rows.append(row | success())
    return zip(rows, to_uint8(image), contents, strict=True)


@torch.no_grad()
def _first_guess(run: Run, planned: InversionPlan, target: Tensor) -> Tensor:
    if run.encoder:  # descent starts here, and would make much of how a batch is rounded
        return in_chunks(target, run.encoder.encode, size=planned.settings.chunk)

    generator = run.generator
    # cloned, as all rows of what is expanded are one
    return generator.mapping.w_avg.expand(len(target), generator.num_ws, -1).clone()


def _tune(
    planned: InversionPlan,
    generator: Generator,
    target: Tensor,
    w_plus: Tensor,
    perceptual: PerceptualLoss | None,
) -> list[Own | None]:
    """Return what makes the generator draw each photograph; None for all if that is not wanted."""
    if planned.settings.features:
        return list(find_residuals(generator, target, w_plus, planned.settings.features))
    if not planned.settings.pivotal:
        return [None] * len(target)

    *_, end = tune(generator, target, w_plus, planned.settings.pivotal, perceptual=perceptual)
    return [end.tuning(index) for index in range(len(target))]


def read_tuning(planned: InversionPlan, generator: Generator, row: Row) -> Own | None:
    """Return the tuning or the residual that a row of latents names, or None if it names none.

    Raises:
        ChangedInputError: If its file is not the one that was stored with the latent.
        CheckpointError: If its file is damaged; the message names it.
        LayoutMismatchError: If it is of another generator.
        StorageError: If its file is missing or cannot be read.
    """
    if not row.get("tuning"):
        return None

    # not what the row says: whoever wrote it might have it lead anywhere
    key = planned.tuning_key(row)
    uri = join(planned.folder, key)
    content = read_item(planned.folder, key)
    if hashlib.sha256(content).hexdigest() != row["tuning_hash"]:
        what = "residual" if planned.settings.features else "tuning"
        raise ChangedInputError(
            f"{uri} is not the {what} that was stored with its latent; put that back, or delete this one, "
            "and edit again"
        )
    return parse_own(content, generator, uri, FeatureResidual if planned.settings.features else Tuning)


def _method(run: Run, planned: InversionPlan) -> str:
    settings = planned.settings
    parts = ["encoder" if run.models.encoder else "average"]
    parts += [str(settings.steps)] if settings.steps else []
    parts += [f"pivotal-{settings.pivotal.steps}"] if settings.pivotal else []
    parts += [f"features-{settings.features.steps}"] if settings.features else []
    return "+".join(parts)


def _empty_row(key: str, etag: str) -> Row:
    columns = (
        "content_hash", "w_plus", "mse", "psnr", "lpips", "identity", "method", "tuning", "tuning_bytes",
        "tuning_hash",
    )  # fmt: skip
    return {"image_key": key, "etag": etag} | dict.fromkeys(columns)


def latents_schema(width: int, *, tunings: bool = True) -> pa.Schema:
    """Return the columns of latents: a row per image; those of tunings are left out where there are none."""
    named = [("tuning", pa.string()), ("tuning_bytes", pa.int64()), ("tuning_hash", pa.string())]
    return pa.schema([
        ("image_key", pa.string()), ("etag", pa.string()), ("content_hash", pa.string()),
        ("w_plus", pa.list_(pa.float32(), width)), ("mse", pa.float32()), ("psnr", pa.float32()),
        ("lpips", pa.float32()), ("identity", pa.float32()), ("method", pa.string()),
        *(named if tunings else []), *STATUS_FIELDS,
    ])  # fmt: skip
