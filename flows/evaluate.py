"""Evaluate the edits that a manifest lists.

manifest -> shards of images with all their edits -> scores -> evaluation, summary per edit
unedited images --------------------------------------^
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from styleclip.flows import engine
from styleclip.flows.failures import refuse_failures
from styleclip.flows.run import (
    StepCounts,
    begin,
    check_places,
    counts,
    gather_items,
    is_retry,
    pipeline,
    summarize,
)
from styleclip.tasks.artifacts import read_table
from styleclip.tasks.artifacts.outcomes import OK
from styleclip.tasks.evaluation.attributes import FACES, AttributePrompts, load_attributes
from styleclip.tasks.evaluation.manifest import find_inversions, index_edits, place_of
from styleclip.tasks.evaluation.shards import EvaluationRef, evaluate_shard, plan_evaluation
from styleclip.tasks.evaluation.tables import gather_evaluation, markdown
from styleclip.tasks.reports.page.links import parent
from styleclip.tasks.settings import Comparison, Execution, Judges, OptionalUri, OrUsual, SettingsError, Uri
from styleclip.tasks.storage import join


class EvaluationResult(BaseModel):
    """What an evaluation did, and where its tables lie."""

    model_config = ConfigDict(frozen=True)

    steps: list[StepCounts]
    evaluation: EvaluationRef


@pipeline("evaluate-edits")
def evaluate_edits(
    manifest: Uri,
    attributes: tuple[AttributePrompts, ...] = (),
    judges: OrUsual[Judges] = Judges(),
    comparison: OrUsual[Comparison] = Comparison(),
    out: OptionalUri = "",
    workspace: OptionalUri = "",
    execution: OrUsual[Execution] = Execution(),
) -> EvaluationResult:
    """Score every edit of a manifest; what an earlier run scored is found and kept.

    Args:
        manifest: URI of a manifest.parquet of a batch, or of a table of the same columns.
        attributes: Attributes to score, each a pair of prompts; those of faces if none are given.
        judges: Networks that score.
        comparison: What an edit is compared with.
        out: URI that the manifest's output keys are relative to; where `edit` leaves them if empty.
        workspace: URI of the folder for artifacts; the one of the edits if empty.
        execution: How the work is run; none of it changes a result.
    """
    listed = list(attributes) or load_attributes(FACES)
    out = out or place_of(manifest)
    workspace = workspace or join(out, "workspace")
    # tables lie beside the manifest
    run = begin(judges, execution, workspace, parent(manifest), files=[manifest])

    index = index_edits(run, manifest, out, execution.shard_size)
    check_places([index.photographs], workspace=workspace)
    if comparison.before == "photograph" and not index.photographs:
        raise SettingsError(f"{manifest} does not say where its photographs lie; compare with inversions")
    drawn = comparison.before == "inversion"
    before = find_inversions(run, index) if drawn else index.photographs
    planned = engine.run(plan_evaluation, run, index, comparison, listed, before)

    calls = [(run, planned, shard) for shard in index.shards]
    summary = gather_items("evaluate-edits", evaluate_shard, calls)
    # a Retry may have mended rows of shards that were finished, which the kept result does not know
    gathering = gather_evaluation.with_options(refresh_cache=is_retry())
    written = engine.run(gathering, run, planned)

    done = [counts(summary)]
    headline = f"{written.rows} edits scored, {written.failed} failed"
    summarize("evaluate-edits", headline, done, {"evaluation": written.folder}, sections=[markdown(written)])

    # edits that have no image to score failed before, in the run that made them
    rows = read_table(written.evaluation, ["output_key", "status", "error_type"]).to_pylist()
    scored = [row for row in rows if row["output_key"] is not None]
    broken = [row for row in scored if row["status"] != OK]
    refuse_failures(execution, "edits", len(scored), len(broken), broken, written.evaluation)
    return EvaluationResult(steps=done, evaluation=written)
