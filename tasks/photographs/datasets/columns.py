"""Columns of a data set: what they are called beside ours, and of which type they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa

# Columns that index and manifest have: one of a data set that is called so becomes source_<name>.
OURS = frozenset({
    "key", "etag", "size", "shard", "place", "problem", "image_key", "content_hash", "edit", "variant",
    "neutral", "target", "method", "alpha", "beta", "top_k", "strength", "channels", "layers", "settings",
    "output_key", "clip_before", "clip_after", "directional", "identity", "lpips", "steps", "status",
    "error_type", "error", "width", "height", "inversion_key", "latent", "seconds", "version", "score",
    "before", "after", "instruction", "split",
})  # fmt: skip
_MOST = 500  # columns of one data set


class Types:
    """The types of columns, found while samples pass by: numbers widen, what does not agree becomes text."""

    def __init__(self) -> None:
        self._kinds: dict[str, str] = {}
        self.left_out = 0

    def see(self, columns: Mapping[str, Any]) -> None:
        """Take the columns of one sample into account."""
        for name, value in columns.items():
            known = self._kinds.get(name)
            if known is None and len(self._kinds) >= _MOST:
                self.left_out += 1
            else:
                self._kinds[name] = _wider(known or "", _kind(value))

    def schema(self) -> pa.Schema:
        """Return the columns, by name, as they stand in tables."""
        return pa.schema([(own_name(name), _ARROW[kind]) for name, kind in sorted(self._kinds.items())])

    def row(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns of one sample as they stand in tables; None for those that it lacks."""
        return {
            own_name(name): _CAST[kind](value) if (value := columns.get(name)) is not None else None
            for name, kind in self._kinds.items()
        }


def own_name(name: str) -> str:
    """Return what a column is called beside ours."""
    return f"source_{name}" if name in OURS or name.startswith("source_") else name


def _kind(value: object) -> str:
    if value is None:
        return ""
    # a bool is an int to Python
    for kind, name in ((bool, "bool"), (int, "int"), (float, "float"), (str, "str")):
        if isinstance(value, kind):
            return name if name != "int" or abs(int(value)) < 2**63 else "str"
    return "json"


def _wider(one: str, other: str) -> str:
    """Return the type that holds both."""
    if one == other or not other:
        return one
    if not one:
        return other
    return "float" if {one, other} == {"int", "float"} else "str"


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


_ARROW = {
    "": pa.string(), "bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "str": pa.string(),
    "json": pa.string(),
}  # fmt: skip
_CAST: dict[str, Callable[[Any], Any]] = {
    "": _text, "bool": bool, "int": int, "float": float, "str": _text, "json": _text,
}  # fmt: skip


def types_of(samples: Iterable[Any]) -> Types:
    """Return the types of the columns of samples."""
    found = Types()
    for sample in samples:
        found.see(sample.columns)
    return found
