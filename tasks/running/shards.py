"""A shard of items: those that have no good outcome yet are computed, and the outcomes of all are counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from tasks.artifacts import Provenance
from tasks.artifacts.outcomes import FAILED, OK, SKIPPED, OutcomeLog, Row
from tasks.running.progress import ShardResult

_Item = TypeVar("_Item")
Outcomes = dict[tuple[Any, ...], Row]


def without_result(items: Iterable[tuple[str, str]]) -> Callable[[Outcomes], list[tuple[str, str]]]:
    """Return what picks, of (image key, version) pairs, those whose outcome is missing or not good."""
    return lambda known: [item for item in items if known.get((item[0],), {}).get("status") != OK]


def finish_shard(
    log: OutcomeLog,
    todo: Callable[[Outcomes], list[_Item]],
    compute: Callable[[Sequence[_Item]], Iterable[Row]],
    made: Provenance,
    schema: Callable[[], pa.Schema],
    *,
    failing: Collection[str] = (FAILED, SKIPPED),
) -> ShardResult:
    """Compute what is missing of a shard, write it down as a new attempt, and count.

    Args:
        log: The attempts so far.
        todo: Picks the items to compute, from the outcomes so far by what names them.
        compute: Items -> their rows.
        made: What made the rows.
        schema: Returns the columns of the rows; asked only where there are new ones.
        failing: Statuses that count as failed.
    """
    started = time.monotonic()
    known = {log.item(row): row for row in log.latest()}
    missing = todo(known)

    if missing:
        rows = list(compute(missing))
        log.append(rows, schema(), made)
        known |= {log.item(row): row for row in rows}

    return ShardResult(
        uri=log.uri(0),
        rows=len(known),
        failed=sum(row["status"] in failing for row in known.values()),
        reused=not missing,
        seconds=time.monotonic() - started,
    )
