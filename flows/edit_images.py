"""Edit the images under a prefix by text: the whole chain.

seeds ----> style codes, statistics -> relevance table --+
prompts ------------------------------> style directions, mappers, optimizations --+
bucket prefix -> index -> latents ----------------------------------------> edited images,
                                                                manifest, contact sheet, page
"""

from __future__ import annotations

from prefect import flow

from flows import steps
from tasks.choosing import ChoicePlan, ChosenStrength
from tasks.edits import Edit, all_variants, automatic_steps, replace_steps, stand_in
from tasks.settings import Choosing, Execution, Instant, Inversion, Models, Relevance, Sampling


@flow(name="edit-images", task_runner=steps.task_runner(), persist_result=True)
def edit_images(
    models: Models,
    photos: str,
    out: str,
    edits: list[Edit],
    workspace: str = "",
    sampling: Sampling = Sampling(),
    relevance: Relevance = Relevance(),
    inversion: Inversion = Inversion(),
    execution: Execution = Execution(),
    table: str = "",
    instant: Instant = Instant(),
    choosing: Choosing = Choosing(),
) -> steps.RunResult:
    """Edit every image with every edit; what an earlier run finished is found and kept.

    ``table`` is the URI of a folder with ``relevance.parquet`` and ``statistics.parquet``, as an import of
    the published files leaves them; without one the table is built first, or found built. Where an edit
    says auto, alpha and beta are chosen on some of the inverted images.
    """
    place = workspace or f"{out.rstrip('/')}/workspace"
    variants = all_variants(replace_steps(edits, stand_in))
    steps.check_places(photos, out, place)
    hashes, device = steps.begin(models, execution)
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
    if not automatic_steps(edits):  # first, as a prompt that names no direction should stop the run at once
        prepared = steps.directions(variants, *shared)
    inverted, summary = steps.invert(index, place, models, hashes, inversion, device)
    done.append(steps.counts(summary))
    if automatic_steps(edits):
        planned = ChoicePlan(
            models=models, hashes=hashes, workspace=place, settings=choosing, instant=instant, table=found,
            styles=styles, inversion=inverted, shards=index.shards,
        )  # fmt: skip
        edits, choices = steps.choose(edits, planned, device)
        prepared = steps.directions(all_variants(edits), *shared)
    plans, edited = steps.edit(prepared, index, inverted, out, place, device)
    done.append(steps.counts(edited))
    return steps.RunResult(
        steps=done,
        styles=styles,
        table=found,
        latents=inverted.folder,
        report=steps.report(plans, index, done),
        edits=edits,
        choices=choices,
    )
