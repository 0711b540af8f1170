"""The command line: every command takes URIs, shows progress, and says last where its result lies.

Without ``--generator`` the embedded models are used. Bad input ends with one line that says what is
wrong, where, and what to do, and exit status 2; a run in which some shards failed, or all items, ends with 1,
one that was stopped by Ctrl-C with 130, by SIGTERM with 143. With ``--json`` the same is said by one object
(``output``).
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from styleclip_cli import interrupts, output
from styleclip_cli.commands import Commands
from styleclip_cli.start import remedy
from styleclip_core.errors import StyleCLIPError

app = typer.Typer(
    cls=Commands,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _version(wanted: bool) -> None:
    if wanted:
        from styleclip_core.version import code_version

        typer.echo(code_version())
        raise typer.Exit


@app.callback()
def _main(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version, with its commit"
        ),
    ] = False,
) -> None:
    """Text-driven editing of image data sets with StyleGAN2 and CLIP."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)
        raise typer.Exit(2)


def run() -> None:
    """Run the command line, and end with its exit status."""
    # what is typed wrongly ends before options are read
    output.start(as_json="--json" in sys.argv[1:])
    with interrupts.taken():
        status = _run()
    sys.exit(status)


def _run() -> int:
    """Return the exit status; errors that a user can act on are one line."""
    try:
        status = app(prog_name="styleclip", standalone_mode=False) or 0
    except interrupts.Interrupted:
        output.fail("stopped")
        output.end("stopped", "stopped before anything had begun")
        return interrupts.status()
    except typer.Abort:
        output.fail("stopped")
        output.end("stopped", "an answer was not given")
        return 1
    except Exception as error:
        return _told(error)

    # help and version are no command's
    if output.has_begun():
        output.end("done")
    return int(status)


def _told(error: Exception) -> int:
    """Say what went wrong and return the exit status; raise what only a traceback explains."""
    text = _said(error)
    if text is None:
        output.end("failed", f"{type(error).__name__}: {' '.join(str(error).split())}")
        raise error

    output.fail(f"error: {text}")
    status = interrupts.status() or _status(error)
    output.end("stopped" if interrupts.status() else "failed" if status == 1 else "refused", text)
    return status


def _said(error: Exception) -> str | None:
    """Return what a user is told of an error; None where only a traceback helps."""
    # first, as what is imported below may be what is missing
    if isinstance(error, ModuleNotFoundError):
        return remedy(error) or None

    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        from styleclip.tasks.settings import describe

        return describe(error)
    # those of typer, which have had several base classes; the lines of a message are choices
    if describe_usage := getattr(error, "format_message", None):
        where = getattr(getattr(error, "ctx", None), "command_path", "styleclip")
        return f"{' '.join(describe_usage().split()).rstrip('.')}; see {where} --help"
    if isinstance(error, StyleCLIPError | ValueError) or _is_parameter_error(error):
        text = " ".join(str(error).split())
        # of a flow's parameters it is Prefect that speaks, in lines of its own
        return text.removeprefix("Flow run received invalid parameters: - ").replace("Value error, ", "")

    # Prefect raises what its client raises, where a server refuses or has gone in the middle
    if any(each.__module__.startswith("httpx") for each in type(error).__mro__):
        from styleclip_cli.prefect_api import not_answering

        return not_answering(error)
    return None


def _is_parameter_error(error: Exception) -> bool:
    # only a process that has imported Prefect can have raised it
    exceptions = sys.modules.get("prefect.exceptions")
    return exceptions is not None and isinstance(error, exceptions.ParameterTypeError)


def _status(error: Exception) -> int:
    progress = sys.modules.get("styleclip.tasks.running.progress")
    failed = () if progress is None else (progress.ShardsFailedError, progress.ItemsFailedError)
    return 1 if isinstance(error, failed) else 2


if __name__ == "__main__":
    run()
