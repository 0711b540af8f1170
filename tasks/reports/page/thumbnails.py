"""Thumbnails of a batch, made in chunks of images and kept: a later page makes only what is new or failed.

manifest -> chunks of keys -> thumbnails of photographs, inversions and every edit

Chunks are cut by content, as the shards of an index are, so an image that is added costs its own chunk.
The thumbnails of one folder of images lie in a log of outcomes per chunk: an image that cannot be read is a
row with its error, which the next run tries again.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict

from styleclip.tasks.artifacts import Provenance, Recipe, artifact_uri, is_complete, read_table, write_table
from styleclip.tasks.artifacts.outcomes import OK, STATUS_FIELDS, Row, failure, success
from styleclip.tasks.photographs.images import cut, digest, indexed_versions
from styleclip.tasks.reports.page.batch import Batch, read_batch
from styleclip.tasks.reports.page.columns import SIDE, STEP, VERSION, Column, Shown, column_of
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.overlap import read_ahead
from styleclip.tasks.running.progress import ShardResult
from styleclip.tasks.running.rates import Spent
from styleclip.tasks.running.run import Run
from styleclip.tasks.storage import ObjectInfo, StoreError, join
from styleclip_core.errors import StyleCLIPError

_CHUNK, _AHEAD, _QUALITY = 256, 16, 80
_SCHEMA = pa.schema([
    ("image_key", pa.string()), ("source", pa.string()), ("webp", pa.binary()), *STATUS_FIELDS,
])  # fmt: skip


class PageChunk(BaseModel):
    """Some images of a batch, in the order of their keys."""

    model_config = ConfigDict(frozen=True)

    number: int
    digest: str
    uri: str
    rows: int


class PageSource(BaseModel):
    """What the page of a batch is made of.

    Attributes:
        manifest: URI of the batch's manifest.
        fingerprint: That of the manifest.
        photographs: The unedited images as they are.
        inversions: The generator's version of them, if it is known where they lie.
        edits: Their edited versions; nothing for an edit that made no image.
    """

    model_config = ConfigDict(frozen=True)

    manifest: str
    fingerprint: str
    photographs: Column
    inversions: Column | None
    edits: list[Column | None]

    @property
    def columns(self) -> list[Column | None]:
        """Return all folders of images, in the order of the page."""
        return [self.photographs, self.inversions, *self.edits]


class PagePlan(BaseModel):
    """The chunks that the thumbnails of a batch are made in."""

    model_config = ConfigDict(frozen=True)

    source: PageSource
    chunks: list[PageChunk]


class ThumbnailResult(ShardResult):
    """What a chunk of thumbnails has come to.

    Attributes:
        size: Bytes of its thumbnails.
    """

    size: int = 0


@unit_of_work("plan-page")
def plan_page(run: Run, manifest: str) -> PagePlan:
    """Cut the images of a batch into chunks, and say where its thumbnails lie.

    Raises:
        DamagedArtifactError: If ``manifest`` is not that of a batch.
    """
    batch, workspace = read_batch(manifest), run.workspace
    photos, latents = batch.made.parameters["photos"], batch.made.parameters.get("latents", "")
    versions = _versions(batch.made, workspace)
    source = PageSource(
        manifest=manifest,
        fingerprint=batch.made.fingerprint,
        photographs=column_of(photos, workspace, "photograph", versioned=bool(versions), fills=True),
        inversions=column_of(join(latents, "reconstructions"), workspace) if latents else None,
        edits=[
            column_of(join(batch.out, folder), workspace, column=column) if folder else None
            for folder, column in zip(batch.folders, batch.columns, strict=True)
        ],
    )

    return PagePlan(source=source, chunks=_write_chunks(batch, workspace, versions))


def _write_chunks(batch: Batch, workspace: str, versions: Mapping[str, tuple[str, str]]) -> list[PageChunk]:
    """Write down which images a chunk has, the version of each, and the edits that are done."""
    inputs = {"manifest": batch.made.fingerprint}
    recipe = Recipe("page-chunks", VERSION, {"indexed": bool(versions)}, inputs)
    folder, chunks, first = recipe.folder(workspace, "pages"), list[PageChunk](), 0

    # cut by keys alone, so that a photograph that is replaced stays in its chunk
    for number, part in enumerate(cut((ObjectInfo(key, "", 0) for key in batch.keys), _CHUNK)):
        keys = [item.key for item in part]
        done = batch.status[:, first : first + len(keys)] == 0
        uri = join(folder, f"chunk-{number:05d}.parquet")

        # without an index, thumbnails of photographs are those of this manifest alone
        table = pa.table({
            "image_key": keys, "name": batch.names[first : first + len(keys)],
            "source": [versions.get(key, (recipe.fingerprint, ""))[0] for key in keys],
            "done": [row.tobytes() for row in np.ascontiguousarray(done.T)],
        })  # fmt: skip
        if any(places := [versions.get(key, ("", ""))[1] for key in keys]):
            table = table.append_column("place", pa.array(places, pa.string()))
        outputs = [_outputs(batch, first + place) for place in range(len(keys))]
        if any(any(names) for names in outputs):
            table = table.append_column("outputs", pa.array(outputs, pa.list_(pa.string())))
        write_table(uri, table, _made("page-chunk", recipe))
        chunks.append(PageChunk(number=number, digest=digest(part), uri=uri, rows=len(keys)))
        first += len(keys)
    return chunks


def _outputs(batch: Batch, image: int) -> list[str]:
    """Return the names of an image below the folders of the edits; empty where it is the inversion's."""
    names = [batch.outputs.name(edit, image) for edit in range(len(batch.edits))]
    return ["" if name == batch.names[image] else name for name in names]


