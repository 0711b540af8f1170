"""Put edited faces back into their photographs.

faces.parquet, photographs --+
prefix of edited faces ------+-> index in shards -> photographs with their faces, pasted.parquet
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from styleclip.flows.failures import refuse_failures
from styleclip.flows.run import (
    StepCounts,
    begin,
    counts,
    gather_items,
    is_retry,
    leaving,
    pipeline,
    summarize,
)
from styleclip.tasks.artifacts.outcomes import FAILED
from styleclip.tasks.photographs import pasting
from styleclip.tasks.reports.summaries import failed_items
from styleclip.tasks.running.run import Networks
from styleclip.tasks.settings import Execution, OptionalUri, OrUsual, Pasting, Uri


class PasteResult(BaseModel):
    """What the flow returns: where the photographs lie and what it did."""

    model_config = ConfigDict(frozen=True)

    steps: list[StepCounts]
    pasted: pasting.PastedRef


@pipeline("paste-faces")
def paste_faces(
    faces: Uri,
    edited: Uri,
    out: Uri,
    photos: OptionalUri = "",
    workspace: OptionalUri = "",
    settings: OrUsual[Pasting] = Pasting(),
    execution: OrUsual[Execution] = Execution(),
) -> PasteResult:
    """Put the edited faces of a table back; ``photos`` is only needed where the photographs have moved.

    Args:
        faces: URI of faces.parquet, the table that align-faces wrote.
        edited: URI of the prefix that holds the edited faces, under the names of that table.
        out: URI of the prefix for the photographs with their edited faces.
        photos: URI of the prefix that holds the photographs; where they lay at alignment if empty.
        workspace: URI of the folder for artifacts, which later runs find and keep; OUT/workspace if empty.
        settings: How faces are put back.
        execution: How the work is run; none of it changes a result.
    """
    # first, as only the table knows where the photographs lie, in which nothing may be written
    table = pasting.identify_faces(faces, photos)
    on_cpu = execution.model_copy(update={"device": "cpu"})  # there is nothing to do for a GPU
    run = begin(Networks(), on_cpu, workspace, out, sources=[table.photos, edited])
    index = pasting.index_edited(run, table, edited, execution.shard_size)

    planned = pasting.plan(run, table, edited, settings)
    calls = [(planned, shard) for shard in index.shards]
    with leaving(lambda why, _quickly: pasting.write_partial_pasted(planned, index, why)):
        summary = gather_items("paste-faces", pasting.paste_shard, calls)

    # a Retry may have mended rows of shards that were finished, which the kept result does not know
    written = pasting.write_pasted.with_options(refresh_cache=is_retry())(planned, index)

    done = [counts(summary)]
    headline = f"{written.pasted} photographs with their edited faces, {written.failed} failed"
    places = {"table": written.table, "photographs": written.photographs}
    problems = failed_items(summary.results)
    summarize("paste-faces", headline, done, places, problems)

    # a photograph of which no face was edited by choice is no failure
    broken = [row for row in problems if row["status"] == FAILED]
    refuse_failures(execution, "photographs", summary.rows, summary.failed, broken, written.table)
    return PasteResult(steps=done, pasted=written)
