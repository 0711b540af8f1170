"""How the form of an edit folds away what few edits need, and what a server can know of the rest.

In a form those fields stand in ``advanced``. In a file, or where a run is started by a program, they may
stand beside the others, as before there was such a mapping: the schema takes both, and shows one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ADVANCED = "advanced"
AS_USUAL = {"type": "null", "title": "as usual"}  # what a folded group says
_NOTHING = [None, ""]  # what a form sends of a text that nobody wrote
EVERYDAY = ("target", "neutral", "method", "alpha", "beta")  # in the order of the form


def unfolded(given: Any) -> Any:  # noqa: ANN401 - whatever somebody gives
    """Return the fields of an edit, those in ``advanced`` beside the others.

    Raises:
        ValueError: If that is no mapping, or gives a field a second time.
    """
    if not isinstance(given, Mapping) or ADVANCED not in given:
        return given
    others = {name: value for name, value in given.items() if name != ADVANCED}
    advanced = given[ADVANCED] or {}

    if not isinstance(advanced, Mapping):
        raise ValueError("advanced must be a mapping of further fields of the edit, or be left out")
    twice = sorted(str(name) for name in others.keys() & advanced.keys())
    if twice or ADVANCED in advanced:
        raise ValueError(f"{(twice or [ADVANCED])[0]} is given twice, once of it in advanced; leave one out")
    return {**others, **advanced}


def may_stay_shut(opened: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a schema by which a form folds a value away: it is nothing until it is opened."""
    return {"anyOf": [dict(AS_USUAL), {**opened, "title": "change"}], "default": None}


def folded(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an edit with all but its everyday fields in ``advanced``."""
    fields = schema["properties"]
    everyday = {name: fields[name] for name in EVERYDAY if name in fields}
    rest = {name: field for name, field in fields.items() if name not in everyday}
    group = {
        "title": "Advanced",
        "description": "What few edits need: other channels, mappers, optimization, steps that follow",
        **may_stay_shut({"type": "object", "properties": rest, "additionalProperties": False}),
    }

    # a pattern is enforced as a property is, and no form shows it
    flat = {f"^{name}$": field for name, field in rest.items()}
    return schema | {"properties": everyday | {ADVANCED: group}, "patternProperties": flat} | _rules()


def _rules() -> dict[str, Any]:
    """Return what fields say of each other.

    Nothing here may depend on ``required``: a server that is given a deployment leaves that out everywhere.
    """
    # a server repeats what it wanted instead, so that is said in words; the field itself takes no such text
    no_threshold = {"properties": {"beta": {"enum": [None, "none: give beta or top_k, one of them"]}}}
    folded_away = _given(ADVANCED) | {"properties": {ADVANCED: _given("mapper")}}
    needs_file = {
        "if": {"properties": {"method": {"const": "mapper"}, **_absent("mapper")}, "not": folded_away},
        "then": {"properties": {"method": {"const": "mapper, with its weights as advanced.mapper"}}},
    }
    return {
        "dependentSchemas": {
            "top_k": {"if": _given("top_k"), "then": no_threshold},
            ADVANCED: {"if": {"properties": {ADVANCED: _given("top_k")}}, "then": no_threshold},
            "method": needs_file,
        }
    }


def _absent(name: str) -> dict[str, Any]:
    return {name: {"enum": _NOTHING}}


def _given(name: str) -> dict[str, Any]:
    """Return the schema of a mapping in which a field is there and says something."""
    return {"type": "object", "not": {"properties": _absent(name)}}
