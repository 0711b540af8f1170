"""What manifests refer to, held against what is there: both sorted by key, so that memory stays flat.

Keys begin with the tree they are of: ``out/images/...``, ``out/videos/...``, ``workspace/latents/...``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from styleclip.tasks.evaluation.manifest import iter_rows
from styleclip.tasks.keeping.batches import Batch, Place, listed, same
from styleclip.tasks.photographs.reading import object_of
from styleclip.tasks.storage import ObjectInfo, join, list_folders, output_key
from styleclip.tasks.storage.sorting import Sorted

_RUN = 100_000  # references that are sorted at once
_KINDS = {
    "images": re.compile(r"out/images/[^/]+_[0-9a-f]{8}/.+\.(png|jpg|webp|avif|tar|parquet)"),
    "videos": re.compile(r"out/videos/[^/]+_[0-9a-f]{8}/step-[0-9]+/.+\.mp4"),
    "reconstructions": re.compile(r"workspace/latents/[^/]+/reconstructions/.+\.png"),
    "tunings": re.compile(r"workspace/latents/[^/]+/tunings/.+\.safetensors"),
}
SWEPT = tuple(_KINDS)


@dataclass(frozen=True)
class Held:
    """An object, or the name of one, and the batches that refer to it.

    Attributes:
        key: Its key, with the tree it is of.
        kind: ``images``, ``videos``, ``reconstructions``, ``tunings``, or empty for what nothing refers to by
            its key.
        info: What lies there; None if nothing does.
        batches: Numbers of the batches that refer to it.
    """

    key: str
    kind: str
    info: ObjectInfo | None
    batches: tuple[int, ...]


@dataclass
class References:
    """References of some batches, to be gone through any number of times.

    Attributes:
        rows: Rows of each batch.
    """

    rows: list[int] = field(default_factory=list)
    ordered: Iterable[Sequence[Any]] = ()

    def held(self, place: Place) -> Iterator[Held]:
        """Yield what lies in the folders that rows refer to, and what should, sorted by key."""
        there = ((f"{tree}/{name}/{item.key}", item) for tree, uri, name in _folders(place)
                 for item in listed(join(uri, name)))  # fmt: skip
        yield from joined(there, self.ordered)


def _folders(place: Place) -> Iterator[tuple[str, str, str]]:
    # in the order of their keys
    yield "out", place.out, "images"
    yield "out", place.out, "videos"
    yield "workspace", place.workspace, "latents"


@contextmanager
def references_of(place: Place, batches: Sequence[Batch]) -> Iterator[References]:
    """Read the manifests of some batches of a place, and of all others that share its workspace.

    Raises:
        DamagedArtifactError: If a manifest cannot be read.
        StorageError: If a manifest is missing, or there is no space left for the list.
    """
    with TemporaryDirectory(prefix="styleclip-references-") as folder:
        found = References([0] * len(batches))
        rows = _all(place, batches, found.rows)
        found.ordered = Sorted(rows, Path(folder), _RUN)
        yield found


def _all(place: Place, batches: Sequence[Batch], counted: list[int]) -> Iterator[tuple[str, int]]:
    for number, batch in enumerate((*batches, *place.others)):
        mine, here = number < len(batches), same(batch.out, place.out)
        drawn = f"workspace/latents/{batch.latents}"
        tuned = batch.latents and "tunings" in list_folders(join(place.workspace, "latents", batch.latents))

        for part in iter_rows(batch.manifest, ("image_key", "content_hash", "output_key", "steps")):
            if mine:
                counted[number] += part.num_rows
            # images of another place lie there, and are none of ours
            if here:
                yield from ((f"out/{key}", number) for key in _files(part) if _is_ours(key))

            pairs = zip(part["image_key"].to_pylist(), part["content_hash"].to_pylist(), strict=True)
            for key, version in dict.fromkeys(pairs) if batch.latents else ():
                yield f"{drawn}/reconstructions/{output_key(key, suffix='.png', version=version)}", number
                if tuned:
                    name = output_key(key, suffix=".safetensors", version=version)
                    yield f"{drawn}/tunings/{name}", number


def _files(part: pa.RecordBatch) -> Iterator[str]:
    """Yield the keys of the objects that hold images and videos of rows, relative to ``out``."""
    # many images lie in one object
    yield from dict.fromkeys(map(object_of, pc.drop_null(part["output_key"]).to_pylist()))
    steps = pc.list_flatten(part["steps"])
    yield from pc.drop_null(pc.struct_field(steps, "video")).to_pylist()


def _is_ours(key: str) -> bool:
    return key.startswith(("images/", "videos/"))


def joined(objects: Iterable[tuple[str, ObjectInfo]], references: Iterable[Sequence[Any]]) -> Iterator[Held]:
    """Yield every key that is in one of two sorted lists or in both."""
    waiting = ((key, tuple(sorted({number for _, number in same})))
               for key, same in groupby(references, key=itemgetter(0)))  # fmt: skip
    named = next(waiting, None)

    for key, info in objects:
        while named and named[0] < key:
            yield Held(named[0], kind_of(named[0]), None, named[1])
            named = next(waiting, None)

        if named and named[0] == key:
            yield Held(key, kind_of(key), info, named[1])
            named = next(waiting, None)
        else:
            yield Held(key, kind_of(key), info, ())

    # what is left of the references has no objects any more
    while named:
        yield Held(named[0], kind_of(named[0]), None, named[1])
        named = next(waiting, None)


def kind_of(key: str) -> str:
    """Return what kind of object a key is of; empty for one that the project does not refer to by its key."""
    return next((kind for kind, pattern in _KINDS.items() if pattern.fullmatch(key)), "")
