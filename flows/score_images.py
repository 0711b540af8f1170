"""Score the images under a prefix by prompts.

bucket prefix -> index in shards -> scores (a row per image, with its error if it is broken)
labels --------------------------------> accuracy per label
"""

from __future__ import annotations

from prefect import flow
from pydantic import BaseModel, ConfigDict

from flows import engine, steps
from tasks import image_scores, models
from tasks.caching import probe_result_storage
from tasks.image_scores import ScoresRef
from tasks.labels import LabelPrompt, load_truth
from tasks.settings import Execution, OptionalUri, TemplateSet, Uri


class ScoresResult(BaseModel):
    """What a scoring did, and where its tables lie."""

    model_config = ConfigDict(frozen=True)

    steps: list[steps.StepCounts]
    scores: ScoresRef


@flow(name="score-images", task_runner=steps.task_runner(), persist_result=True)
def score_images(
    images: Uri,
    prompts: list[LabelPrompt],
    out: Uri,
    clip: Uri = "ViT-B/32",
    labels: OptionalUri = "",
    templates: TemplateSet = "styleclip-79",
    workspace: OptionalUri = "",
    execution: Execution = Execution(),
) -> ScoresResult:
    """Score every image with every prompt; what an earlier run scored is found and kept.

    Args:
        images: URI of the prefix that holds the images; it is only read.
        prompts: What an image may show.
        out: URI of the prefix for the tables, outside of the images.
        clip: CLIP name, or URI of its weights.
        labels: URI of a Parquet or CSV table of what is known to be true of the images: image_key and a
            column for each prompt or group.
        templates: Sentences that prompts are put into.
        workspace: URI of the folder for artifacts; OUT/workspace if empty.
        execution: How the work is run; none of it changes a result.
    """
    place = workspace or f"{out.rstrip('/')}/workspace"
    steps.check_places(images, out, place)
    steps.clear_up(out, place)
    device = engine.pick_device(execution)
    models.share_cores(device)
    probe_result_storage()
    if labels:
        load_truth(labels, prompts)  # a table of another form ends the run here, at once
    index = steps.index(images, place, execution)
    planned = engine.run(image_scores.plan_scores, images, place, clip, prompts, templates, device)
    calls = [(planned, shard, device) for shard in index.shards]
    summary = steps.gather_items("score-images", image_scores.score_shard, calls)
    written = image_scores.gather_scores(planned, index, out, labels)
    return ScoresResult(steps=[steps.counts(summary)], scores=written)
