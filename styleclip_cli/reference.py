"""Writes docs/options.md: every command and every form, each option with default, bounds and sentence.

python -m styleclip_cli.reference
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import typer
from pydantic.fields import FieldInfo

from styleclip_cli.generated import sentence
from styleclip_cli.main import app
from styleclip_core.options import ChangesNoResult, describe_bound
from tasks import settings
from tasks.settings import edits, fields_of

PLACE = Path(__file__).parents[1] / "docs" / "options.md"
_FORMS = (
    settings.Models, settings.Execution, settings.Sampling, settings.Relevance, settings.Nightly,
    settings.Instant, settings.Choosing, settings.Inversion, settings.PivotalTuning, edits.Edit,
    edits.EditStep, settings.Optimization, settings.MapperTraining, settings.FaceSource, settings.Alignment,
    settings.Pasting, settings.Judges, settings.Comparison,
)  # fmt: skip
_HEAD = """# Options

Written by `python -m styleclip_cli.reference` from the settings themselves; a test holds it current. Units
stand in the sentences. *No result* marks what changes only how the work is done: it names no artifact.

## Forms

The parameters of the flows, as Prefect's UI shows them and as `prefect.yaml` and edit files give them.
"""
_ABSENT = FieldInfo().default  # of a field that must be given


def reference() -> str:
    """Return the reference as Markdown."""
    return "\n".join([_HEAD, *_form_lines(), "## Commands\n", *_command_lines()])


def _form_lines() -> Iterator[str]:
    for form in _FORMS:
        yield f"### {form.__name__}\n\n{_first_line(form)}\n"

        yield from _header("field")
        for name, info in fields_of(form).items():
            bounds = [describe_bound(each) for each in info.metadata]
            silent = any(isinstance(each, ChangesNoResult) for each in info.metadata)
            text = f"{sentence(info)}. *No result.*" if silent else sentence(info)
            yield _row(name, info.default, ", ".join(each for each in bounds if each), text)
        yield ""


def _command_lines() -> Iterator[str]:
    for command in app.registered_commands:
        if command.callback is None:
            continue

        name = command.name or command.callback.__name__.rstrip("_").replace("_", "-")
        yield f"### styleclip {name}\n\n{_first_line(command.callback)}\n"

        yield from _header("option")
        for parameter in inspect.signature(command.callback, eval_str=True).parameters.values():
            said = [
                each
                for each in get_args(parameter.annotation)[1:]
                if isinstance(each, typer.models.ParameterInfo)
            ]

            if said:
                yield _option_row(parameter.name, parameter.default, said[0])
        yield ""


def _option_row(name: str, default: Any, said: typer.models.ParameterInfo) -> str:  # noqa: ANN401
    # an argument has no flag, but stands where the usage names it
    if isinstance(said, typer.models.ArgumentInfo):
        return _row(said.metavar or name.upper(), default, "", said.help or "")

    flags = [each for each in (said.default, *(said.param_decls or ())) if isinstance(each, str)]
    bounds = [
        f"at least {said.min}" if said.min is not None else "",
        f"at most {said.max}" if said.max is not None else "",
    ]

    shown = said.show_default if isinstance(said.show_default, str) else default
    return _row(
        " ".join(flags) or f"--{name.replace('_', '-')}",
        shown,
        ", ".join(each for each in bounds if each),
        said.help or "",
    )


def _header(first: str) -> list[str]:
    return [f"| {first} | default | bounds | |", "|---|---|---|---|"]


def _row(name: str, default: object, bounds: str, text: str) -> str:
    empty = default in (None, "", (), _ABSENT, inspect.Parameter.empty)
    cells = [f"`{name}`", "" if empty else str(default), bounds, text]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _first_line(documented: Any) -> str:  # noqa: ANN401
    return (inspect.getdoc(documented) or "").splitlines()[0]


if __name__ == "__main__":
    PLACE.write_text(reference())
