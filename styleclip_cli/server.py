"""The commands of a Prefect server: prepare it, deploy to it, ask it how runs went."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from pydantic import SecretStr

from styleclip_cli import output
from styleclip_cli.options import Verbose, prepare


def setup_server(
    pool: Annotated[str, typer.Option(help="Name of the work pool, as in prefect.yaml")] = "styleclip-gpu",
    device_limit: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of a device's limit, e.g. gpu-0: one run at a time computes on it, of all whose "
            "worker has that name in STYLECLIP_DEVICE_LIMIT; may be repeated"
        ),
    ] = None,
    results: Annotated[
        str,
        typer.Option(help="URI of the folder for task results, which Retry needs", show_default="Prefect's"),
    ] = "",
    notify_block: Annotated[
        str,
        typer.Option(
            help="Prefect block to tell of failed, late and missing runs, e.g. slack-webhook/ops; a "
            "webhook's URL is read from STYLECLIP_NOTIFY_URL"
        ),
    ] = "",
    runs_per_device: Annotated[
        int,
        typer.Option(min=1, help="Runs of the pool at once for each device limit; they share its memory"),
    ] = 2,
    silence: Annotated[
        int, typer.Option(min=90, help="Seconds without a sign of life after which a run has crashed")
    ] = 90,
    late_after: Annotated[
        int,
        typer.Option(
            min=30, help="Seconds after a scheduled run was due at which it is told that it has not begun"
        ),
    ] = 600,
    missing_after: Annotated[
        int,
        typer.Option(
            min=10, help="Seconds without a completed run of build-relevance/nightly after which that is told"
        ),
    ] = 26 * 3600,
    unprotected: Annotated[
        bool,
        typer.Option(
            "--unprotected", help="Set up a server without a password, or one that any page may ask"
        ),
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Make pool, queues, limits, result storage and notifications on the server of PREFECT_API_URL.

    What is there already is brought up to date; `styleclip deploy` comes next.
    """
    prepare(0, verbose)
    from styleclip.flows.server_setup import ServerSetup, set_up

    wanted = ServerSetup(
        pool=pool,
        device_limits=tuple(device_limit or ()),
        runs_per_device=runs_per_device,
        results=results,
        webhook=SecretStr(os.environ.get("STYLECLIP_NOTIFY_URL", "")),
        notification_block=notify_block,
        silence=silence,
        late_after=late_after,
        missing_after=missing_after,
        unprotected=unprotected,
    )

    lines = set_up(wanted)
    output.answer(lines, set_up=lines)


def deploy(
    env_file: Annotated[
        str,
        typer.Option(
            help="File of KEY=VALUE lines, as systemd reads them, with the STYLECLIP_ variables that "
            "prefect.yaml names; they count more than those of the shell"
        ),
    ] = "",
    prefect_file: Annotated[
        str, typer.Option(help="File of the deployments; modules are imported from its folder")
    ] = "prefect.yaml",
    write: Annotated[
        bool,
        typer.Option(
            "--write",
            help="Write the deployments that come with this version to the file, and deploy nothing",
        ),
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Deploy all that prefect.yaml says to the server of PREFECT_API_URL.

    A schedule that would lack a value is refused before anything is deployed; what was paused stays paused.
    """
    prepare(0, verbose)
    from styleclip.flows.deployments import deploy as deploy_all
    from styleclip.flows.deployments import read_environment, write_file
    from styleclip_cli.prefect_api import reach

    # no server is needed for that
    if write:
        write_file(Path(prefect_file))
        output.answer([prefect_file], prefect_file=prefect_file)
        return

    values = read_environment(Path(env_file)) if env_file else {}
    reach(named=True)
    lines = deploy_all(Path(prefect_file), values)
    output.answer(lines, deployed=lines)


def server_metrics(
    env_file: Annotated[
        str,
        typer.Option(
            help="File of KEY=VALUE lines, as systemd reads them, with PREFECT_API_URL and the password; for "
            "cron, which has no environment"
        ),
    ] = "",
    out: Annotated[
        str,
        typer.Option(help="File to replace as a whole, for node_exporter", show_default="standard output"),
    ] = "",
    verbose: Verbose = False,
) -> None:
    """Print runs, lateness, tables, slots and failures that the server of PREFECT_API_URL knows.

    In Prometheus' format. When the server cannot be asked, the file of --out stays as it was, and the
    status is not 0.
    """
    prepare(0, verbose)
    from prefect.context import refresh_global_settings_context

    from styleclip.flows.deployments import read_environment
    from styleclip.flows.server_metrics import server_metrics as collect
    from styleclip_cli.prefect_api import reach

    if env_file:
        os.environ.update(read_environment(Path(env_file)))
        refresh_global_settings_context()  # Prefect has read its settings when it was imported
    reach(named=True)

    text = collect()
    if not out:
        output.answer(text.splitlines(), metrics=text)
        return
    # node_exporter reads at any time, and never half a file
    aside = Path(f"{out}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(out)
