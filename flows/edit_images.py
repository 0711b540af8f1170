"""Edit the images under a prefix by text: the whole chain.

seeds ----> style codes, statistics -> relevance table --+
prompts ------------------------------> style directions, mappers, optimizations --+
bucket prefix -> index -> latents ----------------------------------------> edited images,
                                                                manifest, contact sheet, page
"""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from pydantic import Field

from flows import steps
from tasks.choosing import ChoicePlan, ChosenStrength
from tasks.edits import Edit, all_variants, automatic_steps, replace_steps, stand_in
from tasks.settings import (
    Choosing,
    Execution,
    Instant,
    Inversion,
    Models,
    OptionalUri,
    Relevance,
    Sampling,
    Uri,
)


@flow(name="edit-images", task_runner=steps.task_runner(), persist_result=True)
def edit_images(
    models: Models,
    photos: Uri,
    out: Uri,
    edits: Annotated[list[Edit], Field(min_length=1)],
    workspace: OptionalUri = "",
    sampling: Sampling = Sampling(),
    relevance: Relevance = Relevance(),
    inversion: Inversion = Inversion(),
    execution: Execution = Execution(),
    table: OptionalUri = "",
    instant: Instant = Instant(),
    choosing: Choosing = Choosing(),
) -> steps.RunResult:
    """Edit every image with every edit; what an earlier run finished is found and kept.

    Args:
        models: Networks to use; files may lie on any storage that the worker can read.
        photos: URI of the prefix that holds the photographs, e.g. s3://photographs/2031; it is only read.
        out: URI of the prefix for the results, outside of the photographs.
        edits: What to do to every image; several edits share latents and table.
        workspace: URI of the folder for artifacts, which later runs find and keep; OUT/workspace if empty.
        sampling: Style codes to sample, and the statistics of style space.
        relevance: How the relevance table is measured.
        inversion: How photographs become latents.
        execution: How the work is run; none of it changes a result.
        table: URI of a folder with relevance.parquet and statistics.parquet, as an import of the published
            files leaves them; without one the table is built first, or found built.
        instant: How relevance is taken from gradients, for edits that ask for that.
        choosing: How alpha and beta are chosen, on some of the inverted images, where an edit says auto.
    """
    place = workspace or f"{out.rstrip('/')}/workspace"
    variants = all_variants(replace_steps(edits, stand_in))
    steps.check_places(photos, out, place)
    hashes, device = steps.begin(models, execution, place, out)
    steps.check_edits(variants, models, device)
    others = steps.prepare_others(variants, models, hashes, device)
    index = steps.index(photos, place, execution)
    styles, found, done = None, None, list[steps.StepCounts]()
    if steps.needs(variants, "instant"):
        sampling = sampling.model_copy(update={"codes": max(sampling.codes, instant.codes)})
    if steps.needs(variants, "table"):
        styles, found, done = steps.table_for(models, hashes, sampling, relevance, place, device, given=table)
    if steps.needs(variants, "instant") and styles is None:
        styles, sampled = steps.sample(models, hashes, sampling, place, device)
        done.append(steps.counts(sampled))
    shared = (found, models, hashes, place, device, others, styles, instant)
    choices = list[ChosenStrength]()
    if automatic_steps(edits):
        inverted, inverting = steps.invert(index, place, models, hashes, inversion, device)
        done.append(steps.counts(inverting))
        planned = ChoicePlan(
            models=models, hashes=hashes, workspace=place, settings=choosing, instant=instant, table=found,
            styles=styles, inversion=inverted, shards=index.shards,
        )  # fmt: skip
        edits, choices = steps.choose(edits, planned, device)
        variants = all_variants(edits)
    prepared = steps.directions(variants, *shared)
    diagnosis = steps.diagnose(prepared, models, hashes, place, device)
    plans, summaries = steps.invert_and_edit(prepared, index, out, place, models, hashes, inversion, device)
    done += [steps.counts(summary) for summary in summaries[1 if choices else 0 :]]
    return steps.RunResult(
        steps=done,
        styles=styles,
        table=found,
        latents=plans[0].inversion.folder,
        diagnosis=diagnosis,
        step_similarity=steps.compare(plans, index, device),
        report=steps.report(plans, index, place, done, [each.uri for each in choices]),
        edits=edits,
        choices=choices,
    )
