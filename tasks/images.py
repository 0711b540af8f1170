"""The image data set in a bucket: list it, cut it into shards, read one image of it.

Shards are cut by content: a shard ends after a key whose hash falls on the mark. So an image that
is added or removed changes its own shard and leaves all others, and their finished work, as they
are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import pyarrow as pa
from prefect import task
from pydantic import BaseModel, ConfigDict

import styleclip_core
from styleclip_core.errors import StyleCLIPError
from tasks.artifacts import Provenance, artifact_uri, fingerprint, is_complete, read_table, write_table
from tasks.caching import PER_RUN
from tasks.storage import ObjectInfo, join, list_objects

STEP, VERSION = "index-images", "1"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


class NoImagesError(StyleCLIPError):
    """A prefix holds no image."""


class ImageShard(BaseModel):
    """Some images of an index."""

    model_config = ConfigDict(frozen=True)

    index: str
    number: int
    digest: str
    first: int
    rows: int


class ImageIndex(BaseModel):
    """The images under a prefix, as they were listed."""

    model_config = ConfigDict(frozen=True)

    photos: str
    uri: str
    fingerprint: str
    shards: list[ImageShard]

    @property
    def rows(self) -> int:
        """Return the number of images."""
        return sum(shard.rows for shard in self.shards)


def cut(objects: Iterable[ObjectInfo], target: int) -> Iterator[list[ObjectInfo]]:
    """Cut sorted objects into shards of about ``target``, twice that at most."""
    shard: list[ObjectInfo] = []
    for item in objects:
        shard.append(item)
        mark = int.from_bytes(hashlib.sha256(item.key.encode()).digest()[:8], "big") % target == 0
        if (mark and len(shard) * 4 >= target) or len(shard) >= 2 * target:
            yield shard
            shard = []
    if shard:
        yield shard


def digest(objects: Iterable[ObjectInfo]) -> str:
    """Return a name for a list of objects: same keys and versions, same name."""
    lines = "\n".join(f"{item.key}\0{item.etag}" for item in objects)
    return hashlib.sha256(lines.encode()).hexdigest()[:24]


@task(name="index-images", cache_policy=PER_RUN, persist_result=True)
def index_images(photos: str, workspace: str, shard_size: int) -> ImageIndex:
    """List the images under a prefix and cut them into shards; the listing itself is an artifact."""
    objects = list(list_objects(photos, suffixes=SUFFIXES))
    if not objects:
        raise NoImagesError(f"no image under {photos} (looked for {', '.join(SUFFIXES)}); check the prefix")
    return write_index(objects, photos, workspace, shard_size)


def write_index(objects: list[ObjectInfo], photos: str, workspace: str, shard_size: int) -> ImageIndex:
    """Cut objects, sorted by key, into shards and write them down; the same ones, the same place."""
    parameters = {"photos": photos, "shard_size": shard_size}
    print_ = fingerprint(STEP, VERSION, parameters, {"listing": digest(objects)})
    uri = join(artifact_uri(workspace, "index", print_), "index.parquet")
    shards: list[ImageShard] = []
    columns: dict[str, list[object]] = {"key": [], "etag": [], "size": [], "shard": []}
    for number, part in enumerate(cut(objects, shard_size)):
        name, first = digest(part), len(columns["key"])
        shards.append(ImageShard(index=uri, number=number, digest=name, first=first, rows=len(part)))
        for item in part:
            for column, value in zip(columns, (item.key, item.etag, item.size, name), strict=True):
                columns[column].append(value)
    if not is_complete(uri):
        provenance = Provenance(
            kind="image-index", fingerprint=print_, step=STEP, version=VERSION, parameters=parameters,
            inputs={"listing": digest(objects)}, generator="", clip="",
            code_version=styleclip_core.__version__,
        )  # fmt: skip
        write_table(uri, pa.table(columns), provenance)
    return ImageIndex(photos=photos, uri=uri, fingerprint=print_, shards=shards)


def read_shard(shard: ImageShard) -> list[tuple[str, str]]:
    """Return key and etag of every image of a shard."""
    table = read_table(shard.index, columns=["key", "etag"]).slice(shard.first, shard.rows)
    return list(zip(table["key"].to_pylist(), table["etag"].to_pylist(), strict=True))
