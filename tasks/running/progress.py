"""Running many shards: wait for all of them, show how far they are, then say what failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar, cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.futures import PrefectFuture, as_completed
from prefect.logging import get_run_logger
from pydantic import BaseModel, ConfigDict

from styleclip.tasks.running.rates import Spent
from styleclip.tasks.running.stopping import RunStoppedError, is_stopping
from styleclip_core.errors import StyleCLIPError

_R = TypeVar("_R", bound="ShardResult")
Observer = Callable[[str, int, int], None]
_observer: ContextVar[Observer | None] = ContextVar("styleclip_progress", default=None)


class ShardsFailedError(StyleCLIPError):
    """Some shards of a step failed; the others are finished and stay finished."""


class ItemsFailedError(StyleCLIPError):
    """All items of a run failed, or a larger share than was allowed; what went well is finished and stays."""


class ShardResult(BaseModel):
    """What a task returns for one shard: where its artifact is and what happened to its items.

    Attributes:
        uri: Where the artifact is.
        rows: Items of the shard.
        failed: Those that have an error in their row.
        reused: Whether nothing had to be computed.
        seconds: From the task's beginning to its end.
        tried: Items that were computed now, well or not.
        spent: What the computing took, by kind.
    """

    model_config = ConfigDict(frozen=True)

    uri: str
    rows: int
    failed: int = 0
    reused: bool = False
    seconds: float = 0.0
    tried: int = 0
    spent: tuple[Spent, ...] = ()


class StepSummary(BaseModel, Generic[_R]):
    """What one step did."""

    model_config = ConfigDict(frozen=True)

    step: str
    results: list[_R]
    seconds: float

    @property
    def computed(self) -> int:
        """Return the shards that this run computed."""
        return sum(not result.reused for result in self.results)

    @property
    def rows(self) -> int:
        """Return the items of all shards."""
        return sum(result.rows for result in self.results)

    @property
    def failed(self) -> int:
        """Return the items that have an error in their row."""
        return sum(result.failed for result in self.results)

    @property
    def rate(self) -> float:
        """Return how many items this run computed per second; 0 if it found all of them done."""
        computed = sum(result.rows for result in self.results if not result.reused)
        return computed / self.seconds if self.seconds > 0 else 0.0


@contextmanager
def observe(observer: Observer) -> Iterator[None]:
    """Call ``observer(step, done, total)`` as shards finish inside the block."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def _progress_artifact(step: str, total: int) -> UUID:
    created = create_progress_artifact(progress=0.0, key=step, description=f"{step}: {total} shards")
    return cast(UUID, created)  # a coroutine only where the caller is one


Again = Callable[[int], PrefectFuture[_R]]


def gather(
    step: str, futures: Sequence[PrefectFuture[_R]], again: Again[_R] | None = None
) -> StepSummary[_R]:
    """Wait for every shard and return the results in order.

    Args:
        step: Its name.
        futures: A shard each.
        again: Starts a shard anew, by its number. On Retry this is done to shards whose result is kept
            though some of their items failed; what is good in them they find done.

    Raises:
        ShardsFailedError: After all have ended, if any failed: a flow run with a failed shard must
            end Failed, or nobody can press Retry.
        RunStoppedError: The same, if the run was asked to stop.
    """
    return gather_chain({step: futures}, {step: again} if again else {})[0]


def gather_chain(
    steps: Mapping[str, Sequence[PrefectFuture[_R]]], again: Mapping[str, Again[_R]]
) -> list[StepSummary[_R]]:
    """Wait for steps that run side by side, where a shard takes what that of the step before made.

    Args:
        steps: Shards of each step, by its name, all steps in as many.
        again: As of ``gather``, by step. A shard that is started anew in one step is in the later ones too.

    Raises:
        ShardsFailedError: As ``gather``, after the shards of all steps have ended; it names the first step
            that has failed shards, as those of later ones may have failed for want of these.
    """
    ended, seconds, stale = dict[str, list[PrefectFuture[_R]]](), dict[str, float](), set[int]()
    begun = time.monotonic()
    for step, futures in steps.items():
        started, latest = time.monotonic(), list(futures)

        # all steps have been at work since the first began, so that is what a step's pace is taken from
        artifact = _progress_artifact(step, len(latest))
        _watch(step, latest, artifact, begun)

        # what is computed anew in one step makes what later steps kept of it stale
        if step in again:
            stale |= {number for number, future in enumerate(latest) if _kept_with_failures(future)}
            _start_again(step, latest, sorted(stale), again[step], artifact)
        ended[step], seconds[step] = latest, time.monotonic() - started

    # only when the shards of all steps have ended: a failure must not stop what does not depend on it
    for step, latest in ended.items():
        _refuse_broken(step, latest)
    return [_summary(step, latest, seconds[step]) for step, latest in ended.items()]


def _start_again(
    step: str, latest: list[PrefectFuture[_R]], stale: list[int], again: Again[_R], artifact: UUID
) -> None:
    if not stale:
        return

    get_run_logger().info("%s: %d finished shards have failed items and are tried again", step, len(stale))
    for number in stale:
        latest[number] = again(number)
    _watch(step, [latest[number] for number in stale], artifact, time.monotonic())


