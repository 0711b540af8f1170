"""Build the relevance table of a generator and a CLIP: the paper's preprocessing.

seeds -> style codes, statistics
      -> shards of channels -> relevance.parquet
last table + new samples -> relevance.parquet over both
"""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from pydantic import Field

from flows import steps
from tasks.settings import Execution, Models, Relevance, Sampling


@flow(name="build-relevance", task_runner=steps.task_runner(), persist_result=True)
def build_relevance(
    models: Models,
    workspace: str,
    sampling: Sampling = Sampling(),
    relevance: Relevance = Relevance(),
    execution: Execution = Execution(),
    add_samples: Annotated[
        int, Field(ge=0, description="New style codes to merge into the last table; 0 builds a table")
    ] = 0,
    last_table: Annotated[
        str, Field(description="URI of the table to add to; the workspace's largest one if empty")
    ] = "",
) -> steps.RunResult:
    """Measure the CLIP direction of every style channel; finished shards are kept across runs.

    With ``add_samples`` only new samples are measured and merged into the last table, which stays as
    it is. Each run adds; a Retry of a run finishes what that run began.
    """
    hashes, device = steps.begin(models, execution)
    if add_samples:
        return steps.refine(models, hashes, sampling, relevance, add_samples, last_table, workspace, device)
    styles, table, done = steps.table_for(models, hashes, sampling, relevance, workspace, device)
    return steps.RunResult(steps=done, styles=styles, table=table)
