"""Train latent mappers, one for each prompt.

latents, or seeds -> codes --+
prompts --------------------> best.safetensors, last.safetensors, curve.parquet of each
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from styleclip.flows.dry_run import foretell, only_told, sample_training, tell
from styleclip.flows.estimates import Outlook
from styleclip.flows.run import RunResult, StepCounts, begin, counts, pipeline, summarize
from styleclip.flows.steps import dry_runs
from styleclip.flows.steps.editing import check_training, train
from styleclip.flows.steps.table import look_at
from styleclip.tasks.editing import mappers
from styleclip.tasks.running.rates import Rates
from styleclip.tasks.settings import Execution, MapperTraining, Models, OrUsual, Prompt, Uri


@pipeline("train-mapper")
def train_mapper(
    models: Models,
    targets: Annotated[list[Prompt], Field(min_length=1)],
    workspace: Uri,
    training: OrUsual[MapperTraining] = MapperTraining(),
    execution: OrUsual[Execution] = Execution(),
    dry_run: bool = False,
) -> RunResult:
    """Train a mapper for every target prompt; a run that was stopped goes on where it was stored.

    Args:
        models: Networks to use; files may lie on any storage that the worker can read.
        targets: Prompts, e.g. grey hair; a mapper is trained for each.
        workspace: URI of the folder for artifacts, which later runs find and keep.
        training: How a mapper is trained.
        execution: How the work is run; none of it changes a result.
        dry_run: Say what would be trained and found done, and what it would cost; do nothing.
    """
    run = begin(models, execution, workspace, dry=dry_run)
    check_training(run, targets, training)

    def look(_rates: Rates) -> Outlook:
        return dry_runs.training(run, targets, training)

    if dry_run:
        sample = sample_training(run, targets[0], training)
        forecast = tell("train-mapper", run, look, sample, execution.price_per_hour)
        return only_told(RunResult(forecast=forecast))

    foretell("train-mapper", run, f"trains {len(targets)} mappers", look, execution.price_per_hour)
    planned = [mappers.plan(run, target, training) for target in targets]
    done = list[StepCounts]()
    if seen := mappers.looked_at_first(planned):
        _, looked = look_at(run, seen.sampling)
        done.append(counts(looked))

    trained = train(run, planned)
    places = {f"{each.target}, best loss {each.loss:.4f}": each.best for each in trained}
    summarize("train-mapper", f"{len(trained)} mappers", done, places)
    return RunResult(steps=done, mappers=trained)
