"""Edited images -> files, a tar or a table each for a shard and an edit where that is asked for.

Each edit has objects of its own: a sample is one image with what is known of it, so all samples have the same
fields, as readers of WebDataset and of Hugging Face's datasets expect; an edit that fails leaves no hole, and
one that is added later leaves the objects of the others alone. Edits that columns of the data set made of one
share their objects: an image has one of them, and they may be as many as the images.

An object is named by its content: a run that was killed before it wrote its rows, or one beside another run,
never puts other bytes where rows point at. Encoded images wait in one temporary file of the shard, so that
memory does not grow with images or edits.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, BinaryIO
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from styleclip.tasks.artifacts.outcomes import Row
from styleclip.tasks.editing.plans import EditPlan
from styleclip.tasks.editing.schemas import MANIFEST_SCHEMA, manifest_row
from styleclip.tasks.photographs.datasets.places import Place
from styleclip.tasks.photographs.images import ImageShard, column_fields, read_items
from styleclip.tasks.photographs.reading import object_of
from styleclip.tasks.settings import Saving
from styleclip.tasks.storage import copy_from_local, exists, is_safe, join, mangled, write_bytes_atomic
from styleclip.tasks.storage.outages import explained
from styleclip_core.images import ENDINGS, encode_file, saved_size

_ROW_GROUP = 32  # images of a table that are read at once
_MB = 10**6
_UNSAID = {
    "output_key", "inversion_key", "latent", "settings", "steps", "status", "error_type", "error",
}  # fmt: skip
_MADE = ("alpha", "beta", "top_k", "strength", "channels", "layers")
_SAID = tuple(name for name in MANIFEST_SCHEMA.names if name not in _UNSAID)


@dataclass(frozen=True)
class Saved:
    """An edited image that has been encoded.

    Attributes:
        width: Of the file, in pixels.
        height: As much.
        key: Where it was written, relative to ``out``; empty where it waits to be packed.
        start: First byte in the file that it waits in.
        end: The byte behind its last one.
    """

    width: int
    height: int
    key: str
    start: int
    end: int

    @property
    def size(self) -> int:
        """Return its bytes."""
        return self.end - self.start


class Waiting:
    """A temporary file of encoded images, written and read by any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._end = 0

    def __enter__(self) -> Waiting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            self._file.close()

    def add(self, content: bytes) -> tuple[int, int]:
        """Keep some bytes, and return where they begin and end."""
        # a disk that is full is said to be
        with self._lock, explained(tempfile.gettempdir(), "write"):
            # made by the first image: most shards of most batches need none
            self._file = self._file or tempfile.TemporaryFile(prefix="styleclip-waiting-")  # noqa: SIM115
            self._file.seek(self._end)
            self._file.write(content)
            start, self._end = self._end, self._end + len(content)
            return start, self._end

    def read(self, start: int, end: int) -> bytes:
        """Return bytes that were kept."""
        with self._lock:
            if self._file is None:
                return b""
            self._file.seek(start)
            return self._file.read(end - start)


def save_image(planned: EditPlan, row: Row, pixels: np.ndarray, waiting: Waiting) -> Saved:
    """Encode an edited image, ``[H, W, 3]`` uint8, and write it unless it is to be packed.

    Raises:
        StorageError: If it cannot be written.
    """
    saving = planned.saving
    content = encode_file(pixels, saving)
    width, height = saved_size(pixels.shape[1], pixels.shape[0], saving.size)
    if saving.packed:
        return Saved(width, height, "", *waiting.add(content))

    key = planned.output_key(row)
    write_bytes_atomic(join(planned.out, key), content)
    return Saved(width, height, key, 0, len(content))


@dataclass(frozen=True)
class Packed:
    """An image that is to be packed.

    Attributes:
        planned: Its edit.
        row: Its row.
        saved: Where its bytes wait.
        before: Its row until now, if there is one: where it lay.
    """

    planned: EditPlan
    row: Row
    saved: Saved
    before: Row | None


@dataclass(frozen=True)
class _Sample:
    """An image on its way into an object: its row, its name there, its ending, and its bytes' place."""

    image: Packed
    name: str
    columns: Mapping[str, Any]

    @property
    def row(self) -> Row:
        return self.image.row

    @property
    def saved(self) -> Saved:
        return self.image.saved

    @property
    def file(self) -> str:
        return f"{self.name}{self.image.planned.saving.ending}"


def pack(images: Sequence[Packed], shard: ImageShard, waiting: Waiting) -> dict[str, str]:
    """Write images into objects, and return where each lies, by its photograph's key.

    Images that lay together in an object which is lost lie together again: the same bytes under its name.

    Args:
        images: Edited images, one of a photograph at most, all saved alike.
        shard: The photographs.
        waiting: Holds the images.

    Raises:
        StorageError: If an object cannot be written.
    """
    items = {item.key: item for item in read_items(shard)} if images else {}
    names = member_names(list(items))
    together: dict[str, list[_Sample]] = defaultdict(list)
    for image in sorted(images, key=lambda each: str(each.row["image_key"])):
        key, before = image.row["image_key"], (image.before or {}).get("output_key")
        sample = _Sample(image, names[key], items[key].columns or {})
        together[object_of(before) if before else ""].append(sample)

    places = dict[str, str]()
    for name in sorted(together):
        for part in _parts(together[name], images[0].planned.saving):
            places |= _write(part, shard, waiting)
    return places


