"""The command that writes the page of a batch, whole or not."""

from __future__ import annotations

from typing import Annotated

import typer

from styleclip_cli.options import OutWorkspace, Verbose, Workers, prepare, with_progress
from tasks.settings import SettingsError


def report(
    manifest: Annotated[str, typer.Option(help="URI of a batch's manifest.parquet")] = "",
    partial: Annotated[
        str,
        typer.Option(help="Prefix for results of a run that was killed: manifest and page of what is done"),
    ] = "",
    evaluation: Annotated[
        list[str] | None,
        typer.Option(help="URI of a table of further scores; those beside the manifest are found"),
    ] = None,
    choice: Annotated[
        list[str] | None, typer.Option(help="URI of a table of the alphas and betas tried for an edit")
    ] = None,
    workspace: OutWorkspace = "",
    workers: Workers = 0,
    verbose: Verbose = False,
) -> None:
    """Write the page of a batch that was edited before, or of what is done of one."""
    prepare(workers, verbose)
    from flows.report_batch import report_batch, report_partial

    if bool(manifest) == bool(partial):
        raise SettingsError(
            "say what to report: --manifest of a batch, or --partial with a prefix, one of them"
        )
    if partial:
        for page in with_progress(lambda: report_partial(partial, workspace)):
            typer.echo(f"report page    {page}")
        return

    page = with_progress(lambda: report_batch(manifest, evaluation or [], workspace, choice or []))
    typer.echo(f"report page    {page}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)
