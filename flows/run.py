"""What every flow does around its steps: begin a run, wait for shards, say what was done.

A step is a plain function, so one flow run holds all task runs of a chain, and Retry sees them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar

from prefect import Flow, Task, flow, runtime
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from pydantic import BaseModel, ConfigDict

from styleclip.flows import course, engine
from styleclip.flows.engine import (
    task_runner as task_runner,  # of runs that are begun elsewhere, on other machines say
)
from styleclip.flows.estimates import Forecast
from styleclip.flows.names import run_name
from styleclip.tasks.artifacts.outcomes import Row
from styleclip.tasks.directions.choosing import ChosenStrength
from styleclip.tasks.directions.sampling import SampledStyles
from styleclip.tasks.directions.style_directions import TableRef
from styleclip.tasks.editing.mappers import MapperRef
from styleclip.tasks.inspection.prompts import DiagnosisRef
from styleclip.tasks.reports.batch import ReportRef
from styleclip.tasks.reports.summaries import publish_report, publish_summary
from styleclip.tasks.running import networks as models
from styleclip.tasks.running.caching import probe_result_storage
from styleclip.tasks.running.progress import ShardResult, StepSummary
from styleclip.tasks.running.run import Networks, Run, identify_models, is_multilingual
from styleclip.tasks.running.shown import code
from styleclip.tasks.running.stopping import RunStoppedError, closing
from styleclip.tasks.settings import Execution, Judges, Models, SettingsError
from styleclip.tasks.settings.edits import Edit
from styleclip.tasks.storage import delete_stale_temporaries, first_page, join, lies_in, version
from styleclip_core.prompts import language_warnings

_P = ParamSpec("_P")
_R = TypeVar("_R")


def pipeline(name: str) -> Callable[[Callable[_P, _R]], Flow[_P, _R]]:
    """Return the decorator of all flows: runs are named after what they do, results kept for Retry."""

    def decorate(function: Callable[_P, _R]) -> Flow[_P, _R]:
        return flow(
            name=name, flow_run_name=run_name(name), task_runner=task_runner(), persist_result=True,
            on_completion=[_keep_ending],
        )(function)  # fmt: skip

    return decorate


def _keep_ending(flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:
    course.ended()


def _since_start() -> float:
    """Return the seconds since Prefect said that this flow run runs; its clock may be another machine's."""
    context = FlowRunContext.get()
    state = context.flow_run.state if context and context.flow_run else None
    if state is None or not state.is_running():
        return 0.0
    return min(60.0, max(0.0, (datetime.now(UTC) - state.timestamp).total_seconds()))


class StepCounts(BaseModel):
    """How much of a step this run did.

    Attributes:
        step: Its name.
        shards: Shards of it.
        computed: Those that this run computed.
        rows: Items of all shards.
        failed: Items that have an error in their row.
        seconds: What it took.
        rate: Items of computed shards per second.
        tried: Items that this run computed, well or not.
    """

    model_config = ConfigDict(frozen=True)

    step: str
    shards: int
    computed: int
    rows: int
    failed: int
    seconds: float
    rate: float = 0.0
    tried: int = 0


class RunResult(BaseModel):
    """What a flow returns: where its results lie, what it did, and what under the prefix it did not read."""

    model_config = ConfigDict(frozen=True)

    steps: list[StepCounts] = []
    styles: SampledStyles | None = None
    table: TableRef | None = None
    latents: str = ""
    report: ReportRef | None = None
    diagnosis: DiagnosisRef | None = None
    step_similarity: str = ""
    mappers: list[MapperRef] = []
    edits: list[Edit] = []
    choices: list[ChosenStrength] = []
    passed_over: str = ""
    forecast: Forecast | None = None


def begin(
    networks: Models | Judges | Networks,
    execution: Execution,
    workspace: str = "",
    out: str = "",
    *,
    sources: Sequence[str] = (),
    files: Sequence[str] = (),
    dry: bool = False,
) -> Run:
    """Check places and result storage, clear up, load the networks once, and say what the run uses.

    Args:
        networks: Networks of the run; those that are named are identified by their content.
        execution: Where tasks run.
        workspace: URI of the folder for artifacts; OUT/workspace if empty.
        out: URI of the prefix for results, of flows that have some.
        sources: Prefixes that are read; nothing may be written below them. All places in their one form.
        files: Objects that are read.
        dry: Whether the run only looks, so that nothing is cleared up or tried out.

    Raises:
        StorageError: If what is to be read is not there.
        SettingsError: If results would lie among what is read.
        ResultStorageError: If Prefect cannot keep results, so that Retry would do everything again.
    """
    began = time.monotonic() - _since_start()
    workspace = workspace or join(out, "workspace")
    check_places(sources, out=out, workspace=workspace)
    for place in dict.fromkeys([out or workspace, workspace]) if not dry else ():
        delete_stale_temporaries(place)  # buckets have nothing to clear up

    # before networks are loaded, which takes longer; a Retry may find done what is there no more
    if not is_retry():
        _check_inputs(sources, files)
    device = engine.pick_device(execution)
    models.share_cores(device)
    if not dry:
        probe_result_storage()

    chosen = networks if isinstance(networks, Networks) else Networks.of(networks)
    hashes = engine.run(identify_models, chosen, device)
    used = ", ".join(f"{kind} {hash_[:12]}" for kind, hash_ in hashes.model_dump().items() if hash_)
    get_run_logger().info("%s on %s", used or "no networks", device)
    run = Run(models=chosen, hashes=hashes, workspace=workspace, out=out, device=device)
    course.set_out(run, began)
    return run


