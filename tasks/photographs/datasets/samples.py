"""A sample: one image of a data set as it was listed, and many of them in order."""

from __future__ import annotations

import json
import posixpath
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from styleclip.tasks.storage import ObjectInfo
from styleclip.tasks.storage.sorting import Sorted

_RUN = 20_000  # samples that are sorted at once


@dataclass(frozen=True, slots=True)
class Sample(ObjectInfo):
    """An image of a data set.

    Attributes:
        place: Where its bytes lie, see ``places``; empty where that is an object under its key.
        problem: What is wrong with it as far as the list shows; empty if nothing is.
        columns: What the data set says of it, by name.
    """

    place: str = ""
    problem: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)


def of_object(item: ObjectInfo, columns: Mapping[str, Any] | None = None) -> Sample:
    """Return an object as a sample."""
    return Sample(item.key, item.etag, item.size, item.modified, columns=columns or {})


@contextmanager
def in_order(
    samples: Iterable[Sample], twice: Callable[[Sample], Sample] | None = None
) -> Iterator[Iterable[Sample]]:
    """Give samples sorted by key, to be gone through any number of times, however many there are.

    Args:
        samples: In any order.
        twice: Says what becomes of a sample whose key another one has already; its new key is made here.
            Without it, of equal keys the last one counts.
    """
    with tempfile.TemporaryDirectory(prefix="styleclip-samples-") as folder:
        found = _Ordered(samples, Path(folder))
        if twice and any(len(list(same)) > 1 for _, same in groupby(found, key=attrgetter("key"))):
            # a new key has another place in the order
            (Path(folder) / "renamed").mkdir()
            found = _Ordered(_renamed(found, twice), Path(folder) / "renamed")
        yield found


def _renamed(samples: Iterable[Sample], twice: Callable[[Sample], Sample]) -> Iterator[Sample]:
    for _, same in groupby(samples, key=attrgetter("key")):
        first, *others = same
        yield first
        for number, sample in enumerate(_distinct(first, others), start=2):
            stem, ending = posixpath.splitext(sample.key)
            yield replace(twice(sample), key=f"{stem}~{number}{ending}")


def _distinct(first: Sample, others: list[Sample]) -> Iterator[Sample]:
    """Yield the samples that are not merely listed again."""
    seen = [_row(first)]
    for sample in others:
        if (row := _row(sample)) not in seen:
            seen.append(row)
            yield sample


class _Ordered(Iterable[Sample]):
    def __init__(self, samples: Iterable[Sample], folder: Path) -> None:
        self._rows = Sorted((_row(sample) for sample in samples), folder, _RUN)

    def __iter__(self) -> Iterator[Sample]:
        for key, etag, size, place, problem, columns in self._rows:
            yield Sample(key, etag, size, place=place, problem=problem, columns=json.loads(columns))


def _row(sample: Sample) -> tuple[Any, ...]:
    columns = json.dumps(dict(sample.columns), sort_keys=True, default=str)
    return (sample.key, sample.etag, sample.size, sample.place, sample.problem, columns)
