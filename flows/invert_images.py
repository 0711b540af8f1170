"""Invert the images under a prefix.

bucket prefix -> index in shards -> latents (a row per image, with its error if it is broken)
"""

from __future__ import annotations

from flows.run import RunResult, announce, begin, counts, pipeline, summarize
from flows.steps import photographs
from tasks.photographs.datasets.front import locate
from tasks.reports.summaries import failed_items
from tasks.running.run import Networks
from tasks.settings import DataSet, Execution, Inversion, Models, OrUsual, Uri


@pipeline("invert-images")
def invert_images(
    models: Models,
    photos: Uri,
    workspace: Uri,
    inversion: OrUsual[Inversion] = Inversion(),
    execution: OrUsual[Execution] = Execution(),
    dataset: OrUsual[DataSet] = DataSet(),
) -> RunResult:
    """Find the latent of every image; a broken image is a row, not a failed run.

    Args:
        models: Networks to use; files may lie on any storage that the worker can read.
        photos: URI of the data set, e.g. the prefix s3://photographs/2031; it is only read.
        workspace: URI of the folder for latents and other artifacts, outside of the photographs.
        inversion: How photographs become latents.
        execution: How the work is run; none of it changes a result.
        dataset: How the data set is read, and which of its images count.
    """
    located = locate(photos, dataset)
    run = begin(Networks.of(models).without_clip(), execution, workspace, sources=located.swept)
    index = photographs.index(run, located, execution)
    announce(
        "invert-images", f"inverts {index.rows} photographs under {photos}, in {len(index.shards)} shards"
    )
    planned, summary = photographs.invert(run, index, inversion)

    done = [counts(summary)]
    headline = f"{summary.rows} images, {summary.failed} without a latent{index.aside}"
    problems = failed_items(summary.results)
    summarize("invert-images", headline, done, {"latents": planned.folder}, problems)
    return RunResult(steps=done, latents=planned.folder, passed_over=index.passed_over)
