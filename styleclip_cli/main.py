"""The command line: every command takes URIs, shows progress, and says last where its result lies.

Without ``--generator`` the embedded models are used. Bad input ends with one line that says what is
wrong, where, and what to do, and exit status 2; a run in which some shards failed ends with 1, one that was
stopped by Ctrl-C with 130.
"""

from __future__ import annotations

import sys

import typer
from pydantic import ValidationError

from styleclip_cli import (
    choosing,
    edit,
    exchange,
    faces,
    interrupts,
    keeping,
    look,
    report,
    server,
    serving,
    table,
)
from styleclip_cli.models import app as models_app
from styleclip_cli.options import console
from styleclip_core.errors import StyleCLIPError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Text-driven editing of image data sets with StyleGAN2 and CLIP.",
)
app.add_typer(models_app, name="models")
for commands in (exchange, table, edit, choosing, faces, look, report, serving, keeping, server):
    commands.register(app)


def run() -> None:
    """Run the command line; errors that a user can act on are one line, Ctrl-C ends with status 130."""
    with interrupts.taken():
        try:
            app()
        except interrupts.Interrupted:
            console.print("stopped")
            sys.exit(interrupts.STATUS)
        except Exception as error:
            text = _said(error)
            if text is None:
                raise
            console.print(f"error: {text}", markup=False, soft_wrap=True)
            sys.exit(interrupts.STATUS if interrupts.came() else _status(error))


def _said(error: Exception) -> str | None:
    """Return what a user is told of an error; None where only a traceback helps."""
    if isinstance(error, ValidationError):
        from tasks.settings import describe

        return describe(error)
    # here and not above: it takes seconds, and `styleclip --help` has no use for it
    from prefect.exceptions import ParameterTypeError

    if isinstance(error, StyleCLIPError | ValueError | ParameterTypeError):
        text = " ".join(str(error).split())
        # of a flow's parameters it is Prefect that speaks, in lines of its own
        return text.removeprefix("Flow run received invalid parameters: - ").replace("Value error, ", "")

    # Prefect raises what its client raises, where a server refuses or has gone in the middle
    if any(each.__module__.startswith("httpx") for each in type(error).__mro__):
        from styleclip_cli.prefect_api import not_answering

        return not_answering(error)
    return None


def _status(error: Exception) -> int:
    from tasks.running.progress import ShardsFailedError

    return 1 if isinstance(error, ShardsFailedError) else 2


if __name__ == "__main__":
    run()
