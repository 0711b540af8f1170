"""The course of a run: what its steps took, which is kept for later estimates, and what lies between them.

The time of a run is that of its steps and what is around them: networks, listing, directions, report. A step
takes what its shards compute, so many of them at once, and what Prefect and the store add for every task run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger

from styleclip.tasks.running.overlap import compute_slots
from styleclip.tasks.running.progress import ShardResult, StepSummary, gather_chain, is_cached
from styleclip.tasks.running.rates import Spent, keep_rates, makespan, total
from styleclip.tasks.running.run import Run
from styleclip.tasks.storage import scheme_of

_R = TypeVar("_R", bound=ShardResult)


@dataclass
class Course:
    """A run under way.

    Attributes:
        run: Its networks and places.
        began: When it began, by the monotonic clock.
        waited: Seconds of its steps so far.
        measured: What they took, by kind.
        outer: The run that this is a sample of.
        flow: Name of the flow, once its work is done and told.
        arrived: When that was.
    """

    run: Run
    began: float
    waited: float = 0.0
    measured: list[Spent] = field(default_factory=list)
    outer: Course | None = None
    flow: str = ""
    arrived: float = 0.0

    @property
    def elsewhere(self) -> float:
        """Return the seconds so far that were no step's."""
        return max(0.0, time.monotonic() - self.began - self.waited)


_course: ContextVar[Course | None] = ContextVar("styleclip_course", default=None)


def set_out(run: Run, began: float) -> None:
    """Begin to keep account of a run, which began at a moment of the monotonic clock."""
    _course.set(Course(run, began))


def under_way() -> Course | None:
    """Return the run that is under way here."""
    return _course.get()


@contextmanager
def aside(run: Run) -> Iterator[Course]:
    """Keep account of a sample inside the block: nothing of it is kept, or counts as the run's own."""
    outer = _course.get()
    sample = Course(run, time.monotonic(), outer=outer)
    token = _course.set(sample)
    try:
        yield sample
    finally:
        _course.reset(token)
        if outer:
            outer.waited += time.monotonic() - sample.began


def wait_for(
    steps: Mapping[str, Sequence[PrefectFuture[_R]]],
    again: Mapping[str, Callable[[int], PrefectFuture[_R]]] | None = None,
) -> list[StepSummary[_R]]:
    """Wait for steps as ``gather_chain`` does, and keep what they took, also if some shards failed.

    Raises:
        ShardsFailedError: If some failed.
        RunStoppedError: The same, if the run was asked to stop.
    """
    shards = {step: list(futures) for step, futures in steps.items()}
    retried = {step: _noting(shards[step], start) for step, start in (again or {}).items()}
    began = time.monotonic()
    try:
        return gather_chain(steps, retried)
    finally:
        _account(shards, time.monotonic() - began)


def _noting(
    futures: list[PrefectFuture[_R]], start: Callable[[int], PrefectFuture[_R]]
) -> Callable[[int], PrefectFuture[_R]]:
    """Return what starts a shard anew and puts its future in the place of the old one."""

    def started(number: int) -> PrefectFuture[_R]:
        futures[number] = start(number)
        return futures[number]

    return started


def _account(shards: Mapping[str, Sequence[PrefectFuture[_R]]], seconds: float) -> None:
    """Take the steps of a chain into the account of the run, and keep what they took."""
    course = under_way()
    if course is None:
        return
    course.waited += seconds
    try:
        found = [[_spent(future) for future in futures] for futures in shards.values()]
    except Exception as error:  # results that cannot be read any more say nothing, and fail no run
        get_run_logger().warning("how long the work took is not known: %s", error)
        return

    # a shard goes through the steps one after the other
    jobs = [
        sum(each.seconds for spent in of_shard for each in spent) for of_shard in zip(*found, strict=True)
    ]
    work = total(each for of_step in found for spent in of_step for each in spent)
    extra = max(0.0, seconds - makespan(jobs, compute_slots(course.run.device)))
    # a step that found everything done leaves nothing behind
    if work:
        runs = task_runs(course.run, list(shards), sum(map(len, shards.values())))
        keep(*work, runs.model_copy(update={"seconds": extra}))


def _spent(future: PrefectFuture[_R]) -> tuple[Spent, ...]:
    """Return what a shard took in this try of the run; nothing where it failed or was found done."""
    if not future.state.is_completed() or is_cached(future):
        return ()
    return future.result().spent


def task_runs(run: Run, steps: Sequence[str], count: int) -> Spent:
    """Return what Prefect and the store add to task runs as it is measured and estimated: per task run."""
    about = f"{' + '.join(steps)}, {scheme_of(run.workspace)}"
    return Spent(kind="task run", about=about, units=count, seconds=0.0)


def around(flow: str, seconds: float = 0.0) -> Spent:
    """Return what is around the steps of a flow as it is measured and estimated: per run."""
    return Spent(kind="around", about=flow, units=1, seconds=seconds)


def ending(flow: str, seconds: float = 0.0) -> Spent:
    """Return what comes after the work of a flow: its report, its result, the end of its run; per run."""
    return Spent(kind="ending", about=flow, units=1, seconds=seconds)


def arrived(flow: str) -> None:
    """Keep what was around the steps of a run that has computed something and is at its end."""
    course = under_way()
    if course and course.measured:
        keep(around(flow, course.elsewhere))
        course.flow, course.arrived = flow, time.monotonic()


def ended() -> None:
    """Keep what the ending of a run took that has computed something; called when its run is over."""
    course = under_way()
    if course and course.flow:
        keep(ending(course.flow, time.monotonic() - course.arrived))
        _course.set(None)


def keep(*spent: Spent, waited: bool = False) -> None:
    """Keep what work took for later estimates; ``waited`` says that it is not around the steps."""
    if course := under_way():
        course.waited += sum(each.seconds for each in spent) if waited else 0.0
        course.measured += [each for each in spent if each.units]
        keep_rates(course.run.workspace, [each for each in spent if each.units])


@contextmanager
def timed(spent: Spent) -> Iterator[None]:
    """Measure a task that is no shard, and keep what it took."""
    began = time.monotonic()
    yield
    seconds = time.monotonic() - began
    keep(spent.model_copy(update={"seconds": seconds}), waited=True)
