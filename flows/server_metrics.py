"""What a Prefect server knows of the pipeline, in Prometheus' text format."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactCollectionFilter,
    ArtifactCollectionFilterKey,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterStartTime,
    FlowRunFilterState,
    FlowRunFilterStateName,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from styleclip.tasks.reports.summaries import read_steps

_PAGE = 200
_TABLE = "relevance-table"  # key of the artifact that a build writes, see styleclip.flows.steps.table
_STEP = {  # what a report says of a step, see styleclip.tasks.reports.summaries
    "rows": "styleclip_step_rows",
    "failed items": "styleclip_step_failed_items",
    "seconds": "styleclip_step_seconds",
    "rows/s": "styleclip_step_rows_per_second",
}
METRICS = {  # what it is, labels
    "styleclip_runs": ("Runs started in the last 24 h", ["deployment", "state"]),
    "styleclip_late_runs": ("Runs that should have begun and have not", ["deployment"]),
    "styleclip_last_completed_timestamp_seconds": ("End of the last good run", ["deployment"]),
    "styleclip_step_rows": ("Items of the step's last run", ["step"]),
    "styleclip_step_failed_items": ("Items of the step's last run that failed", ["step"]),
    "styleclip_step_seconds": ("Seconds that the step's last run took", ["step"]),
    "styleclip_step_rows_per_second": ("Items that the step's last run computed per second", ["step"]),
    "styleclip_table_timestamp_seconds": ("When the last relevance table was written or found done", []),
    "styleclip_table_samples": ("Style codes per channel of the last relevance table", []),
    "styleclip_table_channels": ("Style channels of the last relevance table", []),
    "styleclip_device_slots": ("Runs that may compute on the device at once", ["device"]),
    "styleclip_device_slots_held": ("Runs that compute on the device", ["device"]),
    "styleclip_metrics_timestamp_seconds": ("When these metrics were read from the server", []),
}


class _Gauges(dict[str, Gauge]):
    """Gauges by name, each made when it is first set: what is not known is left out, and is not 0."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = CollectorRegistry()

    def __missing__(self, name: str) -> Gauge:
        text, labels = METRICS[name]
        self[name] = Gauge(name, text, labels, registry=self.registry)
        return self[name]


def server_metrics(now: datetime | None = None) -> str:
    """Return the runs of the last day, the last good run of every deployment, and what every step did.

    With them the runs that are late, the last relevance table, the slots of the devices, and the time of it
    all, by which one sees that it is no longer written.

    Args:
        now: When the day ends; now if not given.
    """
    gauges = _Gauges()
    runs, late = gauges["styleclip_runs"], gauges["styleclip_late_runs"]
    good = gauges["styleclip_last_completed_timestamp_seconds"]

    with get_client(sync_client=True) as client:
        names = _deployments(client)
        until = now or datetime.now(UTC)
        since = until - timedelta(days=1)
        gauges["styleclip_metrics_timestamp_seconds"].set(until.timestamp())
        for (deployment, state), count in _runs(client, since).items():
            runs.labels(names.get(deployment, "none"), state).set(count)

        # a deployment that never ended well has no time, rather than the beginning of time
        for deployment, name in names.items():
            ended = _last_completed(client, deployment)
            if ended:
                good.labels(name).set(ended.timestamp())

        # none is said too: a gauge that is not there fires no alert
        counts = _late(client)
        for deployment, name in names.items():
            late.labels(name).set(counts[deployment])

        for step, row in _summaries(client).items():
            for column, metric in _STEP.items():
                gauges[metric].labels(step).set(row.get(column, 0))
        _last_table(client, gauges)
        _slots(client, gauges)

    return generate_latest(gauges.registry).decode()


def _deployments(client: SyncPrefectClient) -> dict[UUID | None, str]:
    flows: dict[UUID, str] = {}
    names: dict[UUID | None, str] = {}
    for each in client.read_deployments(limit=_PAGE):
        if each.flow_id not in flows:
            flows[each.flow_id] = client.read_flow(each.flow_id).name  # once per flow: it is a request

        names[each.id] = f"{flows[each.flow_id]}/{each.name}"
    return names


def _runs(client: SyncPrefectClient, since: datetime) -> Counter[tuple[UUID | None, str]]:
    started = FlowRunFilter(start_time=FlowRunFilterStartTime(after_=since))
    return Counter(
        (run.deployment_id, run.state_type.value if run.state_type else "NONE")
        for run in _all_runs(client, started)
    )


def _all_runs(client: SyncPrefectClient, wanted: FlowRunFilter) -> Iterator[FlowRun]:
    """Yield the runs of a filter, a page at a time."""
    offset = 0
    # sorted by what does not change, so that a run which ends meanwhile does not move to another page
    while page := client.read_flow_runs(
        flow_run_filter=wanted, sort=FlowRunSort.ID_DESC, limit=_PAGE, offset=offset
    ):
        yield from page
        offset += len(page)


def _last_completed(client: SyncPrefectClient, deployment: UUID | None) -> datetime | None:
    if deployment is None:
        return None

    wanted = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[deployment]),
        # by its name, as a dry run is completed, too
        state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Completed"])),
    )
    last = client.read_flow_runs(flow_run_filter=wanted, sort=FlowRunSort.END_TIME_DESC, limit=1)
    return last[0].end_time if last else None


def _summaries(client: SyncPrefectClient) -> dict[str, dict[str, Any]]:
    """Return what the latest reports say of every step."""
    key = ArtifactCollectionFilterKey(like_="-report")
    found = client.read_latest_artifacts(artifact_filter=ArtifactCollectionFilter(key=key), limit=_PAGE)

    # of flows that have a step in common, the one that was shown last
    rows: dict[str, dict[str, Any]] = {}
    for each in sorted(found, key=lambda each: str(each.updated)):
        if each.key and each.key.endswith("-report") and isinstance(each.data, str):
            rows |= read_steps(each.data)
    return rows


def _late(client: SyncPrefectClient) -> Counter[UUID | None]:
    """Count the runs that the server calls late, by deployment."""
    wanted = FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Late"])))
    return Counter(run.deployment_id for run in _all_runs(client, wanted))


def _last_table(client: SyncPrefectClient, gauges: _Gauges) -> None:
    wanted = ArtifactCollectionFilter(key=ArtifactCollectionFilterKey(any_=[_TABLE]))
    for each in client.read_latest_artifacts(artifact_filter=wanted, limit=1):
        (size,) = json.loads(str(each.data))
        gauges["styleclip_table_samples"].set(size["samples"])
        gauges["styleclip_table_channels"].set(size["channels"])
        if each.updated:
            gauges["styleclip_table_timestamp_seconds"].set(each.updated.timestamp())


def _slots(client: SyncPrefectClient, gauges: _Gauges) -> None:
    """Read the limits of the devices; those that Prefect makes for itself are no devices."""
    for each in client.read_global_concurrency_limits(limit=_PAGE):
        if not each.name.startswith(("tag:", "deployment:")):
            gauges["styleclip_device_slots"].labels(each.name).set(each.limit)
            gauges["styleclip_device_slots_held"].labels(each.name).set(each.active_slots)
