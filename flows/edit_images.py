"""Edit the images under a prefix by text: the whole chain.

seeds ----> style codes, statistics -> relevance table --+
prompts ------------------------------> style directions, mappers, optimizations --+
bucket prefix -> index -> latents ----------------------------------------> edited images,
                                                                manifest, contact sheet, page
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from styleclip.flows.dry_run import foretell, only_told, sample_edits, tell
from styleclip.flows.estimates import Outlook
from styleclip.flows.failures import refuse_failures
from styleclip.flows.run import RunResult, StepCounts, begin, check_places, counts, leaving, pipeline
from styleclip.flows.steps import editing, photographs
from styleclip.flows.steps.dry_runs import Editing, Foreseen
from styleclip.flows.steps.looking import listing
from styleclip.flows.steps.report import partial_report, report
from styleclip.flows.steps.table import described, look_at, sample, table_for
from styleclip.tasks.directions.choosing import ChoicePlan, ChosenStrength
from styleclip.tasks.editing.plans import Chosen
from styleclip.tasks.inspection import carried
from styleclip.tasks.photographs.datasets.front import locate
from styleclip.tasks.reports.batch import broken_items
from styleclip.tasks.running.rates import Rates
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
    Saving,
    Uri,
)
from styleclip.tasks.settings.by_image import differs
from styleclip.tasks.settings.edits import (
    MOST_VARIANTS,
    Edit,
    all_steps,
    all_variants,
    automatic_steps,
    replace_steps,
    stand_in,
)
from styleclip.tasks.storage import join
from styleclip_core.images import check_format


@pipeline("edit-images")
def edit_images(
    models: Models,
    photos: Uri,
    out: Uri,
    edits: Annotated[list[Edit], Field(min_length=1)],
    workspace: OptionalUri = "",
    sampling: OrUsual[Sampling] = Sampling(),
    relevance: OrUsual[Relevance] = Relevance(),
    inversion: OrUsual[Inversion] = Inversion(),
    execution: OrUsual[Execution] = Execution(),
    table: OptionalUri = "",
    instant: OrUsual[Instant] = Instant(),
    choosing: OrUsual[Choosing] = Choosing(),
    most_variants: Annotated[int, Field(ge=1)] = MOST_VARIANTS,
    dataset: OrUsual[DataSet] = DataSet(),
    saving: OrUsual[Saving] = Saving(),
    dry_run: bool = False,
) -> RunResult:
    """Edit every image with every edit; what an earlier run finished is found and kept.

    Args:
        models: Networks to use; files may lie on any storage that the worker can read.
        photos: URI of the data set, e.g. s3://photographs/2031, a list, or tar shards; only read.
        out: URI of the prefix for the results, outside of the photographs.
        edits: What to do to every image; several edits share latents and table.
        workspace: URI of the folder for artifacts, which later runs find and keep; OUT/workspace if empty.
        sampling: Style codes to sample, and the statistics of style space.
        relevance: How the relevance table is measured.
        inversion: How photographs become latents.
        execution: How the work is run; none of it changes a result.
        table: URI of a folder with a relevance table; without one it is built first, or found built.
        instant: How relevance is taken from gradients, for edits that ask for that.
        choosing: How alpha and beta are chosen, on some of the inverted images, where an edit says auto.
        most_variants: Variants of an image that the edits may stand for; more are refused.
        dataset: How the data set is read, and which of its images count.
        saving: What edited images are written as: format, quality, size, loose or in tars and tables.
        dry_run: Say what would be computed, found done and written, and what it would cost; do nothing.
    """
    all_variants(replace_steps(edits, stand_in), most_variants)
    # what is read may be the folder of all edits' images, though out lies above it
    located = locate(photos, dataset)
    check_places(located.swept, out=out, images=join(out, "images"))
    given = [join(table, "relevance.parquet")] if table else []
    run = begin(models, execution, workspace, out, sources=located.swept, files=given, dry=dry_run)
    looking = Foreseen(
        sampling=sampling, relevance=relevance, inversion=inversion, instant=instant, choosing=choosing,
        table=table, most_variants=most_variants, saving=saving,
    )  # fmt: skip
    if dry_run:
        with listing(run, located, execution) as (aside, listed):
            edits, named = editing.assign_here(aside, edits, listed, most_variants)
            seen = Editing(run, listed, edits, named, looking)
            forecast = tell(
                "edit-images", run, seen.outlook, sample_edits(run, seen), execution.price_per_hour
            )
        return only_told(RunResult(forecast=forecast, passed_over=listed.passed_over))

    # edits that name columns are known once the images are
    index = photographs.index(run, located, execution) if any(map(differs, edits)) else None
    chosen: list[Chosen | None] = [None] * len(edits)
    if index:
        edits, chosen = editing.assign(run, edits, index, most_variants)
    variants = all_variants(replace_steps(edits, stand_in), most_variants, by_image=any(chosen))

    # what cannot work ends the run here, before hours of work on the table
    check_format(saving.format)
    editing.check_edits(run, variants)
    index = index or photographs.index(run, located, execution)
    edits = editing.fitted(edits, index, chosen)
    variants = all_variants(replace_steps(edits, stand_in), most_variants, by_image=any(chosen))
    others = editing.prepare_others(run, variants, sampling)

    about = (
        f"edits {index.rows} photographs under {photos} with {len(edits)} edits ({len(variants)} variants)"
    )
    table_too = [described(run, relevance, given=table)] if editing.needs(variants, "table") else []
    plan = "; ".join([f"{about}, into {out}", "inverts them", *table_too])

    def look(rates: Rates) -> Outlook:
        return Editing(run, index, edits, chosen, looking, others).outlook(rates)

    count = len(index.shards) * len(variants)
    foretell("edit-images", run, plan, look, execution.price_per_hour, shards=count)

    # relevance comes from a table or from gradients at sampled codes, as the edits ask for
    styles, found, done = None, None, list[StepCounts]()
    if editing.needs(variants, "instant"):
        sampling = sampling.model_copy(update={"codes": max(sampling.codes, instant.codes)})
    if editing.needs(variants, "table"):
        styles, found, done = table_for(run, sampling, relevance, given=table)
    if editing.needs(variants, "instant") and styles is None:
        styles, sampled = sample(run, sampling)
        done.append(counts(sampled))

    shown = None
    if editing.needs(variants, "matched"):
        shown, looked = look_at(run, sampling)
        done.append(counts(looked))
        editing.find_channels(run, variants, shown)

    # alpha and beta are chosen on the images themselves, so these are inverted first
    choices = list[ChosenStrength]()
    if automatic_steps(edits):
        editing.check_thresholds(run, all_steps(edits), found, styles, instant, shown)
        inverted, inverting = photographs.invert(run, index, inversion)
        done.append(counts(inverting))
        planned = ChoicePlan(
            settings=choosing, instant=instant, table=found, styles=styles, inversion=inverted,
            shards=index.shards, seen=shown,
        )  # fmt: skip
        edits, choices = editing.choose(run, edits, planned)
        variants = all_variants(edits, most_variants, by_image=any(chosen))

    prepared = editing.directions(run, variants, others, found, styles, instant, shown)
    uncarried = editing.refuse_uncarried(run, editing.distinct_steps(variants), found, execution)
    diagnosis, said = editing.diagnose(run, prepared)
    each = editing.chosen_by_variant(edits, chosen)
    plans = editing.plan(run, prepared, index, inversion, saving, each)
    tried = [each.uri for each in choices]

    # whatever ends this early leaves manifest and page of the shards that are done
    with leaving(lambda why, quickly: partial_report(run, plans, index, why, tried, quickly=quickly)):
        summaries = editing.invert_and_edit(run, plans, index)
        # where strengths were chosen, inverting has been counted
        done += [counts(summary) for summary in summaries[1 if choices else 0 :]]
        compared = editing.compare(run, plans, index)

    written = report(run, plans, index, done, tried, sections=[*carried.sections(uncarried), said])
    if written.failed:
        broken = broken_items(written.manifest)
        refuse_failures(execution, "edits", written.rows, written.failed, broken, written.manifest)
    return RunResult(
        steps=done,
        styles=styles,
        table=found,
        latents=plans[0].inversion.folder,
        diagnosis=diagnosis,
        step_similarity=compared,
        report=written,
        edits=edits,
        choices=choices,
        passed_over=index.passed_over,
    )
