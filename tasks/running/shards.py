"""A shard of items: those that have no good outcome yet are computed, and the outcomes of all are counted.

An item is done where there is a row of its version that says so, in this shard or in an older one that held
it, and where the files are there that the row speaks of.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import pyarrow as pa

from styleclip.tasks.artifacts import Provenance
from styleclip.tasks.artifacts.outcomes import FAILED, OK, SKIPPED, Item, OutcomeLog, Row
from styleclip.tasks.running.overlap import accounting
from styleclip.tasks.running.progress import ShardResult
from styleclip.tasks.running.rates import Spent
from styleclip.tasks.storage import versions_of

_Item = TypeVar("_Item")
Outcomes = dict[Item, Row]


@dataclass(frozen=True)
class Files:
    """Files that the rows of a step speak of, below one prefix.

    Attributes:
        prefix: URI of the folder.
        name: Row -> where its file lies below the prefix; None where it has none.
        version: Column that says which version of the file the row is about; empty where its name says that.
        restore: Makes files again, of their rows; without it their items are computed again.
    """

    prefix: str
    name: Callable[[Row], str | None]
    version: str = ""
    restore: Callable[[Sequence[Row]], None] | None = None

    def lost(self, rows: Mapping[Item, Row]) -> set[Item]:
        """Return the items whose row is good and whose file is gone, or is another one by now.

        Raises:
            StorageError: If that cannot be found out.
        """
        named = {item: name for item, row in rows.items() if row["status"] == OK and (name := self.name(row))}
        there = versions_of(self.prefix, set(named.values()))

        return {
            item
            for item, name in named.items()
            if name not in there or (self.version and rows[item][self.version] != there[name])
        }


def without_result(items: Iterable[tuple[str, str]]) -> Callable[[Outcomes], list[tuple[str, str]]]:
    """Return what picks, of (image key, version) pairs, those whose outcome is missing or not good."""
    return lambda known: [item for item in items if known.get((item[0],), {}).get("status") != OK]


def taken_over(
    log: OutcomeLog, known: Outcomes, versions: Mapping[str, str], enough: Callable[[Outcomes], bool]
) -> Outcomes:
    """Return the good outcomes that older shards have of items whose version is still the same.

    Args:
        log: Of the shard.
        known: Its own outcomes, which count before others.
        versions: Version of every image of the shard, by its key.
        enough: Says of some outcomes whether nothing is missing, so that no older shard is asked.
    """
    found: Outcomes = {}
    older = log.earlier()
    while not enough(found | known) and (rows := next(older, None)) is not None:
        mine = [row for row in rows if row[log.key[0]] in versions]
        same = {log.item(row): row for row in mine if versions[row[log.key[0]]] == row[log.version]}
        new = {item: row for item, row in same.items() if item not in known and item not in found}

        # each list of shards followed the one before, so what this one does not know the others hardly will
        if not new:
            break
        found |= new
    return found


def lost(files: Sequence[Files], known: Outcomes) -> tuple[set[Item], list[tuple[Files, list[Row]]]]:
    """Return the items whose files are gone for good, and files that can be made again, with their rows."""
    found: set[Item] = set()
    restorable = []
    for each in files:
        gone = each.lost(known) - found
        if each.restore and gone:
            restorable.append((each, [known[item] for item in sorted(gone)]))
        elif not each.restore:
            found |= gone
    return found, restorable


@dataclass(frozen=True)
class Outlook(Generic[_Item]):
    """What there is of a shard and what is missing, before anything is computed or written.

    Attributes:
        own: Outcomes that the shard's own attempts have.
        known: Those, and what is taken over from older shards.
        older: The latter alone.
        gone: Items that went well and have lost a file, with all others of their image.
        restorable: Files that can be made again without computing their items, with the rows they are of.
        missing: What is to be computed.
    """

    own: Outcomes
    known: Outcomes
    older: Outcomes
    gone: set[Item]
    restorable: list[tuple[Files, list[Row]]]
    missing: list[_Item]


def look(
    log: OutcomeLog,
    todo: Callable[[Outcomes], list[_Item]],
    *,
    versions: Mapping[str, str],
    files: Sequence[Files] = (),
) -> Outlook[_Item]:
    """Find out what is missing of a shard; the arguments are those of ``finish_shard``, which goes by it."""
    own = {log.item(row): row for row in log.latest()}
    older = taken_over(log, own, versions, lambda known: not todo(known))
    known = older | own
    beyond, restorable = lost(files, known)

    # an image of whose rows one has lost its file is done again as a whole
    images = {item[0] for item in beyond}
    gone = {item for item in known if item[0] in images}
    missing = todo({item: row for item, row in known.items() if item not in gone})
    return Outlook(own, known, older, gone, restorable, missing)


def finish_shard(
    log: OutcomeLog,
    todo: Callable[[Outcomes], list[_Item]],
    compute: Callable[[Sequence[_Item]], Iterable[Row]],
    made: Provenance,
    schema: Callable[[], pa.Schema],
    *,
    versions: Mapping[str, str],
    files: Sequence[Files] = (),
    failing: Collection[str] = (FAILED, SKIPPED),
    work: Callable[[int, float, int], Spent] | None = None,
) -> ShardResult:
    """Compute what is missing of a shard, write it down as a new attempt, and count.

    Args:
        log: The attempts so far.
        todo: Picks the items to compute, from the outcomes so far by what names them.
        compute: Items -> their rows.
        made: What made the rows.
        schema: Returns the columns of the rows; asked only where there are new ones.
        versions: Version of every image of the shard, by its key.
        files: What the rows speak of; an item whose file is gone is computed again.
        failing: Statuses that count as failed.
        work: Items whose files were written, seconds, bytes -> what is kept for later estimates.
    """
    started = time.monotonic()
    ahead = look(log, todo, versions=versions, files=files)
    missing, known = ahead.missing, dict(ahead.known)
    for each, rows in ahead.restorable:
        if each.restore:
            each.restore(rows)

    with accounting() as spent:
        computed = list(compute(missing)) if missing else []
    if computed or ahead.older:
        done = {log.item(row) for row in computed}
        rows = computed + [row for item, row in ahead.older.items() if item not in done]
        log.append(rows, schema(), made, lost=ahead.gone)
        known |= {log.item(row): row for row in computed}

    return ShardResult(
        uri=log.uri(0),
        rows=len(known),
        failed=sum(row["status"] in failing for row in known.values()),
        reused=not missing,
        seconds=time.monotonic() - started,
        tried=len(missing),
        spent=() if work is None else (work(spent.items, spent.seconds, spent.size),),
    )
