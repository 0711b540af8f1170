"""Train latent mappers, one for each prompt.

latents, or seeds -> codes --+
prompts --------------------> best.safetensors, last.safetensors, curve.parquet of each
"""

from __future__ import annotations

from prefect import flow

from flows import steps
from tasks.settings import Execution, MapperTraining, Models


@flow(name="train-mapper", task_runner=steps.task_runner(), persist_result=True)
def train_mapper(
    models: Models,
    targets: list[str],
    workspace: str,
    training: MapperTraining = MapperTraining(),
    execution: Execution = Execution(),
) -> steps.RunResult:
    """Train a mapper for every target prompt; a run that was stopped goes on where it was stored."""
    hashes, device = steps.begin(models, execution)
    return steps.RunResult(mappers=steps.train(targets, workspace, models, hashes, training, device))