def _refuse_broken(step: str, futures: list[PrefectFuture[_R]]) -> None:
    undone = [future for future in futures if not future.state.is_completed()]
    broken = [future for future in undone if not _was_not_begun(future)] or undone
    if broken and is_stopping():
        raise RunStoppedError(
            f"stopped: {len(futures) - len(undone)} of {len(futures)} {step} shards are done; the same "
            "command goes on from here"
        )
    if broken:
        table = [{"task run": _name(future), "error": _message(future)} for future in broken]
        create_table_artifact(table=table, key=f"{step}-failures", description=f"failed shards of {step}")
        raise ShardsFailedError(
            f"{len(broken)} of {len(futures)} {step} shards failed, the others are done; first: "
            f"{table[0]['error']}; Retry runs only the failed ones again"
        )


def _summary(step: str, futures: list[PrefectFuture[_R]], seconds: float) -> StepSummary[_R]:
    results = [_seen(future.result(), future) for future in futures]
    summary: StepSummary[_R] = StepSummary(step=step, results=results, seconds=seconds)
    _report(summary)
    return summary


def _watch(step: str, futures: list[PrefectFuture[_R]], artifact: UUID, begun: float) -> None:
    """Wait for shards, with a line in the log for each and progress in tenths.

    Args:
        step: Its name.
        futures: The shards.
        artifact: Shows how far they are.
        begun: When work on them began, by the monotonic clock.
    """
    logger, observer = get_run_logger(), _observer.get()
    started, total, rows, failed, computed, waiting = time.monotonic(), len(futures), 0, 0, 0, 0
    made = 0  # rows of shards that were computed
    if observer:
        observer(step, 0, total)

    for done, future in enumerate(as_completed(futures), start=1):
        if observer:
            observer(step, done, total)
        future.wait()  # only now is its state final; before, it is what the server has heard so far
        left = ""
        if future.state.is_completed():
            result = _seen(future.result(), future)
            rows, failed = rows + result.rows, failed + result.failed
            if not result.reused:
                computed, made = computed + 1, made + result.rows
            left = time_left(total - done, computed, time.monotonic() - begun)
            logger.info("%s %d/%d: %s%s", step, done, total, _line(result), left)
        elif _was_not_begun(future):
            waiting += 1
        else:
            logger.error("%s %d/%d: failed: %s", step, done, total, _message(future))

        # every update is a request to the server
        if done * 10 // total != (done - 1) * 10 // total:
            rate = made / max(time.monotonic() - started, 1e-6)
            counted = f"{done} of {total} shards, {rows} rows, {failed} items failed, {rate:.1f} rows/s{left}"
            update_progress_artifact(
                artifact, progress=100.0 * done / total, description=f"{step}: {counted}"
            )

    # each of them would say no more than that another one failed
    if waiting:
        logger.error("%s: %d shards were not begun, as the shards they build on failed", step, waiting)


def time_left(shards: int, computed: int, seconds: float) -> str:
    """Return how long some shards will take, as the end of a line; nothing where that cannot be known.

    Args:
        shards: Those that have not ended.
        computed: Those that were computed so far; what was found done says nothing of the pace.
        seconds: What they took together.
    """
    if not shards or not computed:
        return ""
    left = shards * seconds / computed
    for unit, size in (("h", 3600), ("min", 60)):
        if left >= 2 * size:
            return f", about {left / size:.0f} {unit} left"
    return f", about {left:.0f} s left"


def _was_not_begun(future: PrefectFuture[_R]) -> bool:
    """Return whether a shard failed for want of one before it, which is told of itself."""
    return future.state.name == "NotReady"


def _kept_with_failures(future: PrefectFuture[_R]) -> bool:
    return is_cached(future) and future.result().failed > 0


def is_cached(future: PrefectFuture[_R]) -> bool:
    """Return whether a task was skipped because an earlier try of the run left its result."""
    return future.state.name == "Cached"


def _seen(result: _R, future: PrefectFuture[_R]) -> _R:
    """Return a result as this try of the run sees it: what an earlier one computed is found done."""
    return result.model_copy(update={"reused": True}) if is_cached(future) else result


def _line(result: ShardResult) -> str:
    done = "found done" if result.reused else f"{result.seconds:.1f} s" if result.seconds else "computed"
    return f"{result.rows} rows, {result.failed} items failed, {done}, {result.uri}"


def _message(future: PrefectFuture[_R]) -> str:
    return " ".join((future.state.message or "").split())[:300]


def _name(future: PrefectFuture[_R]) -> str:
    """Return the name of a task run, or its id where the server has not heard of it yet."""
    try:
        with get_client(sync_client=True) as client:
            return client.read_task_run(future.task_run_id).name
    except ObjectNotFound:
        return str(future.task_run_id)


def _report(summary: StepSummary[_R]) -> None:
    get_run_logger().info(
        "%s: %d rows in %d shards, %d computed now, %d items failed, %.1f s, %.1f rows/s computed",
        summary.step, summary.rows, len(summary.results), summary.computed, summary.failed,
        summary.seconds, summary.rate,
    )  # fmt: skip
