"""Look into the relevance table: the strongest channels of a prompt, or the nearest prompts of a channel.

seeds ----> style codes, statistics -> relevance table --+--> list, picture
prompt, or channel and attributes -----------------------+
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from styleclip.flows import engine
from styleclip.flows.run import StepCounts, begin, pipeline, summarize
from styleclip.flows.steps.table import table_for
from styleclip.tasks.evaluation.attributes import FACES, AttributePrompts, load_attributes
from styleclip.tasks.inspection.channels import ExplorationRef, explore_channel, explore_target
from styleclip.tasks.running.shown import code
from styleclip.tasks.settings import (
    Execution,
    Models,
    OptionalUri,
    OrUsual,
    Prompt,
    Relevance,
    Sampling,
    Settings,
    SettingsError,
    TemplateSet,
    Uri,
)
from styleclip.tasks.settings.edits import StepVariant


class Question(Settings):
    """What to look for: a prompt's channels, or a channel's prompts."""

    target: str = Field("", description="What images should become; lists the strongest channels")
    neutral: Prompt = Field("face", description="What the target is compared with")
    count: int = Field(12, ge=1, le=200, description="Channels to list and draw")
    channel: str = Field("", description="A channel, e.g. b16.conv1.42; lists the nearest prompts")
    templates: TemplateSet = Field("styleclip-79", description="Prompt templates")


class Answer(BaseModel):
    """What a look into the table found."""

    model_config = ConfigDict(frozen=True)

    steps: list[StepCounts]
    found: ExplorationRef


@pipeline("explore-channels")
def explore_channels(
    models: Models,
    question: Question,
    workspace: Uri,
    attributes: tuple[AttributePrompts, ...] = (),
    sampling: OrUsual[Sampling] = Sampling(),
    relevance: OrUsual[Relevance] = Relevance(),
    execution: OrUsual[Execution] = Execution(),
    table: OptionalUri = "",
) -> Answer:
    """List and draw channels of a prompt, or the attributes that a channel is nearest to.

    Args:
        models: Networks to use; files may lie on any storage that the worker can read.
        question: A prompt whose channels are wanted, or a channel whose prompts are.
        workspace: URI of the folder for artifacts, which later runs find and keep.
        attributes: Prompts that a channel may be near to; those of faces if none are given.
        sampling: Style codes to sample, and the statistics of style space.
        relevance: How the relevance table is measured.
        execution: How the work is run; none of it changes a result.
        table: URI of a folder with relevance.parquet and statistics.parquet, as an import of the published
            files leaves them; without one the table is built first, or found built.
    """
    if bool(question.target) == bool(question.channel):
        raise SettingsError("give a target, or a channel, one of them")

    run = begin(models, execution, workspace)
    _, built, done = table_for(run, sampling, relevance, given=table)

    if question.target:
        prompt = StepVariant(neutral=question.neutral, target=question.target, templates=question.templates)
        found = engine.run(explore_target, run, prompt, question.count, built)
    else:
        listed = list(attributes) or load_attributes(FACES)
        found = engine.run(explore_channel, run, question.channel, listed, question.templates, built)
    places = {"list": found.table, "picture": found.picture}
    asked = question.channel or f"{question.neutral!r} to {question.target!r}"
    summarize("explore-channels", f"channels and prompts: {code(asked)}", done, places)
    return Answer(steps=done, found=found)
