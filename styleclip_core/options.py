"""Options: what can be said of a setting, said once, beside its field.

A settings dataclass writes each field as ``Annotated[int, Ge(0), Says("...")] = 100``: type, bounds,
sentence, default. ``check`` holds the bounds for whoever uses the core as a library; a form, a command
line or an artifact's name reads the same annotation and copies nothing. Bounds are those of the package
``annotated-types``, which other libraries read too.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from styleclip_core.bounds import Ge, Gt, Le, Lt, MultipleOf


@dataclass(frozen=True, slots=True)
class Says:
    """The sentence about an option, with its unit, as forms and command lines print it."""

    text: str

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:  # noqa: ANN401
        """Put the sentence into a JSON schema; pydantic calls this of any metadata that has it."""
        return {**handler(core), "description": self.text}


@dataclass(frozen=True, slots=True)
class ChangesNoResult:
    """Marks an option that says how work is done and not what comes out; it names no artifact.

    Attributes:
        why: What keeps the result the same, and how nearly if a machine may round otherwise.
    """

    why: str


@dataclass(frozen=True, slots=True)
class NamedIfChanged:
    """Marks an option that came later: at its default, results are named as before there was one."""


@dataclass(frozen=True, slots=True)
class NamedWith:
    """Marks an option that decides something only where another one is set, and names results only there."""

    other: str


# Beyond these a number is a slip, or more than an image or a column can hold; of every setting.
LARGEST, LARGEST_WHOLE = 1e6, 2**31 - 1

# what a bound calls its limit, how it reads, and when a value keeps it
_BOUNDS: Mapping[type, tuple[str, str, Callable[[Any, Any], bool]]] = MappingProxyType({
    Ge: ("ge", "at least", operator.ge),
    Gt: ("gt", "more than", operator.gt),
    Le: ("le", "at most", operator.le),
    Lt: ("lt", "less than", operator.lt),
    MultipleOf: ("multiple_of", "a multiple of", lambda value, step: value % step == 0),
})  # fmt: skip


def annotated_fields(settings: type) -> Mapping[str, tuple[Any, tuple[Any, ...]]]:
    """Return type and metadata of every field of a settings dataclass, by name."""
    hints = get_type_hints(settings, include_extras=True)
    found = {}
    for field in fields(settings):
        hint = hints[field.name]
        kind, *metadata = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        found[field.name] = (kind, tuple(metadata))
    return MappingProxyType(found)


def parameters(settings: Any) -> dict[str, Any]:  # noqa: ANN401 - any settings dataclass
    """Return what decides a result, as JSON values: all fields but those marked as not counting.

    What is computed with the same parameters is the same; so they can name what is stored.
    """
    defaults = {field.name: field.default for field in fields(settings)}
    found = {}
    for name, (_, metadata) in annotated_fields(type(settings)).items():
        value = getattr(settings, name)
        if not any(_silent(mark, settings, value == defaults[name]) for mark in metadata):
            found[name] = _json_value(value)
    return found


def _silent(mark: object, settings: object, as_by_default: bool) -> bool:
    match mark:
        case ChangesNoResult():
            return True
        case NamedIfChanged():
            return as_by_default
        case NamedWith(other):
            return not getattr(settings, other)
    return False


def _json_value(value: Any) -> Any:  # noqa: ANN401
    if is_dataclass(value):
        return parameters(value)
    return list(value) if isinstance(value, tuple) else value


def check(settings: object) -> None:
    """Hold a settings dataclass to its annotations; for ``__post_init__``.

    Raises:
        ValueError: If a number is out of bounds or not finite, or a word is none of those listed.
    """
    for name, (kind, metadata) in annotated_fields(type(settings)).items():
        value = getattr(settings, name)
        wanted = _violated(value, kind, metadata)
        if wanted:
            raise ValueError(f"{name} must be {wanted}, got {value!r}")


def _violated(value: Any, kind: Any, metadata: tuple[Any, ...]) -> str:  # noqa: ANN401
    """Return what a value should be and is not; empty if all is well."""
    if get_origin(kind) is Literal and value not in get_args(kind):
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    if wanted := describe_excess(value):
        return wanted

    for bound in metadata if value is not None else ():
        if type(bound) in _BOUNDS:
            name, _, keeps = _BOUNDS[type(bound)]
            if not keeps(value, getattr(bound, name)):
                return describe_bound(bound)
    return ""


def describe_excess(value: object) -> str:
    """Return what a number of a setting, or one of several, should be and is not; empty if all is well."""
    if isinstance(value, (tuple, list)):
        return next(filter(None, map(describe_excess, value)), "")
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if isinstance(value, float) and abs(value) > LARGEST:
        return f"from {-LARGEST:,.0f} to {LARGEST:,.0f}"
    if isinstance(value, int) and abs(value) > LARGEST_WHOLE:
        return f"from {-LARGEST_WHOLE:,} to {LARGEST_WHOLE:,}"
    return ""


def describe_bound(bound: object) -> str:
    """Return a bound in words, e.g. ``at least 1``; empty for metadata that is no bound."""
    if type(bound) not in _BOUNDS:
        return ""
    name, words, _ = _BOUNDS[type(bound)]
    return f"{words} {getattr(bound, name)}"
