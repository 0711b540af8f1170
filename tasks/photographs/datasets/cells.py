"""Parquet files of a data set: opened in the version that was listed, and the cells of them that hold images.

A row group of images is read at once and kept for the shards beside it, as many as some memory holds; of a
larger one, only the rows that a shard wants are kept.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from styleclip.tasks.artifacts.tables import readable
from styleclip.tasks.storage import ChangedObjectError, stat
from styleclip.tasks.storage.ranges import view
from styleclip_core.errors import StyleCLIPError

_KEPT = 2**28  # bytes of row groups that a process keeps
_AT_ONCE = 32  # rows of a large row group that are decoded at a time
_BLOCK = 2**20
_REMEDY = "upload it again"

_Group = tuple[str, str, str, int]


class UnreadableTableError(StyleCLIPError):
    """A Parquet file of a data set is damaged, or has no such column."""


class _Kept:
    """The row groups that were read last, and who is reading one."""

    def __init__(self) -> None:
        self.groups: OrderedDict[_Group, dict[int, bytes | None]] = OrderedDict()
        self.sizes: dict[_Group, int] = {}
        self.locks: dict[_Group, threading.Lock] = {}
        self.guard = threading.Lock()

    def lock(self, group: _Group) -> threading.Lock:
        with self.guard:
            return self.locks.setdefault(group, threading.Lock())

    def keep(self, group: _Group, cells: dict[int, bytes | None]) -> None:
        with self.guard:
            self.groups[group] = cells
            self.sizes[group] = sum(len(cell) for cell in cells.values() if cell)
            while sum(self.sizes.values()) > _KEPT and len(self.groups) > 1:
                oldest, _ = self.groups.popitem(last=False)
                self.sizes.pop(oldest)
                self.locks.pop(oldest, None)


_kept = _Kept()


@contextmanager
def opened(uri: str, etag: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file in the version that was listed.

    Raises:
        ChangedObjectError: If it is another version by now.
        UnreadableTableError: If it is damaged.
        StorageError: If it cannot be read.
    """
    size, metadata = _metadata(uri, etag)
    with readable(uri, UnreadableTableError, _REMEDY), view(uri, etag, size, block=_BLOCK) as stream:
        yield pq.ParquetFile(pa.PythonFile(stream, mode="r"), metadata=metadata, pre_buffer=True)


@lru_cache(maxsize=32)
def _metadata(uri: str, etag: str) -> tuple[int, pq.FileMetaData]:
    found = stat(uri)
    if found.etag != etag:
        raise ChangedObjectError(f"{uri} has changed since it was listed; a new run takes the new version")
    with readable(uri, UnreadableTableError, _REMEDY), view(uri, etag, found.size, block=_BLOCK) as stream:
        return found.size, pq.read_metadata(pa.PythonFile(stream, mode="r"))


def read_cell(uri: str, etag: str, column: str, row: int, wanted: Sequence[int]) -> bytes | None:
    """Return the bytes in one cell of a column; None if it is null.

    Args:
        uri: Of the file.
        etag: Its version, as it was listed.
        column: ``image``, or ``image.bytes`` in a struct.
        row: Row of the cell, from 0 in the whole file.
        wanted: All rows that will be asked for, of which the others of its row group are read with it.

    Raises:
        ChangedObjectError: If it is another version by now.
        UnreadableTableError: If the file is damaged.
        StorageError: If it cannot be read.
    """
    _, metadata = _metadata(uri, etag)
    number, first = _row_group(metadata, row)
    group = (uri, etag, column, number)

    # one thread reads a row group, the others wait for it
    with _kept.lock(group):
        held = _kept.groups.get(group, {})
        if row not in held:
            rows = set(range(first, first + metadata.row_group(number).num_rows))
            # of a large one, what the shard wants alone
            if _size(metadata, number, column) > _KEPT // 4:
                rows &= set(wanted)
            held = _read(uri, etag, column, number, first, rows)
            _kept.keep(group, held)
        return held[row]


def _row_group(metadata: pq.FileMetaData, row: int) -> tuple[int, int]:
    """Return the row group that holds a row, and its first row."""
    first = 0
    for number in range(metadata.num_row_groups):
        rows = metadata.row_group(number).num_rows
        if row < first + rows:
            return number, first
        first += rows
    raise UnreadableTableError(f"there is no row {row} in a Parquet file of {first} rows; list it again")


def _size(metadata: pq.FileMetaData, number: int, column: str) -> int:
    group = metadata.row_group(number)
    columns = (group.column(place) for place in range(group.num_columns))
    return sum(each.total_uncompressed_size for each in columns if each.path_in_schema == column)


def _read(
    uri: str, etag: str, column: str, number: int, first: int, wanted: set[int]
) -> dict[int, bytes | None]:
    """Return cells of a row group by their rows in the file; its first row is ``first``."""
    cells: dict[int, bytes | None] = {}
    name, _, inner = column.partition(".")
    with opened(uri, etag) as file:
        at = first
        for batch in file.iter_batches(_AT_ONCE, row_groups=[number], columns=[column]):
            values = batch.column(batch.schema.names.index(name))
            values = pc.struct_field(values, inner) if inner else values
            found = enumerate(values, start=at)
            cells |= {row: value.as_py() for row, value in found if row in wanted}
            at += len(values)
    return cells
