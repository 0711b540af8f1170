"""Cut the faces out of the photographs under a prefix.

bucket prefix -> index in shards -> aligned faces (a row per face; one for a photograph without any)
                                 -> faces.parquet, by which paste-faces finds the way back
"""

from __future__ import annotations

from prefect import flow
from pydantic import BaseModel, ConfigDict

from flows import engine, steps
from tasks import faces, models
from tasks.caching import probe_result_storage
from tasks.settings import Alignment, Execution, FaceSource, OptionalUri, Uri
from tasks.summaries import failed_items


class AlignResult(BaseModel):
    """What the flow returns: where the faces lie and what it did."""

    model_config = ConfigDict(frozen=True)

    steps: list[steps.StepCounts]
    faces: faces.FacesRef


@flow(name="align-faces", task_runner=steps.task_runner(), persist_result=True)
def align_faces(
    source: FaceSource,
    photos: Uri,
    out: Uri,
    workspace: OptionalUri = "",
    alignment: Alignment = Alignment(),
    execution: Execution = Execution(),
) -> AlignResult:
    """Align every face of every photograph; a photograph without a face is a row, not a failed run.

    Args:
        source: Where faces come from: a detector, or landmarks.
        photos: URI of the prefix that holds the photographs, e.g. s3://photographs/2031; it is only read.
        out: URI of the prefix for the aligned faces, outside of the photographs.
        workspace: URI of the folder for artifacts, which later runs find and keep; OUT/workspace if empty.
        alignment: How faces are cut out.
        execution: How the work is run; none of it changes a result.
    """
    place = workspace or f"{out.rstrip('/')}/workspace"
    steps.check_places(photos, out, place)
    steps.clear_up(out, place)
    device = engine.pick_device(execution)
    models.share_cores(device)
    probe_result_storage()
    source_hash = engine.run(faces.identify_source, source, device)
    index = steps.index(photos, place, execution)
    planned = faces.plan(photos, out, place, source, source_hash, alignment)
    calls = [(planned, shard, device) for shard in index.shards]
    summary = steps.gather_items("align-faces", faces.align_shard, calls)
    write = faces.write_faces.with_options(refresh_cache=steps.is_retry())
    done, written = [steps.counts(summary)], write(planned, index)
    headline = f"{written.aligned} faces of {written.photographs} photographs, {written.failed} failed"
    places = {"table of faces": written.table, "faces": written.faces}
    steps.summarize("align-faces", headline, done, places, failed_items(summary.results))
    return AlignResult(steps=done, faces=written)
