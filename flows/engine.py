"""Where the tasks of a flow run are executed: in threads of its process, or on a Ray cluster.

One setting chooses, the environment variable ``STYLECLIP_ENGINE`` of the process that runs the flow:

    threads                  threads of that process; the default
    ray                      the Ray cluster that RAY_ADDRESS names, or that this machine is a node of
    ray://HOST:10001         a Ray cluster elsewhere, through its client server

Ray is imported only where it is chosen. A flow is the same on both: what it submits is scheduled by the
engine, and a task that it runs alone goes through ``run``.
"""

from __future__ import annotations

import os
import re
from typing import Any, ParamSpec, Protocol, TypeVar, cast, runtime_checkable

from prefect import Task
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from styleclip.tasks.running import networks as models
from styleclip.tasks.running.overlap import shards_at_once
from styleclip.tasks.running.run import Run
from styleclip.tasks.settings import Execution, SettingsError
from styleclip_core.models.stylegan2 import Generator

_P = ParamSpec("_P")
_R = TypeVar("_R")
VARIABLE = "STYLECLIP_ENGINE"


@runtime_checkable
class Cluster(Protocol):
    """A task runner whose tasks run on other machines than the flow."""

    def pick_device(self, execution: Execution) -> str:
        """Return the device of the machines, ``"cuda"`` or ``"cpu"``."""


def task_runner() -> TaskRunner[PrefectFuture[Any]]:
    """Return the task runner that ``STYLECLIP_ENGINE`` asks for.

    Raises:
        SettingsError: If there is no such engine, or it is not installed.
    """
    chosen = os.environ.get(VARIABLE, "") or "threads"
    if chosen == "threads":
        threads = ThreadPoolTaskRunner(max_workers=shards_at_once(models.any_device()))  # type: ignore[var-annotated]
        return cast(TaskRunner[PrefectFuture[Any]], threads)

    if not re.fullmatch(r"ray(://[^/\s]+)?", chosen):
        raise SettingsError(f"{VARIABLE} must be threads, ray or ray://HOST:PORT, got {chosen!r}")

    # here and not above, as importing Ray takes a second and most machines do not have it
    try:
        from styleclip.flows.on_ray import RayRunner
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{VARIABLE}={chosen} needs Ray, and there is no module {error.name}; "
            f"install it with pip install 'styleclip-pipeline[ray]', or unset {VARIABLE}"
        ) from error
    return cast(TaskRunner[PrefectFuture[Any]], RayRunner(chosen))


def _cluster() -> Cluster | None:
    context = FlowRunContext.get()
    # a task may be called without a flow, from a notebook say
    runner = context.task_runner if context else None
    return runner if isinstance(runner, Cluster) else None


def pick_device(execution: Execution) -> str:
    """Return ``"cuda"`` or ``"cpu"``: what the tasks of this flow run compute on.

    Raises:
        SettingsError: If a GPU is asked for and the engine has none.
    """
    cluster = _cluster()
    return cluster.pick_device(execution) if cluster else models.pick_device(execution)


def here(device: str) -> str:
    """Return the device that the flow's own process uses where its tasks use ``device``."""
    return "cpu" if _cluster() else device


def has_cluster() -> bool:
    """Return whether the tasks of this flow run are executed on other machines than the flow."""
    return _cluster() is not None


def generator(run: Run) -> Generator:
    """Return the generator of a run in the flow's own process, for what it says of itself."""
    # a flow beside a cluster has no GPU
    return run.model_copy(update={"device": here(run.device)}).generator


def run(task: Task[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """Run one task where the engine runs them all, and wait for its result.

    Raises:
        Exception: What the task raises.
    """
    if not _cluster():
        return task(*args, **kwargs)
    return task.submit(*args, **kwargs).result()
