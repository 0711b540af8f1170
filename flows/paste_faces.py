"""Put edited faces back into their photographs.

faces.parquet, photographs ----------+
prefix of edited faces, or manifest -+-> index in shards -> photographs with their faces, pasted.parquet
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
from styleclip.tasks.evaluation.variants import choose_variants
from styleclip.tasks.photographs import pasting
from styleclip.tasks.photographs.edited_faces import EditedFaces
from styleclip.tasks.reports.summaries import failed_items
from styleclip.tasks.running.run import Networks
from styleclip.tasks.settings import Execution, OptionalUri, OrUsual, Pasting, SettingsError, Uri


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
        edited: URI of the prefix that holds the edited faces, under the names of that table, or of the
            manifest.parquet of a batch, which says where they lie, also in tars and tables.
        out: URI of the prefix for the photographs with their edited faces.
        photos: URI of the prefix that holds the photographs; where they lay at alignment if empty.
        workspace: URI of the folder for artifacts, which later runs find and keep; OUT/workspace if empty.
        settings: How faces are put back.
        execution: How the work is run; none of it changes a result.
    """
    # first, as only the table knows where the photographs lie, in which nothing may be written
    table = pasting.identify_faces(faces, photos)
    on_cpu = execution.model_copy(update={"device": "cpu"})  # there is nothing to do for a GPU
    manifest = edited.endswith(".parquet")
    places, files = ([table.photos], [edited]) if manifest else ([table.photos, edited], [])
    run = begin(Networks(), on_cpu, workspace, out, sources=places, files=files)

    if manifest:
        variants = choose_variants(run, edited, settings.variant)
    elif settings.variant:
        raise SettingsError(f"variant {settings.variant[0]!r} is one of a manifest, and {edited} is none")
    else:
        variants = [EditedFaces(prefix=edited)]
    planned = [pasting.plan(run, table, each, settings) for each in variants]
    indexes = [pasting.index_edited(run, table, each, execution.shard_size) for each in variants]

    with leaving(lambda why, _quickly: pasting.write_partial_pasted(planned, indexes, why)):
        summary = gather_items("paste-faces", pasting.paste_shard, pasting.shards_of(planned, indexes))

    # a Retry may have mended rows of shards that were finished, which the kept result does not know
    written = pasting.write_pasted.with_options(refresh_cache=is_retry())(planned, indexes)

    done = [counts(summary)]
    headline = f"{written.pasted} photographs with their edited faces, {written.failed} failed"
    problems = failed_items(summary.results)
    results = {"table": written.table, "photographs": written.photographs}
    summarize("paste-faces", headline, done, results, problems)

    # a photograph of which no face was edited by choice is no failure
    broken = [row for row in problems if row["status"] == FAILED]
    refuse_failures(execution, "photographs", summary.rows, summary.failed, broken, written.table)
    return PasteResult(steps=done, pasted=written)
