"""Which images an edit is for, where that hangs on what the data set says of them.

Edits that name columns stand for one edit for every distinct combination of these; edits with a condition are
for some images. Which edits an image has lies in parts like those of the index, row by row, so that a shard
reads its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
from prefect.logging import get_run_logger
from pydantic import BaseModel, ConfigDict

from styleclip.tasks.artifacts import Recipe, fingerprint, is_complete, read_table, write_table
from styleclip.tasks.photographs.datasets.subsets import matching_rows
from styleclip.tasks.photographs.images import ImageIndex, ImageShard, read_part
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.run import Run
from styleclip.tasks.settings import SettingsError
from styleclip.tasks.settings.by_image import columns_of, differs, resolve
from styleclip.tasks.settings.edits import Edit, dump_edits
from styleclip.tasks.storage import join

STEP, VERSION = "assign-edits", "1"
_INTERNAL = ("etag", "shard", "place", "problem")


class Assignment(BaseModel):
    """Edits without columns in them, and where it says which images each is for.

    Attributes:
        edits: All edits, those for every image too.
        uri: URI of the folder that says of every image which edits it has.
        chosen: Whether an edit is for some images alone, edit by edit.
        groups: What those are called together that columns made of one edit; empty for any other.
    """

    model_config = ConfigDict(frozen=True)

    edits: list[Edit]
    uri: str
    chosen: list[bool]
    groups: list[str] = []

    def group_of(self, number: int) -> str:
        """Return the group of an edit; none where an older release assigned the edits."""
        return self.groups[number] if self.groups else ""


@unit_of_work("assign-edits")
def assign_edits(run: Run, edits: list[Edit], index: ImageIndex, most: int) -> Assignment:
    """Find the edits of every image, of those that hang on columns of the data set.

    Raises:
        SettingsError: If an edit names a column that there is not, a condition cannot be asked, a column
            holds no number where one is wanted, or the edits are more than ``most``.
    """
    recipe = Recipe(STEP, VERSION, {"edits": dump_edits(edits).decode()}, {"index": index.fingerprint})
    folder = recipe.folder(run.workspace, "assignments")
    found, empty = _Distinct(edits, most), Counter[str]()

    # the parts are those of the index, row by row
    for uri in dict.fromkeys(shard.index for shard in index.shards):
        table = read_part(uri)
        rows = [sorted(each) for each in _numbers(edits, table, found, empty)]
        part = join(folder, uri.rpartition("/")[2])
        if not is_complete(part):
            numbers = pa.array(rows, pa.list_(pa.int32()))
            write_table(part, pa.table({"edits": numbers}), recipe.made("edits-by-image"))

    for name, count in empty.items():
        get_run_logger().warning("edit %r leaves %d images alone, whose columns are empty", name, count)
    return Assignment(edits=found.edits, uri=folder, chosen=found.chosen, groups=found.groups)


class _Distinct:
    """Edits as they come out of columns, each once, numbered as they come up."""

    def __init__(self, edits: Sequence[Edit], most: int) -> None:
        self.edits: list[Edit] = [edit for edit in edits if not differs(edit)]
        self.chosen = [False] * len(self.edits)
        self.groups = [""] * len(self.edits)
        self._known: dict[tuple[Any, ...], int | None] = {}
        self._most = most

    def number(self, place: int, edit: Edit, row: Mapping[str, Any]) -> int | None:
        """Return the number of what an edit is for one image; None if it is none."""
        key = (place, *(row[name] for name in columns_of(edit)))
        if key not in self._known:
            self._known[key] = self._add(edit, row)
        return self._known[key]

    def _add(self, edit: Edit, row: Mapping[str, Any]) -> int | None:
        try:
            found = resolve(edit, row)
        except SettingsError as error:
            raise SettingsError(f"edit {edit.name or edit.target!r} of {row['key']}: {error}") from error
        if found is None:
            return None
        if len(self.edits) >= self._most:
            raise SettingsError(
                f"the columns of the data set make more than {self._most:,} edits; allow more "
                "(most_variants), or edit less at once"
            )
        self.edits.append(found)
        self.chosen.append(True)
        self.groups.append(_group(edit) if columns_of(edit) else "")
        return len(self.edits) - 1


def _group(edit: Edit) -> str:
    """Return what the edits are called together that columns make of one: no image has two of them."""
    return fingerprint(STEP, VERSION, {"edit": dump_edits([edit]).decode()}, {})[:12]


def _numbers(
    edits: Sequence[Edit], table: pa.Table, found: _Distinct, empty: Counter[str]
) -> Iterator[set[int]]:
    """Yield the numbers of the edits of every row that hang on columns."""
    named = [edit for edit in edits if differs(edit)]
    for edit in named:
        missing = [name for name in columns_of(edit) if name not in table.column_names]
        if missing:
            there = ", ".join(name for name in table.column_names if name not in _INTERNAL)
            raise SettingsError(
                f"edit {edit.name or edit.target!r} names {missing[0]!r}, which is no column of the data "
                f"set; there are {there}"
            )

    wanted = [matching_rows(table, edit.where) if edit.where else None for edit in named]
    for place, row in enumerate(table.to_pylist()):
        mine = set()
        for number, edit in enumerate(named):
            rows = wanted[number]
            if rows is not None and place not in rows:
                continue
            assigned = found.number(number, edit, row)
            if assigned is None:
                empty[edit.name or edit.target] += 1
            else:
                mine.add(assigned)
        yield mine


def keys_for(assignment: str, number: int, shard: ImageShard) -> frozenset[str]:
    """Return the images of a shard that an edit is for."""
    return _by_number(assignment, shard).get(number, frozenset())


@lru_cache(maxsize=64)  # every edit of a shard asks
def _by_number(assignment: str, shard: ImageShard) -> dict[int, frozenset[str]]:
    keys = read_part(shard.index).slice(shard.first, shard.rows)["key"].to_pylist()
    part = _read(join(assignment, shard.index.rpartition("/")[2])).slice(shard.first, shard.rows)
    found: dict[int, set[str]] = {}
    for key, numbers in zip(keys, part["edits"].to_pylist(), strict=True):
        for number in numbers:
            found.setdefault(number, set()).add(key)
    return {number: frozenset(mine) for number, mine in found.items()}


@lru_cache(maxsize=4)
def _read(uri: str) -> pa.Table:
    return read_table(uri)
