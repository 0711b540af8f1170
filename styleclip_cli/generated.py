"""Command-line options made from forms: a command names a form as a parameter, and its fields are options.

    def invert(photos: Photos, inversion: Annotated[Inversion, Shown()] = Inversion()) -> None: ...

has ``--steps``, ``--learning-rate`` and all other fields of ``Inversion``, each with default, bounds and
sentence from where the field stands. ``Shown`` says what a command calls or hides otherwise. Every command
has ``--quiet`` and ``--json`` beside its own options.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer
from annotated_types import Ge, Le
from pydantic import ValidationError, WithJsonSchema
from pydantic.fields import FieldInfo

from styleclip.tasks.settings import SettingsError, fields_of, preset_values
from styleclip_cli import output
from styleclip_core.options import Says, describe_bound

_SPEAKING = "What is printed"
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print errors and the result alone", rich_help_panel=_SPEAKING),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON object on stdout, also of what went wrong", rich_help_panel=_SPEAKING
    ),
]


@dataclass(frozen=True)
class Shown:
    """How a command shows the fields of a form.

    Attributes:
        of: The form, where the command wants what was said, by field, and not the form's value.
        prefix: Goes before the names of options; before those of a nested form goes the field's name.
        names: Names of options that are called otherwise, by field; ``pivotal.steps`` is a nested one.
        only: The fields to show; empty for all.
        hidden: Fields that are not shown.
        defaults: Defaults in words, by field, where none is not the whole truth.
    """

    of: type | None = None
    prefix: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    defaults: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ShownField:
    """A field as an option: where it stands in its form, what it is called, and what is said of it.

    Attributes:
        path: Names of the fields that lead to it; one, or two in a nested form.
        switch: The nested form's first option, without which there is none of it; empty outside of one.
        words: What it can be, where that is a list and its type does not say so.
    """

    path: tuple[str, ...]
    name: str
    kind: Any
    default: Any
    default_text: str
    bounds: tuple[Any, ...]
    sentence: str
    switch: str = ""
    words: tuple[str, ...] = ()

    def parameter(self, owner: str, panel: str) -> inspect.Parameter:
        """Return the option as a parameter of a typer command."""
        limits = {type(each): each for each in self.bounds}
        words = [describe_bound(each) for each in self.bounds if not isinstance(each, (Ge, Le))]
        option = typer.Option(
            f"--{self.name}",
            help=" ".join([self.sentence, *(f"({each})" for each in words if each)]),
            min=limits[Ge].ge if Ge in limits else None,
            max=limits[Le].le if Le in limits else None,
            show_default=self.default_text or True,
            rich_help_panel=panel,
            autocompletion=(lambda: list(self.words)) if self.words else None,
        )

        kind: Any = Annotated[self.kind, option]
        name = "__".join([owner, *self.path])
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=self.default, annotation=kind)


def shown_fields(form: type, shown: Shown, base: object = None) -> Iterator[ShownField]:
    """Yield the fields of a form that a command shows, those of nested forms too."""
    for name, info in fields_of(form).items():
        if name in shown.hidden or (shown.only and name not in shown.only):
            continue

        nested = _nested(info)
        if nested is None:
            option = shown.names.get(name, f"{shown.prefix}{name}".replace("_", "-"))
            default = info.default if base is None else getattr(base, name)
            text = shown.defaults.get(name, "") or _of_presets(form, name)
            yield _shown_field((name,), option, info, default=default, text=text)
            continue

        # a nested form is there if its first option is: that says how much of it, and 0 is none
        switch = ""
        for inner, its in fields_of(nested).items():
            option = shown.names.get(f"{name}.{inner}", f"{name}-{inner}".replace("_", "-"))
            found = _shown_field((name, inner), option, its, default=its.default)
            if not switch:
                switch = option
                words = f"{sentence(info)}. {found.sentence}"
                found = ShownField(found.path, option, found.kind, 0, "", found.bounds, words)
            yield ShownField(**{**vars(found), "switch": switch})


def _shown_field(
    path: tuple[str, ...], option: str, info: FieldInfo, *, default: object, text: str = ""
) -> ShownField:
    kind = _kind(info.annotation)
    if list in (get_origin(each) for each in get_args(kind)):  # a repeated option
        values = default if isinstance(default, tuple) else (default,)
        text = text or ", ".join(str(each) for each in values if each is not None)
        default = None

    marks = tuple(info.metadata)
    return ShownField(path, option, kind, default, text, marks, sentence(info), words=_words(info))


def _of_presets(form: type, name: str) -> str:
    """Return the defaults of a field that presets decide, in words; empty for other fields."""
    said = {preset: _worded(value) for preset, value in preset_values(form, name).items()}
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    return ", ".join(f"{preset} {value}" for preset, value in said.items())


def _worded(value: object) -> str:
    if value is None:
        return "none"
    return " and ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _words(info: FieldInfo) -> tuple[str, ...]:
    """Return what a field can be, where its type or a schema beside that lists words."""
    return tuple(_listed((info.annotation, *info.metadata)))


def _listed(marks: Iterable[Any]) -> Iterator[str]:
    """Yield the texts that types and their metadata name, however deep: typer sees some alone."""
    for each in marks:
        if isinstance(each, str):
            yield each
        elif isinstance(each, WithJsonSchema):
            yield from (each.json_schema or {}).get("enum", ())
        else:
            yield from _listed(get_args(each))


def sentence(info: FieldInfo) -> str:
    """Return what is said of a field, whichever way its form says it."""
    return info.description or next((each.text for each in info.metadata if isinstance(each, Says)), "")


def _nested(info: FieldInfo) -> type | None:
    """Return the form that a field may hold."""
    return next((each for each in get_args(info.annotation) if hasattr(each, "__pydantic_fields__")), None)


def _kind(annotation: Any) -> Any:  # noqa: ANN401
    """Return how typer takes values of a type: one, or where there may be several, a list of texts."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0])

    if origin in (Union, UnionType):
        kinds = [_kind(each) for each in arguments if each is not NoneType]
        return kinds[0] | None if len(kinds) == 1 else list[str] | None
    return list[str] | None if origin is tuple else annotation


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that has an option for each field of the forms among its parameters.

    It takes note of how it is to speak (see ``output``) before it begins.
    """
    hints = get_type_hints(command, include_extras=True)
    forms: dict[str, _Form] = {}
    parameters = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]

    for name, parameter in inspect.signature(command).parameters.items():
        shown = next((each for each in get_args(hints[name]) if isinstance(each, Shown)), None)
        if shown is None:
            kept = parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
            parameters.append(kept)
            continue

        forms[name] = _Form(name, shown, shown.of or get_args(hints[name])[0], parameter.default)
        parameters += forms[name].parameters()
    for name, kind in (("quiet", Quiet), ("as_json", Json)):
        own = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        parameters.append(own)

    @functools.wraps(command)
    def run(**values: Any) -> None:  # noqa: ANN401 - typer hands over options by name
        context = values.pop("context")
        called = context.command_path.split(" ", 1)[-1]
        output.begin(called, quiet=values.pop("quiet"), as_json=values.pop("as_json"))

        # only what was typed: a default that is passed on could not be told from a choice
        said = {
            name: values.pop(name)
            for name in list(values)
            if "__" in name and context.get_parameter_source(name).name != "DEFAULT"
        }

        others = {name: value for name, value in values.items() if "__" not in name}
        command(**others, **{name: form.value(said) for name, form in forms.items()})

    # typer reads both of these, and of a wrapped function it would find the command's own
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


@dataclass(frozen=True)
class _Form:
    """A form among the parameters of a command."""

    name: str
    shown: Shown
    form: type
    base: Any

    @property
    def fields(self) -> list[ShownField]:
        return list(shown_fields(self.form, self.shown, None if self.shown.of else self.base))

    def parameters(self) -> list[inspect.Parameter]:
        """Return its options."""
        panel = (inspect.getdoc(self.form) or "").splitlines()[0].rstrip(".")
        return [each.parameter(self.name, panel) for each in self.fields]

    def value(self, said: Mapping[str, Any]) -> Any:  # noqa: ANN401
        """Return its value, with what was said on the command line instead of its defaults.

        Raises:
            SettingsError: If it refuses a value, or a nested form's switch is missing.
        """
        found: dict[str, Any] = {}
        for each in self.fields:
            given = said.get("__".join([self.name, *each.path]))
            if given is None:
                continue

            value = tuple(given) if isinstance(given, list) else given
            if not each.switch:
                found[each.path[0]] = value
            elif each.name == each.switch:
                found |= {each.path[0]: {each.path[1]: value}} if value else {}
            elif each.path[0] in found:
                found[each.path[0]][each.path[1]] = value
            else:
                raise SettingsError(f"--{each.name} says how; give --{each.switch} too, which says whether")

        if self.shown.of:
            return found
        try:
            return self.form(**({name: getattr(self.base, name) for name in fields_of(self.form)} | found))
        except ValidationError as error:
            raise SettingsError(self._described(error)) from error

    def _described(self, error: ValidationError) -> str:
        """Return a validation error as one line, in the words of the command line."""
        options = {each.path: f"--{each.name}: " for each in self.fields}
        return "; ".join(
            options.get(tuple(map(str, item["loc"])), "") + item["msg"].removeprefix("Value error, ")
            for item in error.errors(include_url=False)
        )
