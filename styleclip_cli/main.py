"""The command line: every command takes URIs, shows progress, and says last where its result lies.

Without ``--generator`` the embedded models are used. Bad input ends with one line that says what is
wrong, where, and what to do, and exit status 2; a run in which some shards failed ends with 1.
"""

from __future__ import annotations

import sys

import typer
from pydantic import ValidationError

from styleclip_cli import choosing, edit, exchange, faces, keeping, look, report, server, table
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
for commands in (exchange, table, edit, choosing, faces, look, report, keeping, server):
    commands.register(app)


def run() -> None:
    """Run the command line; errors that a user can act on are one line."""
    try:
        app()
    except (StyleCLIPError, ValidationError, ValueError) as error:
        from tasks.running.progress import ShardsFailedError
        from tasks.settings import describe

        text = describe(error) if isinstance(error, ValidationError) else " ".join(str(error).split())
        console.print(f"error: {text}", markup=False, soft_wrap=True)
        sys.exit(1 if isinstance(error, ShardsFailedError) else 2)


if __name__ == "__main__":
    run()
