"""The commands of pages: write that of a batch, whole or not, and show them in a browser."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from styleclip.tasks.settings import SettingsError
from styleclip_cli import output
from styleclip_cli.options import OutWorkspace, Verbose, Workers, prepare, with_progress


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
    from styleclip.flows.report_batch import report_batch, report_partial

    if bool(manifest) == bool(partial):
        raise SettingsError(
            "say what to report: --manifest of a batch, or --partial with a prefix, one of them"
        )
    if partial:
        pages = with_progress(lambda: report_partial(partial, workspace))
    else:
        pages = [with_progress(lambda: report_batch(manifest, evaluation or [], workspace, choice or []))]
    output.results(report_page=pages)


def serve(
    out: Annotated[
        str,
        typer.Argument(
            help="URI of the prefix that results lie under, --out of an edit", envvar="STYLECLIP_OUT"
        ),
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Loopback port; 0 for a free one")] = 0,
) -> None:
    """Show the pages of a bucket in a browser on this machine, until it is interrupted."""
    from styleclip.tasks.storage import MissingObjectError, join, list_objects
    from styleclip_cli.serving import Pages

    pages = [item.key for item in list_objects(join(out, "batches"), ("/index.html",))]
    if not pages:
        raise MissingObjectError(f"there is no page of a batch below {out}; give --out of an edit")

    server = Pages(out, port)
    output.results(report_page=[f"{server.address}batches/{quote(key)}" for key in pages])
    output.end("serving")  # there is no later moment to say it
    output.tell("serving what lies below it, to this machine alone; Ctrl-C ends it")
    server.serve_forever()
