"""What makes Retry in the Prefect UI re-run only what failed.

On a retry the flow's code runs again and every task looks for its own result. Prefect's default key
holds the task's source and the flow run, so a bug fix or a retried subflow would redo everything;
and a key without the task's name lets two tasks with equal arguments take each other's results.
Ours is the root flow run, the task's name and a hash of its inputs.

Results are references of a few hundred bytes. Where they are stored is Prefect's own setting
(``PREFECT_DEFAULT_RESULT_STORAGE_BLOCK``, a local folder if it is not set).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

from prefect import Task, runtime, task
from prefect.cache_policies import INPUTS, CachePolicy
from prefect.context import TaskRunContext

from styleclip.tasks.running.stopping import begun
from styleclip_core.errors import StyleCLIPError

_P = ParamSpec("_P")
_R = TypeVar("_R")
# 1 was without a number: its records name classes by modules that are called differently now
_RESULTS = "styleclip/2"


class ResultStorageError(StyleCLIPError):
    """Prefect cannot keep task results, so Retry would run everything again."""


@lru_cache(maxsize=256)
def _root_run(flow_run_id: str) -> str:  # a few API calls inside a subflow, the same every time
    return str(runtime.flow_run.root_flow_run_id or flow_run_id)


@dataclass
class PerRun(CachePolicy):
    """Key of a task's result within one root flow run: survives code edits and retried subflows."""

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,  # noqa: ANN401 - Prefect's signature
    ) -> str | None:
        """Return ``styleclip/2/<root run>/<task>/<hash of the inputs>``."""
        run = task_ctx.task_run.flow_run_id
        # the root's id, as a subflow has another one each time it is tried
        root = _root_run(str(run)) if run else str(task_ctx.task_run.id)
        digest = INPUTS.compute_key(task_ctx, inputs, flow_parameters, **kwargs) or "no-inputs"
        return f"{_RESULTS}/{root}/{task_ctx.task.name}/{digest}"


PER_RUN = PerRun()


def unit_of_work(name: str, run_name: str = "") -> Callable[[Callable[_P, _R]], Task[_P, _R]]:
    """Return a decorator that makes a function a task which Retry runs again only if it failed.

    Args:
        name: Of the task; a part of its result's key, so it must not change between releases.
        run_name: Of a run of it, with parameters in braces; Prefect thinks of one if it is empty.
    """

    def decorate(work: Callable[_P, _R]) -> Task[_P, _R]:
        @wraps(work)
        def counted(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with begun():
                return work(*args, **kwargs)

        return task(name=name, task_run_name=run_name or None, cache_policy=PER_RUN, persist_result=True)(
            counted
        )

    return decorate


@unit_of_work("probe-result-storage")
def probe_result_storage() -> str:
    """Write and read one record where results go, so that a bad place fails the run at once."""
    from prefect.results import get_result_store

    store = get_result_store()
    key = f"styleclip/probe/{runtime.task_run.id}"

    try:
        store.write("probe", key=key)
        found = store.read(key).result
    except Exception as error:
        raise ResultStorageError(
            f"result storage {type(store.result_storage).__name__} does not work: {error}; "
            "check PREFECT_DEFAULT_RESULT_STORAGE_BLOCK, the bucket and its credentials"
        ) from error

    if found != "probe":
        raise ResultStorageError("result storage returned another record than was written; check its bucket")
    return "ok"
