"""Per-item outcomes of a shard: every item has a row, and a later run retries the failed ones alone.

A shard's rows lie in attempts, ``<shard>.attempt-000.parquet`` and so on. An attempt is never
changed; a retry that changes an outcome adds an attempt with the changed rows, and for every item
the last attempt that names it counts.

A row is of one version of its item. One that an older shard has of the very version is taken over.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from styleclip.tasks.artifacts import Provenance, is_complete, read_table, write_table
from styleclip.tasks.storage import StoreError, join

OK, FAILED, SKIPPED = "ok", "failed", "skipped"
STATUS_FIELDS = [("status", pa.string()), ("error_type", pa.string()), ("error", pa.string())]

Row = dict[str, Any]
Item = tuple[Any, ...]


def failure(error: Exception, *, status: str = FAILED) -> Row:
    """Return the status columns of an item that ended with ``error``.

    Raises:
        StoreError: If that is the error: a store's fault is no item's, and no row may say so.
    """
    if isinstance(error, StoreError):
        raise error
    text = " ".join(str(error).split())[:500]
    return {"status": status, "error_type": type(error).__name__, "error": text}


def success() -> Row:
    """Return the status columns of an item that went well."""
    return {"status": OK, "error_type": None, "error": None}


@dataclass(frozen=True)
class OutcomeLog:
    """The attempts at one shard.

    Attributes:
        folder: URI of the folder of this recipe.
        shard: Digest of the shard's items.
        key: Columns that name an item; the first is the key of its image.
        before: Digests of older shards that hold images of this one, the newest first.
        version: Column that says which version of its image a row is of.
    """

    folder: str
    shard: str
    key: tuple[str, ...]
    before: tuple[str, ...] = ()
    version: str = "etag"

    def uri(self, attempt: int) -> str:
        """Return where an attempt lies."""
        return join(self.folder, f"{self.shard}.attempt-{attempt:03d}.parquet")

    def attempts(self) -> list[str]:
        """Return the attempts there are, oldest first."""
        found: list[str] = []
        while is_complete(self.uri(len(found))):
            found.append(self.uri(len(found)))
        return found

    def latest(self) -> list[Row]:
        """Return one row per item, the last attempt's, in the order of the first."""
        return self._latest_of(self.attempts())

    def _latest_of(self, attempts: Sequence[str]) -> list[Row]:
        rows: dict[Item, Row] = {}
        # a later row takes the place of an earlier one, so the order stays the first attempt's
        for uri in attempts:
            for row in read_table(uri).to_pylist():
                rows[tuple(row[name] for name in self.key)] = row
        return list(rows.values())

    def earlier(self) -> Iterator[list[Row]]:
        """Yield the latest rows of each older shard that has some, without those that failed."""
        for shard in self.before:
            if rows := replace(self, shard=shard).latest():
                yield [row for row in rows if row["status"] != FAILED]

    def table(self, schema: pa.Schema) -> pa.Table:
        """Return the latest rows, sorted by what names their items."""
        return pa.Table.from_pylist(sorted(self.latest(), key=self.item), schema=schema)

    def item(self, row: Row) -> Item:
        """Return what names a row's item."""
        return tuple(row[name] for name in self.key)

    def append(
        self, rows: Sequence[Row], schema: pa.Schema, provenance: Provenance, *, lost: Container[Item] = ()
    ) -> str | None:
        """Write the rows that differ from the latest ones as a new attempt; None if there are none.

        Args:
            rows: New outcomes.
            schema: Their columns.
            provenance: What made them.
            lost: Items that had gone well and were done again, as what they had left was gone.
        """
        attempts = self.attempts()
        known = {self.item(row): row for row in self._latest_of(attempts)}

        changed = [
            row for row in rows
            if _is_news(row, known.get(self.item(row)), lost=self.item(row) in lost)
        ]  # fmt: skip
        if not changed:
            return None

        uri = self.uri(len(attempts))
        changed.sort(key=self.item)
        write_table(uri, pa.Table.from_pylist(changed, schema=schema), provenance)
        return uri


def _is_news(row: Row, known: Row | None, *, lost: bool) -> bool:
    """Return whether a row changes an item's outcome.

    Two failures of one kind are the same outcome. An item that went well is not tried again, so another row
    of it comes from a run beside this one, which did the same, unless it was lost and came back as another.
    """
    if known is None:
        return True
    if known["status"] == OK:
        # figures may have been rounded otherwise in another batch
        return lost and any(value != known[name] for name, value in row.items() if isinstance(value, str))

    return any(known[name] != row[name] for name, _ in STATUS_FIELDS)
