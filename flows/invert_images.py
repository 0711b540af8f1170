"""Invert the images under a prefix.

bucket prefix -> index in shards -> latents (a row per image, with its error if it is broken)
"""

from __future__ import annotations

from prefect import flow

from flows import steps
from tasks.settings import Execution, Inversion, Models, Uri
from tasks.summaries import failed_items


@flow(name="invert-images", task_runner=steps.task_runner(), persist_result=True)
def invert_images(
    models: Models,
    photos: Uri,
    workspace: Uri,
    inversion: Inversion = Inversion(),
    execution: Execution = Execution(),
) -> steps.RunResult:
    """Find the latent of every image; a broken image is a row, not a failed run.

    Args:
        models: Networks to use; files may lie on any storage that the worker can read.
        photos: URI of the prefix that holds the photographs, e.g. s3://photographs/2031; it is only read.
        workspace: URI of the folder for latents and other artifacts, outside of the photographs.
        inversion: How photographs become latents.
        execution: How the work is run; none of it changes a result.
    """
    steps.check_places(photos, workspace, workspace)
    hashes, device = steps.begin(models, execution, workspace, with_clip=False)
    index = steps.index(photos, workspace, execution)
    planned, summary = steps.invert(index, workspace, models, hashes, inversion, device)
    done = [steps.counts(summary)]
    headline = f"{summary.rows} images, {summary.failed} without a latent"
    steps.summarize(
        "invert-images", headline, done, {"latents": planned.folder}, failed_items(summary.results)
    )
    return steps.RunResult(steps=done, latents=planned.folder)
