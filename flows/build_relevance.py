"""Build the relevance table of a generator and a CLIP: the paper's preprocessing.

seeds -> style codes, statistics
      -> shards of channels -> relevance.parquet
"""

from __future__ import annotations

from prefect import flow

from flows import steps
from tasks.settings import Execution, Models, Relevance, Sampling


@flow(name="build-relevance", task_runner=steps.task_runner(), persist_result=True)
def build_relevance(
    models: Models,
    workspace: str,
    sampling: Sampling = Sampling(),
    relevance: Relevance = Relevance(),
    execution: Execution = Execution(),
) -> steps.RunResult:
    """Measure the CLIP direction of every style channel; finished shards are kept across runs."""
    hashes, device = steps.begin(models, execution)
    styles, table, done = steps.table_for(models, hashes, sampling, relevance, workspace, device)
    return steps.RunResult(steps=done, styles=styles, table=table)
