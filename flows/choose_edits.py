"""Choose alpha and beta of edits by text, without editing anything.

seeds ----> style codes, statistics -> relevance table --+
bucket prefix -> index -> latents, or style codes -------+--> every pair tried, and the edits in numbers
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from styleclip.flows.run import RunResult, StepCounts, begin, counts, pipeline, summarize
from styleclip.flows.steps import editing, photographs
from styleclip.flows.steps.table import look_at, sample, table_for
from styleclip.tasks.directions.choosing import ChoicePlan
from styleclip.tasks.photographs.datasets.front import locate
from styleclip.tasks.running.shown import code, plain
from styleclip.tasks.settings import (
    Choosing,
    DataSet,
    Execution,
    Instant,
    Inversion,
    Models,
    OptionalUri,
    OrUsual,
    Relevance,
    Sampling,
    Uri,
)
from styleclip.tasks.settings.edits import (
    MOST_VARIANTS,
    Edit,
    all_variants,
    automatic_steps,
    replace_steps,
    stand_in,
)


@pipeline("choose-edits")
def choose_edits(
    models: Models,
    edits: list[Edit],
    workspace: Uri,
    photos: OptionalUri = "",
    sampling: OrUsual[Sampling] = Sampling(),
    relevance: OrUsual[Relevance] = Relevance(),
    inversion: OrUsual[Inversion] = Inversion(),
    execution: OrUsual[Execution] = Execution(),
    table: OptionalUri = "",
    instant: OrUsual[Instant] = Instant(),
    choosing: OrUsual[Choosing] = Choosing(),
    most_variants: Annotated[int, Field(ge=1)] = MOST_VARIANTS,
    dataset: OrUsual[DataSet] = DataSet(),
) -> RunResult:
    """Put numbers in place of every auto: chosen on the images under a prefix, or on sampled style codes.

    Args:
        models: Networks to use; files may lie on any storage that the worker can read.
        edits: Edits of which some say auto.
        workspace: URI of the folder for artifacts, which later runs find and keep.
        photos: URI of a data set of images to choose on; sampled style codes if empty.
        sampling: Style codes to sample, and the statistics of style space.
        relevance: How the relevance table is measured.
        inversion: How images become latents.
        execution: How the work is run; none of it changes a result.
        table: URI of a folder with relevance.parquet and statistics.parquet, as an import of the published
            files leaves them; without one the table is built first, or found built.
        instant: How relevance is taken from gradients, for edits that ask for that.
        choosing: How alpha and beta are chosen.
        most_variants: Variants of every image that the edits may stand for, every strength and threshold
            counted; more are refused, so that a slip in a list of values is no month of work.
        dataset: How the data set is read, and which of its images count.
    """
    wanted = automatic_steps(edits)
    variants = all_variants(replace_steps(edits, stand_in), most_variants)
    located = locate(photos, dataset) if photos else None
    run = begin(models, execution, workspace, sources=located.swept if located else [])
    editing.check_edits(run, variants)

    # channels come from a table, or from gradients at sampled codes; without photographs the codes judge too
    styles, found, done = None, None, list[StepCounts]()
    most = max(sampling.codes, instant.codes, 0 if photos else choosing.images)
    sampling = sampling.model_copy(update={"codes": most})
    if any(step.relevance == "table" for step in wanted):
        styles, found, done = table_for(run, sampling, relevance, given=table)
    if styles is None and wanted and (not photos or found is None):
        styles, sampled = sample(run, sampling)
        done.append(counts(sampled))

    seen = None
    if any(step.relevance == "matched" for step in wanted):
        seen, looked = look_at(run, sampling)
        done.append(counts(looked))

    editing.check_thresholds(run, wanted, found, styles, instant, seen)
    planned = ChoicePlan(settings=choosing, instant=instant, table=found, styles=styles, seen=seen)
    passed_over = ""
    if located and wanted:
        index = photographs.index(run, located, execution)
        passed_over = index.passed_over
        inverted, summary = photographs.invert(run, index, inversion)
        done.append(counts(summary))
        planned = planned.model_copy(update={"inversion": inverted, "shards": index.shards})

    chosen, choices = editing.choose(run, edits, planned)
    lines = [f"- {code(each.target)}: {plain(each.summary)}" for each in choices]
    places = {f"pairs tried for {each.target}": each.uri for each in choices}
    summarize("choose-edits", f"{len(choices)} choices", done, places, sections=["\n".join(lines)])
    return RunResult(
        steps=done, styles=styles, table=found, edits=chosen, choices=choices, passed_over=passed_over
    )