def _parts(samples: list[_Sample], saving: Saving) -> Iterator[list[_Sample]]:
    """Cut samples where an object would be larger than it may."""
    most, size, part = (saving.most_mb or 0) * _MB, 0, list[_Sample]()
    for sample in samples:
        mine = sample.saved.size
        if part and most and size + mine > most:
            yield part
            size, part = 0, []
        size += mine
        part.append(sample)
    if part:
        yield part


def _write(samples: list[_Sample], shard: ImageShard, waiting: Waiting) -> dict[str, str]:
    """Write one object; return where its images lie."""
    # of several edits, in the folder of the first image's
    planned = samples[0].image.planned
    with tempfile.TemporaryDirectory(prefix="styleclip-packed-") as folder:
        path = Path(folder) / "object"
        with explained(folder, "write"):
            ends = _write_packed(path, planned.saving, shard, samples, waiting)

        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
        key = f"{planned.images}/{shard.digest[:12]}-{content}{planned.saving.packed}"

        # what is there under a name has the name's content
        if not exists(uri := join(planned.out, key)):
            copy_from_local(path, uri)

    tables = planned.saving.to == "parquet"
    return {
        sample.row["image_key"]: str(
            Place(key, row=number, column="image.bytes") if tables else Place(key, start, end)
        )
        for number, (sample, (start, end)) in enumerate(zip(samples, ends, strict=True))
    }


def _write_packed(
    path: Path, saving: Saving, shard: ImageShard, samples: list[_Sample], waiting: Waiting
) -> list[tuple[int, int]]:
    """Write a tar or a table; return first and last byte of each image in a tar."""
    if saving.to == "parquet":
        _write_parquet(path, samples, waiting, column_fields(shard))
        return [(0, 0)] * len(samples)
    return list(_write_tar(path, samples, waiting))


def _write_tar(path: Path, samples: list[_Sample], waiting: Waiting) -> Iterator[tuple[int, int]]:
    """Write a tar of an image and a JSON file per sample; yield first and last byte of each image."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for sample in samples:
            content = waiting.read(sample.saved.start, sample.saved.end)
            said = json.dumps(_as_json(sample), sort_keys=True, ensure_ascii=False, default=str).encode()

            _add(tar, sample.file, content)
            end = tar.offset - (-len(content) % tarfile.BLOCKSIZE)
            yield end - len(content), end
            _add(tar, f"{sample.name}.json", said)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    # time, owner and rights stay as tarfile makes them: 1970, nobody, 0644
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
    tar.members = []  # type: ignore[attr-defined] # it would keep them all


def _write_parquet(path: Path, samples: list[_Sample], waiting: Waiting, fields: Sequence[pa.Field]) -> None:
    """Write a table of ``image: struct<bytes, path>``, as Hugging Face's datasets have them."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    own = [MANIFEST_SCHEMA.field(name) for name in _SAID]
    features = {"info": {"features": {"image": {"_type": "Image"}}}}
    schema = pa.schema([("image", image), *own, *fields], {"huggingface": json.dumps(features)})

    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for first in range(0, len(samples), _ROW_GROUP):
            rows = [
                {"image": {"bytes": waiting.read(each.saved.start, each.saved.end),
                           "path": each.file}} | _said(each)
                for each in samples[first : first + _ROW_GROUP]
            ]  # fmt: skip
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _said(sample: _Sample) -> Row:
    """Return what stands beside an image: its edit, its scores, and the data set's own columns."""
    row = manifest_row(sample.row)
    size = {"width": sample.saved.width, "height": sample.saved.height}
    return {name: row[name] for name in _SAID if name not in size} | size | dict(sample.columns)


def _as_json(sample: _Sample) -> Row:
    """Return the same for a reader that infers types from the first samples that it sees.

    Whether an edit has a beta or counts channels differs from edit to edit, and null next to a number is two
    types to such a reader. So choices are one text, with those in it that were made.
    """
    said, choices = _said(sample), json.loads(sample.row["settings"] or "{}")
    made = {name: said.pop(name) for name in _MADE}
    made = {name: value for name, value in {**choices, **made}.items() if value not in (None, [])}
    return said | {"settings": json.dumps(made, sort_keys=True, ensure_ascii=False)}


def member_names(keys: Sequence[str]) -> dict[str, str]:
    """Return what the samples of a shard are called, by key: the key without its ending.

    WebDataset ends a sample's name at the first dot behind the last slash, so there are no other dots. Where
    several keys would have one name, or names that differ by case or normal form alone, each gets digits of
    its own. A key that is not safe as a path has the name that it has elsewhere.
    """
    found = {}
    for key in keys:
        stem = key.removesuffix(PurePosixPath(key).suffix) if key.lower().endswith(ENDINGS) else key
        folder, slash, name = stem.rpartition("/")
        found[key] = f"{folder}{slash}{name.replace('.', '_')}" if is_safe(key) and name else mangled(key)

    alike = Counter(normalize("NFC", name).casefold() for name in found.values())
    return {
        key: f"{name}~{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
        if alike[normalize("NFC", name).casefold()] > 1 else name
        for key, name in found.items()
    }  # fmt: skip
