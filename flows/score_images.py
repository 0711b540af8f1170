"""Score the images under a prefix by prompts.

bucket prefix -> index in shards -> scores (a row per image, with its error if it is broken)
labels --------------------------------> accuracy per label
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from styleclip.flows import engine
from styleclip.flows.failures import refuse_failures
from styleclip.flows.run import (
    StepCounts,
    announce,
    begin,
    counts,
    gather_items,
    is_retry,
    leaving,
    pipeline,
    summarize,
    warn_of_languages,
)
from styleclip.flows.steps import photographs
from styleclip.tasks.evaluation.image_scores import (
    ScoresRef,
    gather_scores,
    plan_scores,
    score_shard,
    write_partial_scores,
)
from styleclip.tasks.evaluation.labels import LabelPrompt, load_truth
from styleclip.tasks.photographs.datasets.front import locate
from styleclip.tasks.reports.summaries import failed_items
from styleclip.tasks.running.run import Networks
from styleclip.tasks.settings import Clip, DataSet, Execution, OptionalUri, OrUsual, TemplateSet, Uri


class ScoresResult(BaseModel):
    """What a scoring did, and where its tables lie."""

    model_config = ConfigDict(frozen=True)

    steps: list[StepCounts]
    scores: ScoresRef
    passed_over: str = ""


@pipeline("score-images")
def score_images(
    images: Uri,
    prompts: list[LabelPrompt],
    out: Uri,
    clip: Annotated[Clip, Field(min_length=1)] = "ViT-B/32",
    labels: OptionalUri = "",
    templates: TemplateSet = "styleclip-79",
    workspace: OptionalUri = "",
    execution: OrUsual[Execution] = Execution(),
    dataset: OrUsual[DataSet] = DataSet(),
) -> ScoresResult:
    """Score every image with every prompt; what an earlier run scored is found and kept.

    Args:
        images: URI of the data set; it is only read.
        prompts: What an image may show.
        out: URI of the prefix for the tables, outside of the images.
        clip: CLIP name, or URI of its weights.
        labels: URI of a Parquet or CSV table of what is known to be true of the images: image_key and a
            column for each prompt or group.
        templates: Sentences that prompts are put into.
        workspace: URI of the folder for artifacts; OUT/workspace if empty.
        execution: How the work is run; none of it changes a result.
        dataset: How the data set is read, and which of its images count.
    """
    located = locate(images, dataset)
    run = begin(Networks(clip=clip), execution, workspace, out, sources=located.swept, files=[labels])
    if labels:
        load_truth(labels, prompts)  # a table of another form ends the run here, at once

    warn_of_languages(run, (text for each in prompts for text in (each.prompt, each.negative)))
    index = photographs.index(run, located, execution)
    announce("score-images", f"scores {index.rows} images under {images} with {len(prompts)} prompts")
    planned = engine.run(plan_scores, run, index.photos, prompts, templates)
    calls = [(run, planned, shard) for shard in index.shards]
    with leaving(lambda why, _quickly: write_partial_scores(run, planned, index, why)):
        summary = gather_items("score-images", score_shard, calls)
    # a Retry may have mended rows of shards that were finished, which the kept result does not know
    written = gather_scores.with_options(refresh_cache=is_retry())(run, planned, index, labels)

    done = [counts(summary)]
    headline = f"{written.rows} images scored, {written.failed} failed{index.aside}"
    places = {"scores": written.scores, "accuracy": written.accuracy}
    problems = failed_items(summary.results)
    summarize("score-images", headline, done, places, problems)
    refuse_failures(execution, "images", written.rows, written.failed, problems, written.scores)
    return ScoresResult(steps=done, scores=written, passed_over=index.passed_over)
