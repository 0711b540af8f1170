"""Writes docs/options.md: every command and every form, each option with default, bounds and sentence.

python -m styleclip_cli.reference
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import typer
from pydantic.fields import FieldInfo

from styleclip.tasks import settings
from styleclip.tasks.settings import edits, fields_of
from styleclip_cli.commands import PLACES, find
from styleclip_cli.generated import Json, Quiet, sentence, with_options
from styleclip_core.options import ChangesNoResult, describe_bound

PLACE = Path(__file__).parents[1] / "docs" / "options.md"
_FORMS = (
    settings.Models, settings.Execution, settings.Sampling, settings.Relevance, settings.Nightly,
    settings.Instant, settings.Choosing, settings.Inversion, settings.PivotalTuning,
    settings.FeatureInversion, edits.Edit, edits.EditStep, settings.Optimization, settings.MapperTraining,
    settings.FaceSource, settings.Alignment, settings.Pasting, settings.Judges, settings.Comparison,
)  # fmt: skip
_HEAD = """# Options

Written by `python -m styleclip_cli.reference` from the settings themselves; a test holds it current. Units
stand in the sentences. *No result* marks what changes only how the work is done: it names no artifact.

## Forms

The parameters of the flows, as Prefect's UI shows them and as `prefect.yaml` and edit files give them.
"""
_COMMANDS = """## Commands

Every command has these too:

| option | |
|---|---|
| `-h`, `--help` | its options, by panels: the everyday ones, then those of experts |
| `-q`, `--quiet` | errors and the result alone |
| `--json` | one JSON object on stdout, whatever happens; its keys: `styleclip_cli/output.py` |

`styleclip --version` prints the version, with the commit where it is known. After `styleclip
--install-completion` the shell completes commands, options and their values. A variable of the environment
that stands beside an option holds where that is not given: an environment file of the deployments serves the
command line, too.

Exit statuses: 0 done; 1 some shards failed, the others are done; 2 what was asked for cannot be done; 130
stopped by Ctrl-C, 143 by SIGTERM, after the shards under way. Where results lie is said last, on stdout: a
place alone, or several, each behind its name.
"""
_ABSENT = FieldInfo().default  # of a field that must be given


def reference() -> str:
    """Return the reference as Markdown."""
    return "\n".join([_HEAD, *_form_lines(), _COMMANDS, *_command_lines()])


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
    for name, command in _commands():
        yield f"### styleclip {name}\n\n{_first_line(command)}\n"

        yield from _header("option")
        for parameter in inspect.signature(command).parameters.values():
            said = [
                each
                for each in get_args(parameter.annotation)[1:]
                if isinstance(each, typer.models.ParameterInfo)
            ]

            if said and parameter.annotation not in (Quiet, Json):
                yield _option_row(parameter.name, parameter.default, said[0])
        yield ""


def _commands() -> Iterator[tuple[str, Callable[..., None]]]:
    """Yield the commands as typer has them, with the options of their forms."""
    for name in PLACES:
        found = find(name)
        if not isinstance(found, typer.Typer):
            yield name, with_options(found)
            continue
        for each in found.registered_commands:
            if each.callback:
                yield f"{name} {each.name}", each.callback


def _option_row(name: str, default: Any, said: typer.models.ParameterInfo) -> str:  # noqa: ANN401
    # an argument has no flag, but stands where the usage names it
    if isinstance(said, typer.models.ArgumentInfo):
        return _row(said.metavar or name.upper(), default, "", _text(said))

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
        _text(said),
    )


def _text(said: typer.models.ParameterInfo) -> str:
    return f"{said.help}; or in `{said.envvar}`" if said.envvar else said.help or ""


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