def _versions(made: Provenance, workspace: str) -> dict[str, tuple[str, str]]:
    """Return version and place of every photograph as it was indexed, if the index is still there."""
    uri = join(artifact_uri(workspace, "index", made.inputs.get("index", "none")), "index.parquet")
    if not is_complete(uri):
        return {}
    return {key: (version, place) for key, version, place in indexed_versions(uri)}


def _made(kind: str, recipe: Recipe) -> Provenance:
    return replace(recipe.made(kind, {}), step=STEP, parameters={"side": SIDE})


@unit_of_work("thumbnail-chunk", "thumbnails-{chunk.number}")
def thumbnail_chunk(source: PageSource, chunk: PageChunk) -> ThumbnailResult:
    """Make the thumbnails of one chunk that are not there yet."""
    started = time.monotonic()
    rows = read_table(chunk.uri).to_pylist()
    listed = [
        (Shown(row["image_key"], row["name"], row["source"], row.get("place", "")), row["done"])
        for row in rows
    ]
    outputs = [row.get("outputs") or [] for row in rows]

    def of_edit(edit: int) -> list[Shown]:
        """Return the images of an edit, under the names that they have there."""
        return [
            image._replace(name=names[edit]) if names and names[edit] else image
            for (image, edits), names in zip(listed, outputs, strict=True)
            if edits[edit]
        ]

    shown = [image for image, edits in listed if any(edits)]
    shape = _shape_of(source, shown, of_edit)

    made, kept = 0, list[Row]()
    for number, column in enumerate(source.columns):
        if column is None:
            continue

        # photographs and inversions come before the edits, under negative numbers
        edit = number - len(source.columns) + len(source.edits)
        wanted = shown if edit < 0 else of_edit(edit)
        if column.by_image:
            wanted = [each._replace(source=f"{each.source} {each.name}") for each in wanted]

        log = column.log(chunk.digest)
        known = {row["image_key"]: row for row in log.latest()}
        todo = [image for image in wanted if not _is_done(known.get(image.key), image.source)]
        make = partial(_thumbnail, column.reader(todo), shape if column.fills else None)
        new = list(read_ahead(todo, make, ahead=_AHEAD))
        # one of another version takes the place of the one that is there
        replaced = {log.item(row) for row in new if row["image_key"] in known}
        log.append(new, _SCHEMA, _made("thumbnails", column.recipe), lost=replaced)
        known |= {row["image_key"]: row for row in new}

        # pixels are let go of here: a chunk has hundreds of images of dozens of edits
        made += sum(row["status"] == OK for row in new)
        kept += [_measured(known[image.key]) for image in wanted]

    return ThumbnailResult(
        uri=chunk.uri, rows=len(kept), failed=sum(row["status"] != OK for row in kept), reused=not made,
        size=sum(row["size"] for row in kept), seconds=time.monotonic() - started,
        spent=(work(made, time.monotonic() - started),),
    )  # fmt: skip


