"""What a Prefect server needs before the deployments: pool, queues, limits, result storage, automations.

Everything is looked for first and made or brought up to date, so that setting up twice changes nothing.
Nothing here holds a credential but the webhook's URL, which Prefect keeps encrypted.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect.automations import Automation
from prefect.blocks.webhook import Webhook
from prefect.client.base import ServerType
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.filesystems import LocalFileSystem, RemoteFileSystem
from prefect.settings import get_current_settings
from prefect.workers.process import ProcessWorker
from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter

from styleclip.flows import alerts
from styleclip.flows.alerts import Receivers
from styleclip.flows.doors import open_doors
from styleclip.tasks.storage import canonical, is_local
from styleclip_core.errors import StyleCLIPError

POOL, RESULTS, WEBHOOK = "styleclip-gpu", "styleclip-results", "styleclip-notify"
QUEUES = {"nightly": 1, "bulk": 2}  # priorities; the lower one goes first
HEARTBEAT = 30  # seconds between the signs of life of a flow run, the fewest that Prefect allows
ORDERING = "styleclip.flows.event_order"


class SetupError(StyleCLIPError):
    """The Prefect server could not be set up."""


class ServerSetup(BaseModel):
    """What to set up.

    Attributes:
        pool: Name of the work pool.
        device_limits: Names of the limits of the devices, one run at a time computes on each.
        runs_per_device: Runs of the pool at once for each of these; without any its limit is left alone.
        results: URI of the folder for task results; Prefect's own place if empty.
        webhook: URL that is told of failed, late and missing runs; none if empty.
        notification_block: Prefect block that is told of them, as ``slack-webhook/ops``; none if empty.
        silence: Seconds without a sign of life after which a run counts as crashed.
        late_after: Seconds after a run was due at which it is told that it has not begun.
        nightly: Deployment that is to complete every night, as ``flow/name``.
        missing_after: Seconds without a completed run of it after which that is told.
        unprotected: Whether a server that lets anybody in is set up all the same.
    """

    model_config = ConfigDict(frozen=True)

    pool: str = POOL
    device_limits: tuple[str, ...] = ()
    runs_per_device: int = Field(2, ge=1)
    results: str = ""
    webhook: SecretStr = SecretStr("")
    notification_block: str = ""
    silence: int = Field(90, ge=3 * HEARTBEAT)
    late_after: int = Field(600, ge=30)
    nightly: str = Field("build-relevance/nightly", pattern="^[^/]+/[^/]+$")
    missing_after: int = Field(26 * 3600, ge=alerts.SHORTEST)
    unprotected: bool = False


def set_up(wanted: ServerSetup) -> list[str]:
    """Make what is missing on the server that ``PREFECT_API_URL`` names; return a line about each thing.

    Raises:
        SetupError: If there is no such server, or no such block, or if the server lets anybody in.
        StorageError: If the folder for results cannot be used.
    """
    with get_client(sync_client=True) as client:
        if client.server_type == ServerType.EPHEMERAL:
            raise SetupError(
                "there is no Prefect server to set up; start one and give its address, "
                "PREFECT_API_URL=http://127.0.0.1:4200/api"
            )
        problem = client.api_healthcheck()
        if problem:
            raise SetupError(f"the Prefect server at {client.api_url} does not answer: {problem}")
        if not wanted.unprotected:
            _refuse_open(str(client.api_url))

        # the pool's template gives these to every run, whichever worker starts it
        environment = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT)}
        lines = []
        if wanted.results:
            block = _save_results(wanted.results)
            environment["PREFECT_DEFAULT_RESULT_STORAGE_BLOCK"] = block
            lines.append(f"result storage {block}: {wanted.results}")

        lines.append(
            _pool(client, wanted.pool, environment, wanted.runs_per_device * len(wanted.device_limits))
        )
        lines += [_queue(client, wanted.pool, name, priority) for name, priority in QUEUES.items()]
        for name in wanted.device_limits:
            client.upsert_global_concurrency_limit_by_name(name, 1)
            lines.append(f"limit {name}: one run at a time computes")
        ui, known_after, ordering = _server_settings(client)
        receivers = _receivers(client, wanted, ui)

    # automations open clients of their own
    lines += [alerts.save(each) for each in _alerts(wanted, receivers, known_after)]
    if receivers and ordering != ORDERING:
        lines.append(
            "of a run that was scheduled within 5 minutes of its start, messages come up to 15 minutes late: "
            f"set PREFECT_SERVER_EVENTS_CAUSAL_ORDERING={ORDERING} on the server"
        )
    return lines


def _refuse_open(api: str) -> None:
    found = open_doors(api)
    if found:
        raise SetupError(
            f"the Prefect server at {api} lets anybody in, and whoever is in can have a command run as the "
            f"worker: {'; '.join(found)}; see docs/operations.md, or give --unprotected where nobody else, "
            "and no browser, reaches it"
        )


def _save_results(uri: str) -> str:
    """Save the block of the folder for task results and return its name; it holds no credentials."""
    uri = canonical(uri)  # refuses a URI with credentials in it, and storage of an unknown kind

    if is_local(uri):
        folder = Path(uri)
        folder.mkdir(parents=True, exist_ok=True)
        LocalFileSystem(basepath=str(folder)).save(RESULTS, overwrite=True)
        return f"local-file-system/{RESULTS}"

    RemoteFileSystem(basepath=uri).save(RESULTS, overwrite=True)
    return f"remote-file-system/{RESULTS}"


def _pool(client: SyncPrefectClient, name: str, environment: dict[str, str], runs: int) -> str:
    """Make the pool, or add to the environment that it gives to its runs; 0 runs at once leave its limit.

    The pool limits them, not its workers: a worker that is started with a limit ends with all its runs, when
    one of them is retried before Prefect has done with its crash.
    """
    try:
        template = client.read_work_pool(name).base_job_template
        done = "there"
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        description = "Runs of the pipeline on machines with a GPU"
        client.create_work_pool(
            WorkPoolCreate(name=name, type="process", description=description, base_job_template=template)
        )
        done = "made"

    # a run needs neither, and whoever may start one could have any command executed
    for name_ in ("command", "working_dir"):
        template["variables"]["properties"].pop(name_, None)
        template["job_configuration"].pop(name_, None)

    # what an operator has put into the template beside ours stays
    variable: dict[str, Any] = template["variables"]["properties"]["env"]
    variable["default"] = {**(variable.get("default") or {}), **environment}
    limit = {"concurrency_limit": runs} if runs else {}
    client.update_work_pool(name, WorkPoolUpdate(base_job_template=template, **limit))
    return f"work pool {name}: {done}" + (f", {runs} runs at once" if runs else "")


def _queue(client: SyncPrefectClient, pool: str, name: str, priority: int) -> str:
    try:
        client.create_work_queue(name, priority=priority, work_pool_name=pool)
        return f"work queue {name}: made"
    except ObjectAlreadyExists:
        return f"work queue {name}: there"


def _receivers(client: SyncPrefectClient, wanted: ServerSetup, ui: str) -> Receivers:
    """Return who is told when something is wrong; save the webhook."""
    webhook: Any = None
    if wanted.webhook.get_secret_value():
        # a coroutine only where the caller is one
        webhook = Webhook(url=wanted.webhook).save(WEBHOOK, overwrite=True)

    notification = None
    if wanted.notification_block:
        kind, _, name = wanted.notification_block.partition("/")
        try:
            notification = client.read_block_document_by_name(name, kind).id
        except ObjectNotFound as error:
            raise SetupError(
                f"there is no block {wanted.notification_block!r}; make it in the UI under Blocks and give "
                "its kind and name, e.g. slack-webhook/ops"
            ) from error
    return Receivers(webhook=webhook, notification=notification, ui=ui)


def _alerts(wanted: ServerSetup, receivers: Receivers, known_after: timedelta) -> Iterator[Automation]:
    yield alerts.zombies(wanted.silence)
    if receivers:
        yield alerts.failed(receivers)
        yield alerts.late(receivers, timedelta(seconds=wanted.late_after), known_after)
        yield alerts.missing(receivers, wanted.nightly, timedelta(seconds=wanted.missing_after))


def _server_settings(client: SyncPrefectClient) -> tuple[str, timedelta, str]:
    """Return the server's address for links, when it calls a run late, and its order of events."""
    answer = client.request("GET", "/admin/settings")
    answer.raise_for_status()
    found = answer.json()

    # one that was not told its own address is reached under ours
    ui = found["ui_url"] or get_current_settings().ui_url or ""
    late = TypeAdapter(timedelta).validate_python(found["server"]["services"]["late_runs"]["after_seconds"])
    return str(ui).rstrip("/"), late, str(found["server"]["events"]["causal_ordering"])