def _check_inputs(sources: Sequence[str], files: Sequence[str]) -> None:
    """Refuse inputs that are not there; which images lie under a prefix, and whether any do, comes later."""
    for source in filter(None, sources):
        first_page(source, 1)
    for uri in filter(None, files):
        version(uri)


def check_places(sources: Sequence[str], **written: str) -> None:
    """Refuse to write among what is read; all places in their one form, those written by name.

    Raises:
        SettingsError: If results would lie there, where the next run would read them as photographs.
    """
    for source in filter(None, sources):
        for name, place in written.items():
            if place and lies_in(place, source):
                raise SettingsError(
                    f"{name} {place} lies inside the photographs {source}: the next run would edit its own "
                    "results; choose a place outside"
                )


def warn_of_languages(run: Run, prompts: Iterable[str]) -> None:
    """Say in the log which prompts seem not to be English; they are tried all the same.

    Nothing is said of prompts for a CLIP that was trained on many languages.
    """
    lines = language_warnings(prompts)
    if lines and not engine.run(is_multilingual, run):
        for line in lines:
            get_run_logger().warning(line)


def gather_items(
    step: str, work: Task[..., ShardResult], calls: Sequence[tuple[Any, ...]]
) -> StepSummary[ShardResult]:
    """Run shards of items and wait for all; on Retry, shards with failed items are tried again too.

    A shard whose items failed has finished, and its result is kept. So that Retry reaches those items, such a
    shard is executed again, and tries what has no good outcome yet.
    """

    def again(number: int) -> PrefectFuture[ShardResult]:
        return anew(work).submit(*calls[number])

    futures = [work.submit(*call) for call in calls]
    return course.wait_for({step: futures}, {step: again} if is_retry() else None)[0]


def anew(work: Task[..., ShardResult]) -> Task[..., ShardResult]:
    """Return a task that is executed even if a result of it is kept."""
    return work.with_options(refresh_cache=True)


@contextmanager
def leaving(write: Callable[[str, bool], object]) -> Iterator[None]:
    """Write down what is done if the block ends early, and let what ended it go on.

    A run that is cancelled, or whose worker stops, has some seconds between SIGTERM, which Prefect raises
    here as an exception, and SIGKILL. A process that is killed at once leaves this to ``report_partial``.

    Args:
        write: Writes tables of what is done. It is given what ended the run, with what goes on from there,
            and whether only seconds are left.
    """
    try:
        yield
    except BaseException as ended:
        try:
            with closing():
                write(_why(ended), not isinstance(ended, Exception))
        except Exception as error:  # what ended the run is told, whatever becomes of this
            get_run_logger().warning("what is done could not be written down: %s", error)
        raise


def _why(ended: BaseException) -> str:
    """Return what ended a run, and what goes on from there."""
    how = "failed" if isinstance(ended, Exception) else "was cancelled, or its worker stopped"
    stopped = isinstance(ended, RunStoppedError | KeyboardInterrupt)
    # without a deployment there is no button
    return f"the run {'was stopped' if stopped else how}, {remedy()}"


def remedy() -> str:
    """Return how this run is gone on with."""
    return "press Retry" if runtime.deployment.id else "start it again"


def is_retry() -> bool:
    """Return whether this run was tried before."""
    return (runtime.flow_run.run_count or 0) > 1


def announce(flow: str, plan: str) -> None:
    """Say what a run is about to do: in its log, and in its report until that says what was done."""
    get_run_logger().info("this run %s", plan)
    publish_report(flow, f"This run {code(plan)}", plan)


def summarize(
    flow: str,
    headline: str,
    steps: list[StepCounts],
    places: dict[str, str],
    problems: Sequence[Row] = (),
    sections: Sequence[str] = (),
) -> None:
    """Show in Prefect's UI what a run did, where its results lie, and what failed."""
    course.arrived(flow)
    publish_summary(flow, headline, [step.model_dump() for step in steps], places, problems, sections)


def counts(summary: StepSummary[ShardResult]) -> StepCounts:
    """Return a summary without its results."""
    return StepCounts(
        step=summary.step,
        shards=len(summary.results),
        computed=summary.computed,
        rows=summary.rows,
        failed=summary.failed,
        seconds=summary.seconds,
        rate=summary.rate,
        tried=sum(result.tried for result in summary.results if not result.reused),
    )
