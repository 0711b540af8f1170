"""What Prefect's form of a flow shows, and what its server refuses before there is a run.

Prefect derives a schema from a flow's signature. This makes the form of it that people fill in: everyday
parameters first, groups for experts folded away, a title for everything, and no name but the flow's own.
Both of Prefect's UIs fold a value away that may be nothing and is nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from importlib import import_module
from typing import Any

from prefect import Flow

from styleclip.tasks.settings.edits import MOST_VARIANTS
from styleclip.tasks.settings.folding import AS_USUAL as AS_USUAL
from styleclip.tasks.settings.folding import may_stay_shut

Schema = dict[str, Any]

# What people look at first, in the order in which they think of it; the others follow as in the signature.
_FIRST = (
    "photos", "images", "manifest", "faces", "edited", "edits", "prompts", "targets", "question", "out",
    "confirmed", "older_than", "keep_last", "batches", "source", "models", "clip", "judges", "workspace",
    "nightly",
)  # fmt: skip
_WORDS = {
    "array": "several",
    "string": "text",
    "number": "number",
    "integer": "number",
    "boolean": "yes or no",
}
NULL = {"type": "null"}


def flow_of(entrypoint: str) -> Flow[..., Any]:
    """Return the flow that ``package.module:function`` names."""
    module, _, name = entrypoint.rpartition(":")
    found: Flow[..., Any] = getattr(import_module(module), name)
    return found


def form_of(flow: Flow[..., Any]) -> Schema:
    """Return the schema of a flow's parameters, as the server is to show and to enforce it."""
    schema: Schema = deepcopy(flow.parameters.model_dump_for_openapi())
    fields, definitions = schema["properties"], schema.get("definitions", {})
    required = schema.get("required", [])

    limit = fields.pop("most_variants", None)
    for name, field in fields.items():
        if name not in required and _is_group(field, definitions):
            fields[name] = _folded(field, definitions)
    _put_in_order(fields)

    # Prefect gives no title to a field that may be one of several things, and calls it "Field"
    for each in _objects(schema):
        for position, (name, field) in enumerate(each["properties"].items()):
            _one_line(field)
            field.setdefault("position", position)
            field.setdefault("title", name.replace("_", " ").capitalize())
    for choice in _choices(schema):
        choice.setdefault("title", _word(choice))

    schema["additionalProperties"] = False
    if limit:
        # programs and deployments may give it: a pattern is enforced as a property is, and no form shows it
        schema |= _few_variants() | {"patternProperties": {"^most_variants$": limit}}
    return schema


def _is_group(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> bool:
    """Return whether a field is a form of its own, one that may be left as it is."""
    kinds = [*field.get("anyOf", ()), *field.get("allOf", ()), field]
    names = [each["$ref"].rpartition("/")[2] for each in kinds if "$ref" in each]
    return any(definitions[name].get("type") == "object" for name in names)


def _folded(field: Schema, definitions: Mapping[str, Any]) -> Schema:
    """Return a group that is not there unless somebody opens it."""
    kinds = field.get("anyOf") or field.get("allOf") or [{"$ref": field["$ref"]}]
    (group,) = [each for each in kinds if "$ref" in each]

    # what a group says of itself Prefect does not repeat, and in one that is shut nobody would see it
    kept = {"description": definitions[group["$ref"].rpartition("/")[2]].get("description", "")}
    kept |= {name: field[name] for name in ("title", "description", "position") if name in field}
    return kept | may_stay_shut(group)


def _one_line(field: Schema) -> None:
    """Make a text that may be nothing a plain one; without a default the server takes nothing, too."""
    kinds = field.get("anyOf", ())
    if len(kinds) == 2 and NULL in kinds and all("enum" not in kind for kind in kinds):
        (other,) = [kind for kind in kinds if kind != NULL]
        if other.get("type") == "string" and field.get("default") is None:
            del field["anyOf"]
            field.pop("default", None)
            field |= other


def _put_in_order(fields: dict[str, Schema]) -> None:
    """Number the fields: what everybody needs, then the rest, then groups that are folded away."""

    def place(item: tuple[str, Schema]) -> tuple[bool, int]:
        name, field = item
        first = _FIRST.index(name) if name in _FIRST else len(_FIRST)
        return AS_USUAL in field.get("anyOf", ()), first

    for position, (_, field) in enumerate(sorted(fields.items(), key=place)):
        field["position"] = position


def _objects(schema: object) -> Iterator[Schema]:
    """Yield every part of a schema that has fields."""
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
            yield schema
        for each in schema.values():
            yield from _objects(each)
    elif isinstance(schema, list):
        for each in schema:
            yield from _objects(each)


def _choices(schema: object) -> Iterator[Schema]:
    """Yield every kind that a field of several kinds may be of."""
    for each in _objects(schema):
        for field in each["properties"].values():
            yield from (kind for kind in field.get("anyOf", ()) if "$ref" not in kind)


def _word(choice: Mapping[str, Any]) -> str:
    if choice.get("type") == "null":
        return "none"
    return str(choice.get("const", _WORDS.get(choice.get("type", ""), "value")))


def _few_variants() -> Schema:
    """Return what refuses a list of many values, unless as many variants are allowed.

    No schema can multiply: several lists that together are too many are refused as the run begins.
    """
    lists = {name: {"maxItems": MOST_VARIANTS} for name in ("alpha", "beta", "strength")}
    few = {"most_variants": {"maximum": MOST_VARIANTS}}
    return {
        "if": {"properties": few},
        "then": {"properties": {"edits": {"items": {"properties": lists}}}},
    }
