"""What a command says: on stderr how it goes, on stdout its result, or with ``--json`` one object.

Nothing is wrapped at the width of a terminal: a place or an error is one line, to be copied or searched for.
The object has the same keys for every command and every end:

    command      what was called, e.g. "edit"
    version      of the code, as `styleclip --version` says it
    status       done, failed (some shards did, or too many items; the others are done), refused (what was
                 asked for cannot be done), stopped (by a signal), or serving
    result       what was made: places by name, or what was asked for
    counts       numbers of the whole, by name
    steps        what each step of a run did
    passed_over  what under a prefix was not read; empty for nothing
    notes        what people are told beside that, a line each
    error        what went wrong; null where nothing did
    seconds      how long it took
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import typer

_WIDEST = 10_000  # columns of a table that goes to a file


@dataclass
class _Said:
    as_json: bool = False
    quiet: bool = False
    command: str = ""
    began: float = field(default_factory=time.monotonic)
    printed: bool = False
    result: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    passed_over: str = ""
    notes: list[str] = field(default_factory=list)


_said = _Said()


def start(*, as_json: bool) -> None:
    """Begin anew; what goes wrong before a command is known is said as JSON too, where that is wanted."""
    global _said
    _said = _Said(as_json=as_json)


def begin(command: str, *, as_json: bool, quiet: bool) -> None:
    """Take note of the command that is called, and of how it is to speak."""
    _said.command, _said.as_json, _said.quiet = command, as_json, quiet


def has_begun() -> bool:
    """Return whether a command was called."""
    return bool(_said.command)


def is_quiet() -> bool:
    """Return whether only errors and the result are wanted."""
    return _said.quiet


def tell(line: str) -> None:
    """Say how it goes, on stderr."""
    if not _said.quiet:
        typer.echo(line, err=True)


def note(line: str) -> None:
    """Say something that belongs to the result, for people."""
    _said.notes.append(line)
    tell(line)


def count(**counts: int) -> None:
    """Take numbers of the whole into the object."""
    _said.counts |= counts


def results(**places: Any) -> None:  # noqa: ANN401
    """Say where results lie: a line on stdout for each, with its name where there are several; none for none.

    Args:
        places: A place, or a list of them, by name.
    """
    _said.result |= places
    if _said.as_json:
        return

    lines = [
        (name.replace("_", " "), each)
        for name, place in places.items()
        for each in (place if isinstance(place, list) else [place])
        if each
    ]
    width = max((len(name) for name, _ in lines), default=0) if len(places) > 1 else 0
    for name, each in lines:
        typer.echo(f"{name:<{width}}  {each}" if width else each)


def answer(lines: list[str], **values: Any) -> None:  # noqa: ANN401
    """Print lines of text on stdout, or take values into the object in their place."""
    _said.result |= values
    if not _said.as_json:
        for line in lines:
            typer.echo(line)


def table(header: list[str], lines: list[list[str]]) -> None:
    """Print a table for people, on stderr: as wide as it is where that is no terminal."""
    if _said.quiet:
        return
    # here and not above: completion has no use for it
    from rich.console import Console
    from rich.table import Table

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console.width = _WIDEST

    printed = Table(*header)
    for line in lines:
        printed.add_row(*line)
    console.print(printed)


def summarize(result: Any) -> None:  # noqa: ANN401 - flows are imported late
    """Say what each step of a run did, and what under its prefix it did not read."""
    for step in result.steps:
        _said.steps.append(step.model_dump(mode="json"))
        tell(
            f"{step.step}: {step.rows} rows in {step.shards} shards, {step.computed} computed now, "
            f"{step.failed} items failed, {step.seconds:.1f} s, {step.rate:.1f} rows/s"
        )
    if passed_over := getattr(result, "passed_over", ""):
        _said.passed_over = passed_over
        tell(passed_over)


def foretell(seen: Any) -> None:  # noqa: ANN401 - flows are imported late
    """Say what a dry run has found: a table of its steps for people, or all of it in the object."""
    _said.result |= {"forecast": seen.model_dump(mode="json") | {"files": seen.files, "size": seen.size}}
    header = ["step", "what", "done already", "to compute", "tried again", "changed", "task runs", "files"]
    lines = [
        [step.step, step.unit, *(
            f"{each:,}"
            for each in (
                step.found, step.computed, step.again, step.changed, step.task_runs, step.files
            )
        )]
        for step in seen.steps
    ]  # fmt: skip
    table(header, lines)
    for line in seen.facts:
        note(line)

    # what is wanted of a dry run stands on stdout, as the places do that a run leaves
    if not _said.as_json:
        typer.echo(f"a dry run: this run {seen.about}; it {seen.price}")


def fail(line: str) -> None:
    """Say what went wrong, on stderr, whatever else is wanted."""
    typer.echo(line, err=True)


def end(status: str, error: str | None = None) -> None:
    """Print the object, if it is wanted and was not printed yet."""
    if not _said.as_json or _said.printed:
        return
    from styleclip_core.version import code_version

    said = {
        "command": _said.command, "version": code_version(), "status": status, "result": _said.result,
        "counts": _said.counts, "steps": _said.steps, "passed_over": _said.passed_over,
        "notes": _said.notes, "error": error, "seconds": round(time.monotonic() - _said.began, 3),
    }  # fmt: skip
    _said.printed = True
    typer.echo(json.dumps(said, ensure_ascii=False))
    sys.stdout.flush()
