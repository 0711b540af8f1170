"""Prefect's tasks on a Ray cluster: GPUs, environment and networks of its worker processes.

``prefect-ray`` submits and waits. Added here:

- A task that computes (it has a parameter ``run``) asks Ray for GPUs: one where that run's device is
  ``cuda``, or what ``STYLECLIP_RAY_GPUS`` says, e.g. 0.5 so that two of them share a GPU. Ray starts it where
  so much is free, and no other task is then counted there.
- A worker process is kept from task to task, and so are the networks it has loaded. Ray would end a process
  that used a GPU after one task. A process that is given another GPU than before computes on that one.
- Storage credentials and options of the flow's environment reach the workers beside the task, not in its
  parameters, nor in Ray's runtime environment, which its dashboard and logs show. A node that has its own
  keeps to those.
- A task that waits for others is started when they have ended; Prefect would start it and hold its GPU.
- What a task reports to Prefect is sent before it ends, and a flow waits for the last lines of log, since
  Ray ends the processes of a flow run with it.

A task whose process or machine dies is started again elsewhere by Ray, three times at most.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar

import ray
import torch
from prefect import Task
from prefect.client.schemas.objects import RunInput
from prefect.events.worker import EventsWorker
from prefect.futures import PrefectFuture
from prefect.settings import get_current_settings
from prefect_ray.context import remote_options
from prefect_ray.task_runners import PrefectRayFuture, RayTaskRunner

from styleclip.tasks.running.run import Run
from styleclip.tasks.settings import Execution, SettingsError

_R = TypeVar("_R")
GPUS_VARIABLE = "STYLECLIP_RAY_GPUS"
_GROUPS = ("AWS_", "FSSPEC_", "STYLECLIP_STORAGE_", "STYLECLIP_IO_THREADS")
_LOG_SLACK_S = 1.0
_before: ContextVar[list[Any]] = ContextVar("styleclip_ray_before")  # what the task submitted now waits for
_own = frozenset(os.environ)  # of a worker process: what its node gave it


class RayRunner(RayTaskRunner[_R]):  # type: ignore[misc]  # prefect-ray has no types
    """Submits Prefect's tasks to a Ray cluster.

    Args:
        address: ``"ray"`` for the cluster of this machine or of ``RAY_ADDRESS``; else ``"ray://HOST:PORT"``.
        init_kwargs: More arguments of ``ray.init``.
    """

    def __init__(self, address: str | None = "ray", init_kwargs: dict[str, Any] | None = None) -> None:
        settings = {
            "address": "auto" if address == "ray" else address,
            "log_to_driver": False,  # Prefect collects what tasks log
            "runtime_env": {"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}},
        }
        super().__init__(address=None, init_kwargs={**settings, **(init_kwargs or {})})

    def pick_device(self, execution: Execution) -> str:
        """Return ``"cuda"`` if the cluster has GPUs and they are not declined, else ``"cpu"``.

        Raises:
            SettingsError: If GPUs are asked for and no node has any.
        """
        gpus = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
        device = ("cuda" if gpus else "cpu") if execution.device == "auto" else execution.device

        # Ray would let tasks wait for ever for what no node has
        if gpus_for(device) and not gpus:
            raise SettingsError(
                f"tasks on {device} ask for {gpus_for(device):g} GPUs each, but no node of the Ray cluster "
                f"has any; start a node that has, or set device to cpu and unset {GPUS_VARIABLE}"
            )
        return device

    def submit(
        self,
        task: Task[..., Any],
        parameters: dict[str, Any],
        wait_for: Iterable[PrefectFuture[Any]] | None = None,
        dependencies: dict[str, set[RunInput]] | None = None,
    ) -> PrefectRayFuture[Any]:
        """Start a task when some node has the GPUs that it asks for."""
        run = parameters.get("run")
        gpus = gpus_for(run.device) if isinstance(run, Run) else 0

        # what Prefect would wait for inside of the task, with its GPU held, Ray waits for before
        before = list(wait_for or ())
        token = _before.set([each.wrapped_future for each in before if isinstance(each, PrefectRayFuture)])
        try:
            with remote_options(num_gpus=gpus, max_calls=0):
                return super().submit(task, parameters, before, dependencies)
        finally:
            _before.reset(token)

    def _exchange_prefect_for_ray_futures(
        self, kwargs_prefect_futures: dict[str, Any]
    ) -> tuple[dict[str, Any], list[Any]]:
        parameters, upstream = super()._exchange_prefect_for_ray_futures(kwargs_prefect_futures)
        return parameters, [to_pass(os.environ), *upstream, *_before.get()]

    def __exit__(self, *exc_info: object) -> None:
        """Leave the cluster, which ends the worker processes, when they have sent their last lines of log."""
        if self._owns_ray:
            time.sleep(get_current_settings().logging.to_api.batch_interval + _LOG_SLACK_S)
        super().__exit__(*exc_info)

    @staticmethod
    def _run_prefect_task(environment: dict[str, str], *upstream: Any, **task: Any) -> Any:  # noqa: ANN401
        adopt(environment)
        _use_assigned_gpu()
        try:
            return RayTaskRunner._run_prefect_task(*upstream, **task)
        finally:
            _send_events()


def gpus_for(device: str) -> float:
    """Return how many GPUs a task on ``device`` asks for.

    Raises:
        SettingsError: If ``STYLECLIP_RAY_GPUS`` is neither a whole number nor a fraction of one GPU.
    """
    wanted = os.environ.get(GPUS_VARIABLE, "")
    if not wanted:
        return 1 if device == "cuda" else 0

    try:
        gpus = float(wanted)
    except ValueError:
        gpus = -1.0

    # Ray counts several GPUs of a task as whole ones only
    if not (0 <= gpus <= 1 or gpus.is_integer()) or gpus < 0:
        raise SettingsError(f"{GPUS_VARIABLE} must be a fraction up to 1 or a whole number, got {wanted!r}")
    return gpus


def to_pass(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that workers need to reach storage as the flow does."""
    return {name: value for name, value in environment.items() if name.startswith(_GROUPS)}


def adopt(given: Mapping[str, str]) -> None:
    """Take the flow's variables into this process, but for groups of which the node has its own.

    A process that runs tasks of several flows forgets what the last one gave it.
    """
    for name in [name for name in os.environ if name.startswith(_GROUPS) and name not in _own]:
        del os.environ[name]

    # a group comes whole from one of the two: half of the flow's credentials would not fit the node's
    taken = tuple(group for group in _GROUPS if not any(name.startswith(group) for name in _own))
    os.environ.update({name: value for name, value in given.items() if name.startswith(taken)})


def _use_assigned_gpu() -> None:
    """Compute on the GPU that Ray counts for this task; all of the node's are visible."""
    assigned = ray.get_runtime_context().get_accelerator_ids()["GPU"]
    if assigned and torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        # Ray counts the GPUs of the node, torch those that this process may see
        torch.cuda.set_device(visible.index(assigned[0]) if assigned[0] in visible else int(assigned[0]))


def _send_events() -> None:
    """Wait until the server has heard what this process reported."""
    for service in list(EventsWorker._instances.values()):  # type: ignore[misc]
        if isinstance(service, EventsWorker):  # services of all kinds are kept together
            service.wait_until_empty()
