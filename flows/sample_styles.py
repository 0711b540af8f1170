"""Sample style codes of a generator and the statistics of its style space.

seeds -> shards of statistics -> statistics.parquet
      -> codes.parquet
"""

from __future__ import annotations

from styleclip.flows.run import RunResult, begin, counts, pipeline, summarize
from styleclip.flows.steps.table import sample
from styleclip.tasks.running.run import Networks
from styleclip.tasks.settings import Execution, Models, OrUsual, Sampling, Uri


@pipeline("sample-styles")
def sample_styles(
    models: Models,
    workspace: Uri,
    sampling: OrUsual[Sampling] = Sampling(),
    execution: OrUsual[Execution] = Execution(),
) -> RunResult:
    """Sample style codes and measure mean, deviation, minimum and maximum of every style channel.

    Args:
        models: Networks to use; files may lie on any storage that the worker can read.
        workspace: URI of the folder for artifacts, which later runs find and keep.
        sampling: Style codes to sample, and the statistics of style space.
        execution: How the work is run; none of it changes a result.
    """
    run = begin(Networks.of(models).without_clip(), execution, workspace)
    styles, summary = sample(run, sampling)
    done = [counts(summary)]
    headline = f"{sampling.statistics} style codes behind the statistics, {sampling.codes} stored"
    summarize("sample-styles", headline, done, {"statistics": styles.statistics, "codes": styles.codes})
    return RunResult(steps=done, styles=styles)
