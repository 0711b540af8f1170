"""Relevance tables by night, and which former ones thin out.

A night leaves two tables: one over the samples it added, and the last one with these merged in. Of tables
that were measured alike, in the order of the days on which they were written, there stay

- all of the last 14 days that left some;
- of each calendar week before, the one with the most samples;
- in any case the one with the most samples, the newest, those that a batch names, and those that were
  measured from the first sample on: these an edit with the same settings finds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from styleclip.tasks.artifacts import Provenance, fingerprint, read_provenance
from styleclip.tasks.directions.refining import REFINE_STEP
from styleclip.tasks.directions.relevance import STEP
from styleclip.tasks.keeping.batches import listed
from styleclip.tasks.storage import join

NIGHTS = 14
_OWN = ("samples", "first_sample", "sample_ranges")


@dataclass(frozen=True)
class NightTable:
    """A relevance table in a workspace.

    Attributes:
        name: Its fingerprint, which names its folder.
        written: When it was written, in seconds since 1970.
        samples: Style codes behind it.
        group: What it shares with the tables that were measured alike.
        added: Whether a night added it, or added to it.
        objects: Objects in its folder.
        size: Bytes of those.
    """

    name: str
    written: float
    samples: int
    group: str
    added: bool
    objects: int
    size: int

    @property
    def day(self) -> date:
        """Return the day it was written on, in UTC."""
        return datetime.fromtimestamp(self.written, UTC).date()


def night_tables(workspace: str) -> list[NightTable]:
    """Return the relevance tables of a workspace, the oldest first."""
    moments, objects, sizes = dict[str, float](), defaultdict[str, int](int), defaultdict[str, int](int)
    for item in listed(join(workspace, "relevance")):
        name, _, rest = item.key.partition("/")
        objects[name] += 1
        sizes[name] += item.size
        if rest == "relevance.parquet":
            moments[name] = item.modified

    found = []
    for name, moment in moments.items():
        made = read_provenance(join(workspace, "relevance", name, "relevance.parquet"))
        # a table that was imported was measured by somebody else
        if made.step in (STEP, REFINE_STEP) and made.parameters.get("sample_ranges"):
            found.append(_record(name, moment, made, objects[name], sizes[name]))
    return sorted(found, key=lambda table: (table.written, table.name))


def _record(name: str, moment: float, made: Provenance, objects: int, size: int) -> NightTable:
    ranges = made.parameters["sample_ranges"]
    shared = {key: value for key, value in made.parameters.items() if key not in _OWN}
    inputs = {
        "styles": str(made.inputs.get("styles")), "generator": made.generator, "clip": made.clip,
        "version": made.version,
    }  # fmt: skip
    return NightTable(
        name=name, written=moment, samples=sum(last - first for first, last in ranges),
        group=fingerprint("measured-alike", "1", shared, inputs),
        added=made.step == REFINE_STEP or ranges[0][0] > 0, objects=objects, size=size,
    )  # fmt: skip


def thinned(tables: Sequence[NightTable], named: Collection[str]) -> list[NightTable]:
    """Return the tables that go; see above.

    Args:
        tables: Those of a workspace.
        named: Names of tables that a batch refers to.
    """
    groups = defaultdict[str, list[NightTable]](list)
    for table in tables:
        groups[table.group].append(table)
    return [table for group in groups.values() for table in _thinned(group) if table.name not in named]


def _thinned(group: list[NightTable]) -> Iterator[NightTable]:
    """Yield the tables that go, of those that were measured alike."""
    recent = sorted({table.day for table in group})[-NIGHTS:]
    newest = max(group, key=lambda table: (table.written, table.name))
    largest = max(group, key=lambda table: (table.samples, table.name))

    weeks = defaultdict[tuple[int, int], list[NightTable]](list)
    for table in group:
        weeks[table.day.isocalendar()[:2]].append(table)

    stay = {newest.name, largest.name}
    stay |= {max(week, key=lambda table: (table.samples, table.name)).name for week in weeks.values()}
    for table in group:
        if table.added and table.day not in recent and table.name not in stay:
            yield table
