"""Relevance tables that grow: the last one is found, and new samples are merged into it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

from pydantic import BaseModel, ConfigDict

from styleclip.tasks.artifacts import (
    Provenance,
    Recipe,
    is_complete,
    read_provenance,
    write_table,
)
from styleclip.tasks.directions.relevance import (
    STEP,
    VERSION,
    RelevancePlan,
    read_relevance,
    relevance_table,
    sample_range,
)
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.run import Run
from styleclip.tasks.storage import MissingObjectError, join, list_objects
from styleclip_core.errors import ArtifactConflictError
from styleclip_core.relevance import RelevanceTable

REFINE_STEP = "refine-relevance"


class TableRecord(BaseModel):
    """A relevance table and what it was measured on."""

    model_config = ConfigDict(frozen=True)

    uri: str
    fingerprint: str
    sample_ranges: list[tuple[int, int]]

    @property
    def samples(self) -> int:
        """Return the number of style codes behind the table."""
        return sum(last - first for first, last in self.sample_ranges)

    @property
    def last(self) -> int:
        """Return the number of the first style code after all that were used."""
        return max(last for _, last in self.sample_ranges)


@unit_of_work("find-last-table")
def find_last_table(run: Run, planned: RelevancePlan, given: str) -> TableRecord:
    """Return the table ``given``, or the one in the workspace with the most samples.

    Raises:
        ArtifactConflictError: If there is none, or the given one was measured in another way.
    """
    if given:
        made = read_provenance(given)
        difference = _difference(made, planned)
        if difference:
            raise ArtifactConflictError(
                f"{given} cannot be added to: {difference}; repeat the settings it was built with"
            )
        return _record(given, made)

    found = known_tables(run, planned)
    if not found:
        raise ArtifactConflictError(
            f"{join(run.workspace, 'relevance')} holds no table of these networks and settings to add to; "
            "build one first"
        )

    # of equally large tables always the same one, so that every machine adds to it
    return largest(found)


def largest(tables: Sequence[TableRecord]) -> TableRecord:
    """Return the table with the most samples, and of several always the same."""
    return max(tables, key=lambda table: (table.samples, table.fingerprint))


def known_tables(run: Run, planned: RelevancePlan) -> list[TableRecord]:
    """Return the tables in the workspace that were measured as planned, whatever their samples."""
    made = ((uri, read_provenance(uri)) for uri in _tables(join(run.workspace, "relevance")))
    return [_record(uri, each) for uri, each in made if not _difference(each, planned)]


def _record(uri: str, made: Provenance) -> TableRecord:
    ranges = made.parameters["sample_ranges"]
    return TableRecord(uri=uri, fingerprint=made.fingerprint, sample_ranges=ranges)


def _tables(folder: str) -> list[str]:
    try:
        keys = [entry.key for entry in list_objects(folder, (".parquet",))]
    except MissingObjectError:
        return []
    # parts of a table lie a folder deeper
    return [join(folder, key) for key in keys if key.count("/") == 1 and key.endswith("/relevance.parquet")]


def _difference(made: Provenance, planned: RelevancePlan) -> str:
    """Return how a table was measured in another way than planned; empty if in the same."""
    wanted = {
        **planned.settings.parameters(), "kind": "relevance", "styles": planned.styles.fingerprint,
        "generator": planned.recipe.generator, "CLIP": planned.recipe.clip,
    }  # fmt: skip
    theirs = {
        **made.parameters, "kind": made.kind, "styles": made.inputs.get("styles"),
        "generator": made.generator, "CLIP": made.clip,
    }  # fmt: skip

    # another version of the step measures something else
    if made.step in (STEP, REFINE_STEP) and made.version != VERSION:
        return f"version of the step is {made.version}, not {VERSION}"

    return ", ".join(
        f"{name} is {theirs.get(name)}, not {value}"
        for name, value in wanted.items()
        if theirs.get(name) != value
    )


def check_disjoint(ranges: Sequence[tuple[int, int]]) -> None:
    """Refuse ranges of samples that overlap: a code counted twice would pass for new evidence.

    Raises:
        ArtifactConflictError: If two overlap; the message names them.
    """
    ordered = sorted(ranges)
    for (first, last), (begin, end) in pairwise(ordered):
        if begin < last:
            raise ArtifactConflictError(
                f"samples {first} to {last - 1} and {begin} to {end - 1} overlap; tables merge only over "
                "different samples"
            )


def plan_refined(last: TableRecord, added: RelevancePlan) -> Recipe:
    """Return what decides the table over last's samples and the added ones; nothing is computed.

    Raises:
        ArtifactConflictError: If some samples are in both.
    """
    check_disjoint([*last.sample_ranges, sample_range(added.settings)])
    inputs = {"last": last.fingerprint, "added": added.fingerprint}
    return Recipe(REFINE_STEP, VERSION, {}, inputs, added.recipe.generator, added.recipe.clip)


@unit_of_work("refine-relevance")
def refine_relevance(run: Run, last: TableRecord, added: RelevancePlan) -> TableRecord:
    """Merge the table over the added samples into the last one; both stay as they are.

    Raises:
        ArtifactConflictError: If some samples are in both.
    """
    recipe = plan_refined(last, added)
    uri = join(recipe.folder(run.workspace, "relevance"), "relevance.parquet")
    ranges = sorted([*last.sample_ranges, sample_range(added.settings)])

    if not is_complete(uri):
        both = (read_relevance(run, each) for each in (last.uri, added.table))
        merged = reduce(RelevanceTable.merge, both)

        # the file says how its samples were measured, as one does that was measured in one go
        about = {
            **added.settings.parameters(), "samples": sum(end - begin for begin, end in ranges),
            "sample_ranges": [list(each) for each in ranges],
        }  # fmt: skip
        styles = added.styles
        inputs = {"styles": styles.fingerprint, "statistics": styles.statistics, **recipe.inputs}
        write_table(uri, relevance_table(merged), recipe.made("relevance", inputs, **about), decided=["n"])

    return TableRecord(uri=uri, fingerprint=recipe.fingerprint, sample_ranges=ranges)
