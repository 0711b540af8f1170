"""More items than fit into memory, in order: an external merge sort."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from heapq import merge
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from styleclip.tasks.storage.outages import explained

_T = TypeVar("_T")
_OPEN = 64  # files that are merged at once


class Sorted(Iterable[Sequence[Any]]):
    """Rows of JSON values in the order of their first ones, to be gone through any number of times.

    Rows that begin alike stay in the order in which they came. A run of rows is in memory at a time; a single
    run that is not full is the whole list, and never touches the disk.
    """

    def __init__(self, rows: Iterable[Sequence[Any]], folder: Path, run: int) -> None:
        """Sort rows.

        Args:
            rows: Each begins with the text that it is sorted by.
            folder: Where runs lie, for as long as this is in use.
            run: Rows that are sorted at once.

        Raises:
            StorageError: If there is no space left in the folder.
        """
        self._runs: list[Callable[[], Iterator[Sequence[Any]]]] = []
        self._folder, self._files = folder, 0

        for ordered in (sorted(each, key=itemgetter(0)) for each in batched(rows, run)):
            if not self._runs and len(ordered) < run:
                self._runs.append(partial(iter, ordered))
            else:
                self._runs.append(self._written(ordered))

        # each is an open file while they are merged, of which a process may have only so many
        while len(self._runs) > _OPEN:
            self._runs = [
                self._written(_merged(self._runs[first : first + _OPEN]))
                for first in range(0, len(self._runs), _OPEN)
            ]

    def __iter__(self) -> Iterator[Sequence[Any]]:
        """Yield the rows in order."""
        return _merged(self._runs)

    def _written(self, rows: Iterable[Sequence[Any]]) -> Callable[[], Iterator[Sequence[Any]]]:
        path, self._files = self._folder / str(self._files), self._files + 1
        with explained(str(path), "write"), path.open("w") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
        return partial(_read, path)


def batched(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Yield items, so many at a time."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def _merged(runs: Sequence[Callable[[], Iterator[Sequence[Any]]]]) -> Iterator[Sequence[Any]]:
    # merging is stable and takes earlier runs first
    return merge(*(run() for run in runs), key=itemgetter(0))


def _read(path: Path) -> Iterator[Sequence[Any]]:
    with path.open() as stream:
        for line in stream:
            yield json.loads(line)
