"""Running many shards: wait for all of them, show how far they are, then say what failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar, cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.futures import PrefectFuture, as_completed
from prefect.logging import get_run_logger
from pydantic import BaseModel, ConfigDict

from styleclip_core.errors import StyleCLIPError

_R = TypeVar("_R", bound="ShardResult")
Observer = Callable[[str, int, int], None]
_observer: ContextVar[Observer | None] = ContextVar("styleclip_progress", default=None)


class ShardsFailedError(StyleCLIPError):
    """Some shards of a step failed; the others are finished and stay finished."""


class ShardResult(BaseModel):
    """What a task returns for one shard: where its artifact is and what happened to its items."""

    model_config = ConfigDict(frozen=True)

    uri: str
    rows: int
    failed: int = 0
    reused: bool = False
    seconds: float = 0.0


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


def gather(step: str, futures: Sequence[PrefectFuture[_R]]) -> StepSummary[_R]:
    """Wait for every shard and return the results in order.

    Raises:
        ShardsFailedError: After all have ended, if any failed: a flow run with a failed shard must
            end Failed, or nobody can press Retry.
    """
    return gather_all({step: futures})[0]


def gather_all(steps: Mapping[str, Sequence[PrefectFuture[_R]]]) -> list[StepSummary[_R]]:
    """Wait for every shard of steps that run side by side, and return what each step did.

    Raises:
        ShardsFailedError: As ``gather``, after the shards of all steps have ended; it names the first step
            that has failed shards, as those of later ones may have failed for want of these.
    """
    seconds = {step: _wait(step, futures) for step, futures in steps.items()}
    for step, futures in steps.items():
        _refuse_broken(step, futures)
    summaries = [
        StepSummary[_R](step=step, results=[each.result() for each in futures], seconds=seconds[step])
        for step, futures in steps.items()
    ]
    for summary in summaries:
        _report(summary)
    return summaries


def _wait(step: str, futures: Sequence[PrefectFuture[_R]]) -> float:
    """Show how far a step is until all its shards have ended; return the seconds that took."""
    logger, observer = get_run_logger(), _observer.get()
    started, total = time.monotonic(), len(futures)
    artifact = _progress_artifact(step, total)
    if observer:
        observer(step, 0, total)
    for done, _ in enumerate(as_completed(list(futures)), start=1):
        if observer:
            observer(step, done, total)
        if done * 10 // total != (done - 1) * 10 // total:
            update_progress_artifact(artifact, progress=100.0 * done / total)
            logger.info("%s: %d of %d shards", step, done, total)
    for future in futures:
        future.wait()  # only now is its state final; before, it is what the server has heard so far
    return time.monotonic() - started


def _refuse_broken(step: str, futures: Sequence[PrefectFuture[_R]]) -> None:
    broken = [future for future in futures if not future.state.is_completed()]
    if broken:
        rows = [
            {"task_run": str(future.task_run_id), "error": (future.state.message or "")[:300]}
            for future in broken
        ]
        create_table_artifact(table=rows, key=f"{step}-failures", description=f"failed shards of {step}")
        raise ShardsFailedError(
            f"{len(broken)} of {len(futures)} {step} shards failed, the others are done; first: "
            f"{rows[0]['error']}; Retry runs only the failed ones again"
        )


def _report(summary: StepSummary[_R]) -> None:
    rate = summary.rows / summary.seconds if summary.seconds > 0 else 0.0
    get_run_logger().info(
        "%s: %d rows in %d shards, %d computed now, %d items failed, %.1f s, %.1f rows/s",
        summary.step, summary.rows, len(summary.results), summary.computed, summary.failed,
        summary.seconds, rate,
    )  # fmt: skip
    create_table_artifact(
        key=f"{summary.step}-summary",
        description=f"what {summary.step} did",
        table=[{
            "shards": len(summary.results), "computed now": summary.computed, "rows": summary.rows,
            "failed items": summary.failed, "seconds": round(summary.seconds, 1), "rows/s": round(rate, 1),
        }],
    )  # fmt: skip
