"""Invert the images under a prefix.

bucket prefix -> index in shards -> latents (a row per image, with its error if it is broken)
"""

from __future__ import annotations

from functools import partial

from styleclip.flows.dry_run import foretell, only_told, sample_images, tell
from styleclip.flows.failures import refuse_failures
from styleclip.flows.run import RunResult, begin, counts, pipeline, summarize
from styleclip.flows.steps import dry_runs, photographs
from styleclip.flows.steps.looking import listing
from styleclip.tasks.photographs.datasets.front import locate
from styleclip.tasks.reports.summaries import failed_items
from styleclip.tasks.running.run import Networks
from styleclip.tasks.settings import DataSet, Execution, Inversion, Models, OrUsual, Uri


@pipeline("invert-images")
def invert_images(
    models: Models,
    photos: Uri,
    workspace: Uri,
    inversion: OrUsual[Inversion] = Inversion(),
    execution: OrUsual[Execution] = Execution(),
    dataset: OrUsual[DataSet] = DataSet(),
    dry_run: bool = False,
) -> RunResult:
    """Find the latent of every image; a broken image is a row, and fails the run only with enough others.

    Args:
        models: Networks to use; files may lie on any storage that the worker can read.
        photos: URI of the data set, e.g. the prefix s3://photographs/2031; it is only read.
        workspace: URI of the folder for latents and other artifacts, outside of the photographs.
        inversion: How photographs become latents.
        execution: How the work is run; none of it changes a result.
        dataset: How the data set is read, and which of its images count.
        dry_run: Say what would be read, computed, found done and written, and what it would cost; do nothing.
    """
    located, networks = locate(photos, dataset), Networks.of(models).without_clip()
    run = begin(networks, execution, workspace, sources=located.swept, dry=dry_run)
    if dry_run:
        with listing(run, located, execution) as (_, listed):
            look = partial(dry_runs.inverting, run, listed, inversion)
            sample = sample_images(run, listed, inversion)
            forecast = tell("invert-images", run, look, sample, execution.price_per_hour)
        return only_told(RunResult(forecast=forecast, passed_over=listed.passed_over))

    index = photographs.index(run, located, execution)
    plan = f"inverts {index.rows} photographs under {photos}, in {len(index.shards)} shards"
    look = partial(dry_runs.inverting, run, index, inversion)
    foretell("invert-images", run, plan, look, execution.price_per_hour, shards=len(index.shards))
    planned, summary = photographs.invert(run, index, inversion)

    done = [counts(summary)]
    headline = f"{summary.rows} images, {summary.failed} without a latent{index.aside}"
    problems = failed_items(summary.results)
    summarize("invert-images", headline, done, {"latents": planned.folder}, problems)
    refuse_failures(execution, "images", summary.rows, summary.failed, problems, planned.folder)
    return RunResult(steps=done, latents=planned.folder, passed_over=index.passed_over)
