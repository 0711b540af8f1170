"""The commands by name, each imported when it is called: help and completion cost no more than they show.

What a listing says of a command is read off its source, so that none of the others is imported.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module, resources
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

_PANELS: Mapping[str, Mapping[str, str]] = {
    "Edit photographs": {
        "demo": "edit.demo", "edit": "edit.edit", "choose": "choosing.choose", "invert": "edit.invert",
        "train-mapper": "edit.train_mapper", "align": "faces.align", "paste": "faces.paste",
    },
    "Look at results": {
        "report": "report.report", "serve": "report.serve", "evaluate": "look.evaluate",
        "score": "look.score", "pairs": "pairs.pairs",
    },
    "Relevance table, prompts, channels": {
        "sample-styles": "table.sample_styles", "build-relevance": "table.build_relevance",
        "prompts": "look.prompts", "channels": "look.channels",
    },
    "Published models and files": {
        "models": "models.app", "convert": "exchange.convert", "import": "exchange.import_",
        "export": "exchange.export",
    },
    "Storage": {"storage": "keeping.storage", "prune": "keeping.prune"},
    "Prefect server": {
        "setup-server": "server.setup_server", "deploy": "server.deploy",
        "server-metrics": "server.server_metrics",
    },
}  # fmt: skip
_COLUMN = 34  # characters of the longest names that have their text beside them
PLACES = {name: place for commands in _PANELS.values() for name, place in commands.items()}


def find(name: str) -> Any:  # noqa: ANN401 - a function, or a typer app
    """Import what a command calls."""
    module, _, attribute = PLACES[name].partition(".")
    return getattr(import_module(f"styleclip_cli.{module}"), attribute)


def load(name: str) -> Any:  # noqa: ANN401 - a command of whichever click typer has
    """Return a command with its options."""
    from styleclip_cli.generated import with_options

    found = find(name)
    if not isinstance(found, typer.Typer):
        # typer makes one command of an app with one function
        called, found = found, typer.Typer(add_completion=False, rich_markup_mode=None)
        found.command(name, cls=Command)(with_options(called))
    command = typer.main.get_command(found)
    command.name = name
    return command


def _write_panels(
    ctx: Any,  # noqa: ANN401
    formatter: Any,  # noqa: ANN401
    rows: Iterable[tuple[str | None, tuple[str, str]]],
) -> None:
    """Write options or commands under the headings of their panels, those without one first."""
    panels: dict[str, list[tuple[str, str]]] = {"Options": []}
    for panel, row in rows:
        panels.setdefault(panel or "Options", []).append(row)

    for panel, entries in panels.items():
        if entries:
            with formatter.section(typer.style(panel, bold=True) if sys.stdout.isatty() else panel):
                formatter.write_dl(entries, col_max=_COLUMN)


class Command(TyperCommand):
    """A command whose help is plain text: nothing in it is read as markup, and Rich is not imported."""

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Write the options, by panel."""
        records = ((each, each.get_help_record(ctx)) for each in self.get_params(ctx))
        rows = [(getattr(each, "rich_help_panel", None), row) for each, row in records if row]
        _write_panels(ctx, formatter, rows)


class Commands(TyperGroup):
    """The group of all commands: listed without being imported, imported when one is called."""

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Write the options, then the commands by panel."""
        records = (each.get_help_record(ctx) for each in self.get_params(ctx))
        _write_panels(ctx, formatter, [(None, row) for row in records if row])
        rows = [
            (panel, (name, _sentence(PLACES[name]))) for panel, names in _PANELS.items() for name in names
        ]
        _write_panels(ctx, formatter, rows)

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401
        """Return the names, in their order in the help."""
        return list(PLACES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401
        """Return a command as it is listed: without its options."""
        if cmd_name not in PLACES:
            return None
        return TyperCommand(cmd_name, help=_sentence(PLACES[cmd_name]))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401
        """Return a command as it is called: with its options."""
        name, listed, rest = super().resolve_command(ctx, args)
        return name, load(name) if name and listed else listed, rest


@cache
def _sentence(place: str) -> str:
    """Return the first line of what a command says of itself, without importing it."""
    module, _, attribute = place.partition(".")
    tree = ast.parse(resources.files("styleclip_cli").joinpath(f"{module}.py").read_text())
    functions = _functions(tree)
    # an app of several commands is what its module is about
    return (ast.get_docstring(functions.get(attribute, tree)) or "").splitlines()[0]


def _functions(tree: ast.Module) -> Mapping[str, ast.FunctionDef]:
    return {each.name: each for each in tree.body if isinstance(each, ast.FunctionDef)}
