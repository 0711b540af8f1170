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
from tasks.progress import gather
from tasks.settings import Alignment, Execution, FaceSource


class AlignResult(BaseModel):
    """What the flow returns: where the faces lie and what it did."""

    model_config = ConfigDict(frozen=True)

    steps: list[steps.StepCounts]
    faces: faces.FacesRef


@flow(name="align-faces", task_runner=steps.task_runner(), persist_result=True)
def align_faces(
    source: FaceSource,
    photos: str,
    out: str,
    workspace: str = "",
    alignment: Alignment = Alignment(),
    execution: Execution = Execution(),
) -> AlignResult:
    """Align every face of every photograph; a photograph without a face is a row, not a failed run."""
    place = workspace or f"{out.rstrip('/')}/workspace"
    steps.check_places(photos, out, place)
    device = engine.pick_device(execution)
    models.share_cores(device)
    probe_result_storage()
    source_hash = engine.run(faces.identify_source, source, device)
    index = steps.index(photos, place, execution)
    planned = faces.plan(photos, out, place, source, source_hash, alignment)
    summary = gather(
        "align-faces", [faces.align_shard.submit(planned, shard, device) for shard in index.shards]
    )
    return AlignResult(steps=[steps.counts(summary)], faces=faces.write_faces(planned, index))
