"""Put edited faces back into their photographs.

faces.parquet, photographs --+
prefix of edited faces ------+-> index in shards -> photographs with their faces, pasted.parquet
"""

from __future__ import annotations

from prefect import flow
from pydantic import BaseModel, ConfigDict

from flows import steps
from tasks import models, pasting
from tasks.caching import probe_result_storage
from tasks.settings import Execution, OptionalUri, Pasting, Uri
from tasks.summaries import failed_items


class PasteResult(BaseModel):
    """What the flow returns: where the photographs lie and what it did."""

    model_config = ConfigDict(frozen=True)

    steps: list[steps.StepCounts]
    pasted: pasting.PastedRef


@flow(name="paste-faces", task_runner=steps.task_runner(), persist_result=True)
def paste_faces(
    faces: Uri,
    edited: Uri,
    out: Uri,
    photos: OptionalUri = "",
    workspace: OptionalUri = "",
    settings: Pasting = Pasting(),
    execution: Execution = Execution(),
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
    place = workspace or f"{out.rstrip('/')}/workspace"
    models.share_cores("cpu")
    probe_result_storage()
    table = pasting.identify_faces(faces, photos)
    for source in (table.photos, edited):
        steps.check_places(source, out, place)
    steps.clear_up(out, place)
    index = pasting.index_edited(table, edited, place, execution.shard_size)
    planned = pasting.plan(table, edited, out, place, settings)
    calls = [(planned, shard) for shard in index.shards]
    summary = steps.gather_items("paste-faces", pasting.paste_shard, calls)
    write = pasting.write_pasted.with_options(refresh_cache=steps.is_retry())
    done, written = [steps.counts(summary)], write(planned, index)
    headline = f"{written.pasted} photographs with their edited faces, {written.failed} failed"
    places = {"table": written.table, "photographs": written.photographs}
    steps.summarize("paste-faces", headline, done, places, failed_items(summary.results))
    return PasteResult(steps=done, pasted=written)
