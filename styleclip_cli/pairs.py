"""The command that makes a training set of a batch."""

from __future__ import annotations

from typing import Annotated

import typer

from styleclip.tasks.settings.pairs import Pairing
from styleclip_cli import output
from styleclip_cli.generated import Shown
from styleclip_cli.options import Verbose, Workers, prepare, with_progress


def pairs(
    manifest: Annotated[
        str, typer.Option(help="URI of a batch's manifest.parquet", envvar="STYLECLIP_MANIFEST")
    ],
    out: Annotated[str, typer.Option(help="URI of the prefix for the set")],
    pairing: Annotated[Pairing, Shown()] = Pairing(),
    workspace: Annotated[
        str,
        typer.Option(
            help="Folder for artifacts", show_default="that of the edits", envvar="STYLECLIP_WORKSPACE"
        ),
    ] = "",
    workers: Workers = 0,
    verbose: Verbose = False,
) -> None:
    """Make a training set of a batch: image before, instruction, image after, and all scores."""
    prepare(workers, verbose)
    from styleclip.flows.export_pairs import export_pairs as flow

    result = with_progress(lambda: flow(manifest, out, pairing, workspace))
    output.count(pairs=result.pairs, considered=result.considered)
    output.tell(f"{result.pairs} pairs of {result.considered} edits")
    output.results(pairs=result.folder, data_card=result.card)