def work(pictures: int, seconds: float = 0.0) -> Spent:
    """Return the making of thumbnails as it is measured and estimated: per picture."""
    return Spent(kind="thumbnails", units=pictures, seconds=seconds)


def chunk_count(images: int) -> int:
    """Return about how many chunks the thumbnails of so many images are made in."""
    return -(-images // _CHUNK)


def _is_done(row: Row | None, version: str) -> bool:
    return row is not None and row["status"] == OK and row["source"] == version


def _measured(row: Row) -> Row:
    """Return what is counted about a thumbnail, without its pixels."""
    return {"status": row["status"], "size": len(row["webp"] or b"")}


def _shape_of(
    source: PageSource, shown: list[Shown], of_edit: Callable[[int], list[Shown]]
) -> tuple[int, int] | None:
    """Return width and height of the generator's images, by the first that can be read."""
    generated = source.inversions
    if generated is None:
        edit = next((number for number, column in enumerate(source.edits) if column), None)
        if edit is None:
            return None
        generated, shown = source.edits[edit], of_edit(edit)
    assert generated is not None

    for image in shown:
        # a picture that cannot be read is the error of its row; the next one has the same shape
        try:
            return generated.reader([image])(image).size
        except StoreError:
            raise
        except StyleCLIPError:
            continue
    return None


def _thumbnail(read: Callable[[Shown], Image.Image], shape: tuple[int, int] | None, shown: Shown) -> Row:
    row: Row = {"image_key": shown.key, "source": shown.source, "webp": None}
    try:
        image = read(shown)
    except StyleCLIPError as error:
        return row | failure(error)
    return row | {"webp": encode_thumbnail(image, shape)} | success()


def encode_thumbnail(image: Image.Image, shape: tuple[int, int] | None = None) -> bytes:
    """Return a WebP of at most ``SIDE`` pixels a side, never larger than the image.

    Args:
        image: An RGB image.
        shape: Width and height whose proportions it is cropped to around its centre; none keeps them.
    """
    if shape:
        scale = min(1.0, SIDE / max(shape))
        size = (max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale)))
        image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    else:
        # thumbnail() works in place, and the caller's image is not ours
        image = image.copy()
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)

    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=_QUALITY, method=4)
    return buffer.getvalue()


def leaves(plan: PagePlan, size: int) -> Iterator[tuple[int, int, list[bytes]]]:
    """Yield thumbnails in the order of the keys, ``size`` of one column at a time.

    Yields:
        Number of the column, number of the leaf within it, and the thumbnails; empty where one is missing.
    """
    columns = plan.source.columns
    waiting: list[list[bytes]] = [[] for _ in columns]
    numbers = [0] * len(columns)

    # chunks are cut by content, leaves by number, so what is left of a chunk waits for the next one
    for chunk in plan.chunks:
        keys = read_table(chunk.uri, columns=["image_key"])["image_key"].to_pylist()
        for place, found in enumerate(read_ahead(columns, partial(_stored, chunk, keys), ahead=4)):
            waiting[place] += found
            while len(waiting[place]) >= size:
                yield place, numbers[place], waiting[place][:size]
                waiting[place] = waiting[place][size:]
                numbers[place] += 1

    for place, rest in enumerate(waiting):
        if rest:
            yield place, numbers[place], rest


def _stored(chunk: PageChunk, keys: Sequence[str], column: Column | None) -> list[bytes]:
    if column is None:
        return []

    found = {row["image_key"]: row["webp"] for row in column.log(chunk.digest).latest()}
    return [found.get(key) or b"" for key in keys]
