"""The index of a data set: its images are listed and cut into shards.

Shards are cut by content: a shard ends after a key whose hash falls on the mark. So an image that
is added or removed changes its own shard and leaves all others, and their finished work, as they
are.

The index lies in parts of some thousand rows, so that a shard's own rows can be read alone and no list
of all images is ever in memory; ``index.parquet`` beside them says which shard is where.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from prefect.logging import get_run_logger
from pydantic import BaseModel, ConfigDict

from styleclip.tasks.artifacts import (
    Provenance,
    Recipe,
    fingerprint,
    is_complete,
    read_table,
    write_table,
)
from styleclip.tasks.artifacts.lineage import Span, follow
from styleclip.tasks.photographs.datasets.columns import Types
from styleclip.tasks.photographs.datasets.front import NoImagesError, Source, opened
from styleclip.tasks.photographs.datasets.samples import Sample
from styleclip.tasks.photographs.datasets.subsets import chosen
from styleclip.tasks.photographs.passed_over import describe
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.run import Run
from styleclip.tasks.storage import ObjectInfo, exists, join
from styleclip_core.images import ENDINGS

STEP, VERSION = "index-images", "2"
_PART_ROWS = 8192
_MANY_SHARDS = 2000  # task runs of one step that a Prefect server still follows
SUFFIXES = ENDINGS


class ImageShard(BaseModel):
    """Some images of an index.

    Attributes:
        index: URI of the part of the index that has its rows.
        number: Its place among the shards.
        digest: Name of its keys and versions.
        first: Its first row in the part.
        rows: How many images it has.
        before: Digests of older shards that hold images of it, the newest first.
    """

    model_config = ConfigDict(frozen=True)

    index: str
    number: int
    digest: str
    first: int
    rows: int
    before: tuple[str, ...] = ()


class ImageIndex(BaseModel):
    """The images of a data set, as they were listed.

    Attributes:
        photos: URI of the prefix that their keys are relative to.
        uri: Where the index lies.
        fingerprint: Names it.
        shards: The images, in parts.
        passed_over: A sentence about what else lies there and is not read; empty if nothing does.
    """

    model_config = ConfigDict(frozen=True)

    photos: str
    uri: str
    fingerprint: str
    shards: list[ImageShard]
    passed_over: str = ""

    @property
    def rows(self) -> int:
        """Return the number of images."""
        return sum(shard.rows for shard in self.shards)

    @property
    def aside(self) -> str:
        """Return what a headline about the images adds, if anything was passed over."""
        return f"; {self.passed_over}" if self.passed_over else ""


def cut(objects: Iterable[ObjectInfo], target: int) -> Iterator[list[ObjectInfo]]:
    """Cut sorted objects into shards of about ``target``, twice that at most."""
    shard: list[ObjectInfo] = []
    for item in objects:
        shard.append(item)
        # a key's own hash ends a shard, so an image that is added changes one shard only
        mark = int.from_bytes(hashlib.sha256(item.key.encode()).digest()[:8], "big") % target == 0
        if (mark and len(shard) * 4 >= target) or len(shard) >= 2 * target:
            yield shard
            shard = []

    if shard:
        yield shard


def digest(objects: Iterable[ObjectInfo]) -> str:
    """Return a name for a list of objects: same keys and versions, same name."""
    found = hashlib.sha256()
    for number, item in enumerate(objects):
        found.update((("\n" if number else "") + f"{item.key}\0{item.etag}").encode())
    return found.hexdigest()[:24]


@unit_of_work("index-images")
def index_images(run: Run, source: Source, shard_size: int) -> ImageIndex:
    """List the images of a data set and cut them into shards; the listing itself is an artifact.

    Raises:
        NoImagesError: If there is none, or a subset leaves none.
        SettingsError: If a list, a table or a condition cannot be used.
        StorageError: If the data set cannot be listed.
    """
    counts: Counter[str] = Counter()
    with opened(source, run.workspace, counts) as samples:
        if next(iter(samples), None) is None:
            raise NoImagesError(_nothing(source, describe(counts)))
        with chosen(samples, source.dataset) as mine:
            if next(iter(mine), None) is None:
                raise NoImagesError(_none_left(source))
            index = write_index(mine, source.prefix, run.workspace, shard_size)

    if passed_over := describe(counts):
        index = index.model_copy(update={"passed_over": passed_over})
        get_run_logger().warning("%s, under %s", passed_over, source.named)

    if len(index.shards) > _MANY_SHARDS:
        get_run_logger().warning(
            "%d shards are more task runs than a Prefect server follows well; set shard_size to %d or more",
            len(index.shards), index.rows // _MANY_SHARDS,
        )  # fmt: skip
    return index


def _nothing(source: Source, passed_over: str) -> str:
    """Return why a data set has no image."""
    if source.form == "list":
        return f"{source.file} lists no image; give a list with a row for each"
    if exists(source.named):
        kinds = "neither an image, a list, an archive nor a table"
        return f"{source.named} is one object, and {kinds}; give the prefix of images"
    found = f"; {passed_over}" if passed_over else "; check the prefix"
    looked_for = f"looked for {', '.join(SUFFIXES)}, and for .tar and .parquet with images"
    return f"no image under {source.named} ({looked_for}){found}"


def _none_left(source: Source) -> str:
    said = source.dataset.model_dump(exclude_defaults=True, include={"include", "exclude", "where", "sample"})
    about = ", ".join(f"{name} {value}" for name, value in said.items())
    return f"no image of {source.named} is left by {about}; ask for less"


def write_index(
    objects: Iterable[ObjectInfo],
    photos: str,
    workspace: str,
    shard_size: int,
    about: Mapping[str, str] | None = None,
) -> ImageIndex:
    """Cut objects into shards and write them down; the same ones, the same place.

    Args:
        objects: Sorted by key; gone through twice.
        photos: Prefix of the keys.
        workspace: Where the index goes.
        shard_size: Objects of a shard, on average.
        about: What else tells this kind of list from others of the same keys.
    """
    parameters = {"photos": photos, "shard_size": shard_size}
    # the shards hang on keys and versions alone, so that another caption does no work again
    survey = _Survey.of(objects)
    inputs = {"listing": survey.listing} | ({"columns": survey.columns} if survey.columns else {})
    recipe = Recipe(STEP, VERSION, parameters, inputs)
    folder = recipe.folder(workspace, "index")
    uri = join(folder, "index.parquet")

    # the parts go first: where index.parquet is, all of them are
    if not is_complete(uri):
        made = recipe.made("image-index")
        table = pa.Table.from_pylist(list(_write_parts(objects, folder, shard_size, made, survey)), _SHARDS)
        write_table(uri, table, made)

    listed = [
        ImageShard(**{**row, "index": join(folder, row["index"])}) for row in read_table(uri).to_pylist()
    ]
    # named by what is listed and how it is cut: the next list of the same images is held against this one
    name = list_name(photos, shard_size, about)
    spans = follow(workspace, name, [_span(shard) for shard in listed])
    shards = [
        shard.model_copy(update={"before": span.before}) for shard, span in zip(listed, spans, strict=True)
    ]
    return ImageIndex(photos=photos, uri=uri, fingerprint=recipe.fingerprint, shards=shards)


def list_name(photos: str, shard_size: int, about: Mapping[str, str] | None = None) -> str:
    """Return the name under which the last list of some objects is kept; see ``artifacts.lineage``."""
    return fingerprint(STEP, VERSION, {"photos": photos, "shard_size": shard_size, **(about or {})}, {})


_SHARDS = pa.schema([
    ("number", pa.int64()), ("digest", pa.string()), ("index", pa.string()), ("first", pa.int64()),
    ("rows", pa.int64()),
])  # fmt: skip
_OBJECTS = pa.schema([
    ("key", pa.string()), ("etag", pa.string()), ("size", pa.int64()), ("shard", pa.string()),
])  # fmt: skip


_PLACED = (("place", pa.string()), ("problem", pa.string()))


@dataclass(frozen=True)
class _Survey:
    """What one look at all images finds.

    Attributes:
        listing: Name of their keys and versions.
        columns: Name of what an index says of them beside these; empty for images that are plain objects.
        fields: The columns of a part for that.
        types: Types of the data set's own columns.
    """

    listing: str
    columns: str
    fields: tuple[pa.Field, ...]
    types: Types

    @classmethod
    def of(cls, objects: Iterable[ObjectInfo]) -> _Survey:
        """Look at all images once: there may be millions of them, and each look sorts them again."""
        types, placed, said = Types(), False, hashlib.sha256()

        def seen() -> Iterator[ObjectInfo]:
            nonlocal placed
            for item in objects:
                if isinstance(item, Sample):
                    types.see(item.columns)
                    placed = placed or bool(item.place or item.problem)
                    said.update(f"{item.place}\0{item.problem}\0{sorted(item.columns.items())}\n".encode())
                yield item

        listing = digest(seen())
        fields = (*(pa.field(*each) for each in _PLACED if placed), *types.schema())
        return cls(listing, said.hexdigest()[:24] if fields else "", fields, types)

    def row(self, item: ObjectInfo) -> dict[str, Any]:
        """Return the values of these columns for an image."""
        if not self.fields or not isinstance(item, Sample):
            return {}
        return {"place": item.place, "problem": item.problem} | self.types.row(item.columns)


def _write_parts(
    objects: Iterable[ObjectInfo], folder: str, shard_size: int, provenance: Provenance, survey: _Survey
) -> Iterator[dict[str, object]]:
    """Write the rows of shards, some shards to a part; yields where each shard is."""
    rows: list[dict[str, object]] = []
    part = 0
    for number, shard in enumerate(cut(objects, shard_size)):
        # a shard lies in one part, so that reading it is reading one file
        if rows and len(rows) + len(shard) > _PART_ROWS:
            _write_part(folder, part, rows, provenance, survey)
            part, rows = part + 1, []

        name = digest(shard)
        yield {
            "number": number, "digest": name, "index": _part_name(part), "first": len(rows),
            "rows": len(shard),
        }  # fmt: skip
        rows += [
            {"key": each.key, "etag": each.etag, "size": each.size, "shard": name, **survey.row(each)}
            for each in shard
        ]

    if rows:
        _write_part(folder, part, rows, provenance, survey)


def _part_name(part: int) -> str:
    return f"part-{part:05d}.parquet"


def _write_part(
    folder: str, part: int, rows: list[dict[str, object]], provenance: Provenance, survey: _Survey
) -> None:
    schema = pa.schema([*_OBJECTS, *survey.fields])
    write_table(join(folder, _part_name(part)), pa.Table.from_pylist(rows, schema), provenance)


def _span(shard: ImageShard) -> Span:
    keys = read_shard(shard)
    return Span(shard.digest, keys[0][0], keys[-1][0])


@dataclass(frozen=True)
class ListedImage:
    """An image of an index.

    Attributes:
        key: Names it in the data set.
        etag: Version of the object that its bytes lie in.
        place: Where they lie, see ``datasets.places``; empty where that is an object under its key.
        problem: Why there are none; empty if there are.
        columns: What the data set says of it, by name.
    """

    key: str
    etag: str
    place: str = ""
    problem: str = ""
    columns: Mapping[str, Any] | None = None


def read_shard(shard: ImageShard) -> list[tuple[str, str]]:
    """Return key and etag of every image of a shard."""
    table = read_part(shard.index).slice(shard.first, shard.rows)
    return list(zip(table["key"].to_pylist(), table["etag"].to_pylist(), strict=True))


def read_items(shard: ImageShard, keys: Sequence[str] | None = None) -> list[ListedImage]:
    """Return all that the index says of the images of a shard, or of some of them."""
    table = read_part(shard.index).slice(shard.first, shard.rows)
    if keys is not None:  # of an edit that is for few images, before they become values of Python
        table = table.filter(pc.is_in(table["key"], pa.array(keys, pa.string())))
    rows = table.to_pylist()
    return [
        ListedImage(
            row.pop("key"), row.pop("etag"), row.pop("place", ""), row.pop("problem", ""),
            {name: value for name, value in row.items() if name not in ("size", "shard")},
        )
        for row in rows
    ]  # fmt: skip


@lru_cache(maxsize=4)  # shards that follow each other lie in one part, which never changes
def read_part(uri: str) -> pa.Table:
    """Return a part of an index, with all that it says of its images."""
    return read_table(uri)


def placed_fields(index: ImageIndex) -> list[pa.Field]:
    """Return the column that says where images lie, of an index some of whose images are no objects."""
    return [field for field in read_part(index.shards[0].index).schema if field.name == "place"]


def column_fields(shard: ImageShard) -> list[pa.Field]:
    """Return the columns that the data set has of its own, which are the same in all shards."""
    schema = read_part(shard.index).schema
    return [field for field in schema if field.name not in (*_OBJECTS.names, *dict(_PLACED))]


def indexed_versions(uri: str) -> Iterator[tuple[str, str, str]]:
    """Yield key, version and place of every image of the index at ``uri``, a part of it at a time."""
    # the index names a part once for every shard in it
    for name in sorted(set(read_table(uri, columns=["index"])["index"].to_pylist())):
        table = read_table(join(uri.rpartition("/")[0], name))
        places = table["place"].to_pylist() if "place" in table.column_names else [""] * len(table)
        yield from zip(table["key"].to_pylist(), table["etag"].to_pylist(), places, strict=True)
