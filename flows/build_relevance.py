"""Build the relevance table of a generator and a CLIP: the paper's preprocessing.

seeds -> style codes, statistics
      -> shards of channels -> relevance.parquet
last table + new samples -> relevance.parquet over both
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from styleclip.flows.dry_run import foretell, only_told, sample_table, tell
from styleclip.flows.estimates import Outlook
from styleclip.flows.run import RunResult, begin, pipeline
from styleclip.flows.steps import dry_runs
from styleclip.flows.steps import table as steps
from styleclip.tasks.running.rates import Rates
from styleclip.tasks.settings import (
    Execution,
    Models,
    Nightly,
    OptionalUri,
    OrUsual,
    Relevance,
    Sampling,
    SettingsError,
    Uri,
)


@pipeline("build-relevance")
def build_relevance(
    models: Models,
    workspace: Uri,
    sampling: OrUsual[Sampling] = Sampling(),
    relevance: OrUsual[Relevance] = Relevance(),
    execution: OrUsual[Execution] = Execution(),
    add_samples: Annotated[int, Field(ge=0)] = 0,
    last_table: OptionalUri = "",
    nightly: Nightly | None = None,
    dry_run: bool = False,
) -> RunResult:
    """Measure the CLIP direction of every style channel; finished shards are kept across runs.

    With ``add_samples`` only new samples are measured and merged into the last table, which stays as
    it is. Each run adds; a Retry of a run finishes what that run began. With ``nightly`` a run starts
    the table or adds to the last one, once a night however often it is run.

    Args:
        models: Networks to use; files may lie on any storage that the worker can read.
        workspace: URI of the folder for artifacts, which later runs find and keep.
        sampling: Style codes to sample, and the statistics of style space.
        relevance: How the relevance table is measured.
        execution: How the work is run; none of it changes a result.
        add_samples: Style codes per channel to measure anew and merge into the last table; 0 builds a table.
        last_table: URI of the table to add to; the largest one in the workspace if empty.
        nightly: For schedules: start the table in the first night, add samples in each later one.
        dry_run: Say what would be computed and found done, and what it would cost; do nothing.

    Raises:
        SettingsError: If a nightly run is also told what to add, or what to add to.
    """
    if nightly and (add_samples or last_table):
        raise SettingsError("a nightly run decides itself what to add; leave add_samples and last_table out")

    run = begin(models, execution, workspace, dry=dry_run)

    def look(_rates: Rates) -> Outlook:
        return dry_runs.building(run, sampling, relevance, add=add_samples, last=last_table, nightly=nightly)

    if dry_run:
        sample = sample_table(run, sampling, relevance)
        forecast = tell("build-relevance", run, look, sample, execution.price_per_hour)
        return only_told(RunResult(forecast=forecast))

    plan = steps.described(run, relevance, add=add_samples, nightly=nightly)
    foretell("build-relevance", run, plan, look, execution.price_per_hour)
    if nightly:
        result = steps.refine_nightly(run, sampling, relevance, nightly)
    elif add_samples:
        result = steps.refine(run, sampling, relevance, add_samples, last_table)
    else:
        styles, table, done = steps.table_for(run, sampling, relevance)
        result = RunResult(steps=done, styles=styles, table=table)

    steps.summarize_table(result)
    return result
