"""Train latent mappers, one for each prompt.

latents, or seeds -> codes --+
prompts --------------------> best.safetensors, last.safetensors, curve.parquet of each
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flows.run import RunResult, begin, pipeline, summarize
from flows.steps.editing import train
from tasks.settings import Execution, MapperTraining, Models, OrUsual, Prompt, Uri


@pipeline("train-mapper")
def train_mapper(
    models: Models,
    targets: Annotated[list[Prompt], Field(min_length=1)],
    workspace: Uri,
    training: OrUsual[MapperTraining] = MapperTraining(),
    execution: OrUsual[Execution] = Execution(),
) -> RunResult:
    """Train a mapper for every target prompt; a run that was stopped goes on where it was stored.

    Args:
        models: Networks to use; files may lie on any storage that the worker can read.
        targets: Prompts, e.g. grey hair; a mapper is trained for each.
        workspace: URI of the folder for artifacts, which later runs find and keep.
        training: How a mapper is trained.
        execution: How the work is run; none of it changes a result.
    """
    run = begin(models, execution, workspace)
    trained = train(run, targets, training)
    places = {f"{each.target}, best loss {each.loss:.4f}": each.best for each in trained}
    summarize("train-mapper", f"{len(trained)} mappers", [], places)
    return RunResult(mappers=trained)
