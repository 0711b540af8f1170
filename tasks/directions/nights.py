"""What each night of a scheduled build does, decided once.

The first run of a night looks for the largest table of its networks and settings, decides whether to start
one or to add samples to that, and writes the decision down, ``nights/<build>/<date>.json``. Whoever comes
later follows what is written: a Retry, a run that starts over after a crash, a second schedule of the same
build. So no sample is measured for nothing, and none is counted twice. A night that never finished has left
no table; the next one decides on the same samples, and what is done of their shards is found done.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from styleclip.tasks.artifacts import Recipe
from styleclip.tasks.directions.refining import known_tables, largest
from styleclip.tasks.directions.relevance import RelevancePlan
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.run import Run
from styleclip.tasks.settings import Nightly
from styleclip.tasks.storage import create_bytes, exists, join, read_bytes
from styleclip_core.errors import ArtifactConflictError

STEP, VERSION = "decide-night", "1"


class Decision(BaseModel):
    """What one night does.

    Attributes:
        night: Its date.
        last_table: URI of the table to add to; empty if there is none yet.
        first_sample: Number of the first style code to measure.
        samples: Style codes to measure; 0 if there are enough.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    night: str
    last_table: str
    first_sample: int
    samples: int


def decision_uri(run: Run, planned: RelevancePlan, night: str) -> str:
    """Return where the decision of a night lies: one for all runs of the same build, whatever its samples."""
    build = Recipe(STEP, VERSION, planned.settings.parameters(), planned.recipe.inputs)
    return join(build.folder(run.workspace, "nights"), f"{night}.json")


@unit_of_work("decide-night", "decide-{night}")
def decide_night(run: Run, planned: RelevancePlan, nightly: Nightly, night: str) -> Decision:
    """Return what was decided for a night, or decide it.

    Args:
        run: Networks and workspace.
        planned: The table as the first night builds it.
        nightly: How much a night adds, and when there is enough.
        night: Date of the night.

    Raises:
        ArtifactConflictError: If what is written down is no decision, or its table has gone.
    """
    uri = decision_uri(run, planned, night)
    if exists(uri):
        return _read(uri)
    create_bytes(uri, _decide(run, planned, nightly, night).model_dump_json().encode())
    return _read(uri)  # of two runs that decide at once, one is heard


def foresee_night(run: Run, planned: RelevancePlan, nightly: Nightly, night: str) -> Decision:
    """Return what was decided for a night, or would be, as ``decide_night`` does; nothing is written."""
    uri = decision_uri(run, planned, night)
    return _read(uri) if exists(uri) else _decide(run, planned, nightly, night)


def _decide(run: Run, planned: RelevancePlan, nightly: Nightly, night: str) -> Decision:
    tables = known_tables(run, planned)
    if not tables:
        settings = planned.settings
        return Decision(
            night=night, last_table="", first_sample=settings.first_sample, samples=settings.samples
        )

    # of equally large tables always the same one, so that every machine decides alike
    last = largest(tables)
    samples = max(0, min(nightly.samples, nightly.most - last.samples))
    return Decision(night=night, last_table=last.uri, first_sample=last.last, samples=samples)


def _read(uri: str) -> Decision:
    remedy = "delete it, and the next run decides again"
    try:
        decided = Decision.model_validate_json(read_bytes(uri))
    except ValidationError as error:
        raise ArtifactConflictError(f"{uri} is no decision about a night; {remedy}") from error

    if decided.last_table and not exists(decided.last_table):
        raise ArtifactConflictError(f"{uri} adds to {decided.last_table}, which has gone; {remedy}")
    return decided
