"""Sample style codes of a generator and the statistics of its style space.

seeds -> shards of statistics -> statistics.parquet
      -> codes.parquet
"""

from __future__ import annotations

from prefect import flow

from flows import steps
from tasks.settings import Execution, Models, Sampling


@flow(name="sample-styles", task_runner=steps.task_runner(), persist_result=True)
def sample_styles(
    models: Models,
    workspace: str,
    sampling: Sampling = Sampling(),
    execution: Execution = Execution(),
) -> steps.RunResult:
    """Sample style codes and measure mean, deviation, minimum and maximum of every style channel."""
    hashes, device = steps.begin(models, execution, with_clip=False)
    styles, summary = steps.sample(models, hashes, sampling, workspace, device)
    return steps.RunResult(steps=[steps.counts(summary)], styles=styles)
