"""The commands that say what a place holds, and prune it."""

from __future__ import annotations

from typing import Annotated

import typer

from styleclip_cli import output
from styleclip_cli.options import OutWorkspace, Verbose, prepare

_HELP = "URI of the prefix of results"


def storage(
    out: Annotated[str, typer.Argument(help=_HELP, metavar="OUT", envvar="STYLECLIP_OUT")],
    workspace: OutWorkspace = "",
    verbose: Verbose = False,
) -> None:
    """Say what a place holds: batches, artifacts, relevance tables, and what nothing refers to."""
    prepare(0, verbose)
    from styleclip.flows.account_storage import account_storage as flow
    from styleclip.tasks.keeping.shown import account_lines

    account = flow(_absolute(out), workspace)
    output.answer(account_lines(account), account=account.model_dump(mode="json"))


def prune(
    # said each time: what deletes takes no place from the environment
    out: Annotated[str, typer.Argument(help=_HELP, metavar="OUT")],
    workspace: OutWorkspace = "",
    older_than: Annotated[
        str, typer.Option(help="Batches go that were written longer ago, e.g. 12h, 90d or 8w")
    ] = "",
    batch: Annotated[
        list[str] | None, typer.Option(help="Name of a batch that goes; may be repeated")
    ] = None,
    keep_last: Annotated[int, typer.Option(min=0, help="All batches go but so many of the newest")] = 0,
    grace: Annotated[
        str, typer.Option(help="Age below which nothing goes that a run under way may need")
    ] = "24h",
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, say what would go")] = False,
    verbose: Verbose = False,
) -> None:
    """Delete batches, and what no other batch refers to; without --yes, say what would go."""
    prepare(0, verbose)
    from styleclip.flows.prune import prune as flow
    from styleclip.tasks.keeping.shown import pruned_lines, size

    done = flow(_absolute(out), workspace, older_than, batch or [], keep_last, grace, yes)
    last = f"{'deleted' if yes else 'would go'}       {done.objects} objects, {size(done.size)}"
    output.answer([*pruned_lines(done), last], pruned=done.model_dump(mode="json"), deleted=yes)
    output.count(objects=done.objects, bytes=done.size)


def _absolute(place: str) -> str:
    from styleclip.tasks.storage import is_local, local_path

    # absolute, as it is compared with what manifests say
    return str(local_path(place).absolute()) if is_local(place) else place
