"""What a Prefect server knows of the pipeline, in Prometheus' text format."""

from __future__ import annotations

from collections import Counter
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
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from tasks.reports.summaries import read_steps

_PAGE = 200
_STEP = {  # columns of the summary of a step, see tasks.running.progress
    "rows": ("styleclip_step_rows", "Items of the step's last run"),
    "failed items": ("styleclip_step_failed_items", "Items of the step's last run that failed"),
    "seconds": ("styleclip_step_seconds", "Seconds that the step's last run took"),
    "rows/s": ("styleclip_step_rows_per_second", "Items that the step's last run computed per second"),
}


def server_metrics(now: datetime | None = None) -> str:
    """Return the runs of the last day, the last good run of every deployment, and what every step did.

    Args:
        now: When the day ends; now if not given.
    """
    registry = CollectorRegistry()
    runs = Gauge(
        "styleclip_runs", "Runs started in the last 24 h", ["deployment", "state"], registry=registry
    )
    good = Gauge(
        "styleclip_last_completed_timestamp_seconds", "End of the last good run", ["deployment"],
        registry=registry,
    )  # fmt: skip
    steps = {column: Gauge(name, text, ["step"], registry=registry) for column, (name, text) in _STEP.items()}

    with get_client(sync_client=True) as client:
        names = _deployments(client)
        since = (now or datetime.now(UTC)) - timedelta(days=1)
        for (deployment, state), count in _runs(client, since).items():
            runs.labels(names.get(deployment, "none"), state).set(count)

        # a deployment that never ended well has no time, rather than the beginning of time
        for deployment, name in names.items():
            ended = _last_completed(client, deployment)
            if ended:
                good.labels(name).set(ended.timestamp())

        for step, row in _summaries(client).items():
            for column, gauge in steps.items():
                gauge.labels(step).set(row.get(column, 0))

    return generate_latest(registry).decode()


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
    counts: Counter[tuple[UUID | None, str]] = Counter()

    # sorted by what does not change, so that a run which ends meanwhile does not move to another page
    page = client.read_flow_runs(flow_run_filter=started, sort=FlowRunSort.ID_DESC, limit=_PAGE)
    while page:
        counts.update((run.deployment_id, run.state_type.value if run.state_type else "NONE") for run in page)
        page = client.read_flow_runs(
            flow_run_filter=started, sort=FlowRunSort.ID_DESC, limit=_PAGE, offset=counts.total()
        )
    return counts


def _last_completed(client: SyncPrefectClient, deployment: UUID | None) -> datetime | None:
    if deployment is None:
        return None

    wanted = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[deployment]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.COMPLETED])),
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
