"""The command that writes the page of a batch anew."""

from __future__ import annotations

from typing import Annotated

import typer

from styleclip_cli.options import OutWorkspace, Verbose, Workers, prepare, with_progress


def report(
    manifest: Annotated[str, typer.Option(help="URI of a batch's manifest.parquet")],
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
    """Write the page of a batch that was edited before."""
    prepare(workers, verbose)
    from flows.report_batch import report_batch as flow

    page = with_progress(lambda: flow(manifest, evaluation or [], workspace, choice or []))
    typer.echo(f"report page    {page}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)
