"""Edits that differ from image to image: what a field in braces becomes with the columns of one image.

- target: "{colour} hair"      # a column of the data set
alpha: "{strength}"
where: not glasses           # a condition on columns, in SQL: which images the edit is for
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from styleclip.tasks.settings.edits import Edit, EditStep
from styleclip.tasks.settings.settings import SettingsError, describe

_FIELD = re.compile(r"\{([^{}]+)\}")
_TEXTS = ("neutral", "target")
_NUMBERS = ("alpha", "beta", "strength")
_LAYERS = ("include", "exclude")


def columns_of(edit: Edit) -> list[str]:
    """Return the columns that an edit names in its fields, each once."""
    found: dict[str, None] = {}
    for step in (edit, *edit.then):
        for name in (*_TEXTS, *_NUMBERS, *_LAYERS):
            value = getattr(step, name)
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str):
                    found.update(dict.fromkeys(columns_in(text)))
    return list(found)


def differs(edit: Edit) -> bool:
    """Return whether an edit is another one, or none, from image to image."""
    return bool(edit.where or columns_of(edit))


def resolve(edit: Edit, columns: Mapping[str, Any]) -> Edit | None:
    """Return an edit with the columns of one image in place; None if one of them is empty.

    Raises:
        SettingsError: If what comes out is no edit, e.g. of a strength that is no number.
    """
    values = {name: columns[name] for name in columns_of(edit)}
    if any(value is None or not str(value).strip() for value in values.values()):
        return None

    changed = _filled(edit, values) | {"where": "", "then": [_whole(each, values) for each in edit.then]}
    try:
        return Edit.model_validate(edit.model_dump(exclude={"then", "where"}) | changed)
    except ValidationError as error:
        raise SettingsError(f"with {_said(values)}: {describe(error)}") from error


def _whole(step: EditStep, values: Mapping[str, Any]) -> dict[str, Any]:
    return step.model_dump() | _filled(step, values)


def _filled(step: EditStep, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a step that name columns, with their values."""
    found: dict[str, Any] = {}
    for name in (*_TEXTS, *_NUMBERS, *_LAYERS):
        given = getattr(step, name)
        if name in _LAYERS:
            # a column may name several layers
            found[name] = tuple(part for text in given for part in put_in(text, values).split())
        elif isinstance(given, str) and columns_in(given):
            text = put_in(given, values)
            found[name] = _number(name, text) if name in _NUMBERS else text
    return found


def columns_in(text: str) -> list[str]:
    """Return the columns that a text names in braces."""
    return _FIELD.findall(text)


def put_in(text: str, values: Mapping[str, Any]) -> str:
    """Return a text with the values of columns in place of their names."""
    # no format string: of what a column holds nothing is looked up
    return _FIELD.sub(lambda each: str(values[each[1]]), text)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise SettingsError(f"{name} is {text!r}, which is no number") from error


def _said(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value!r}" for name, value in values.items())
