"""Cut the faces out of the photographs under a prefix.

bucket prefix -> index in shards -> aligned faces (a row per face; one for a photograph without any)
                                 -> faces.parquet, by which paste-faces finds the way back
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from styleclip.flows import engine
from styleclip.flows.failures import refuse_failures
from styleclip.flows.run import (
    StepCounts,
    announce,
    begin,
    counts,
    gather_items,
    is_retry,
    leaving,
    pipeline,
    summarize,
)
from styleclip.flows.steps import photographs
from styleclip.tasks.artifacts.outcomes import FAILED
from styleclip.tasks.photographs import faces
from styleclip.tasks.photographs.datasets.front import locate
from styleclip.tasks.reports.summaries import failed_items
from styleclip.tasks.running.run import Networks
from styleclip.tasks.settings import Alignment, DataSet, Execution, FaceSource, OptionalUri, OrUsual, Uri


class AlignResult(BaseModel):
    """What the flow returns: where the faces lie and what it did."""

    model_config = ConfigDict(frozen=True)

    steps: list[StepCounts]
    faces: faces.FacesRef
    passed_over: str = ""


@pipeline("align-faces")
def align_faces(
    source: FaceSource,
    photos: Uri,
    out: Uri,
    workspace: OptionalUri = "",
    alignment: OrUsual[Alignment] = Alignment(),
    execution: OrUsual[Execution] = Execution(),
    dataset: OrUsual[DataSet] = DataSet(),
) -> AlignResult:
    """Align every face of every photograph; a photograph without a face is a row, and no failure.

    Args:
        source: Where faces come from: a detector, or landmarks.
        photos: URI of the data set, e.g. the prefix s3://photographs/2031; it is only read.
        out: URI of the prefix for the aligned faces, outside of the photographs.
        workspace: URI of the folder for artifacts, which later runs find and keep; OUT/workspace if empty.
        alignment: How faces are cut out.
        execution: How the work is run; none of it changes a result.
        dataset: How the data set is read, and which of its images count.
    """
    located = locate(photos, dataset)
    run = begin(Networks(), execution, workspace, out, sources=located.swept)
    source_hash = engine.run(faces.identify_source, run, source)
    index = photographs.index(run, located, execution)
    announce("align-faces", f"cuts the faces out of {index.rows} photographs under {photos}, into {out}")

    planned = faces.plan(run, index.photos, source, source_hash, alignment)
    calls = [(run, planned, shard) for shard in index.shards]
    with leaving(lambda why, _quickly: faces.write_partial_faces(planned, index, why)):
        summary = gather_items("align-faces", faces.align_shard, calls)

    # a Retry may have mended rows of shards that were finished, which the kept result does not know
    written = faces.write_faces.with_options(refresh_cache=is_retry())(planned, index)

    done = [counts(summary)]
    left = f", {written.left_over} faces of no photograph any more" if written.left_over else ""
    headline = (
        f"{written.aligned} faces of {written.photographs} photographs, {written.failed} failed{left}"
        f"{index.aside}"
    )
    places = {"table of faces": written.table, "faces": written.faces}
    problems = failed_items(summary.results)
    summarize("align-faces", headline, done, places, problems)

    # a photograph without a face, or a face that was left out, is no failure
    broken = [row for row in problems if row["status"] == FAILED]
    refuse_failures(
        execution, "rows of photographs and faces", summary.rows, summary.failed, broken, written.table
    )
    return AlignResult(steps=done, faces=written, passed_over=index.passed_over)
