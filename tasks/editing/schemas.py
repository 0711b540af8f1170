"""Columns of what edits leave: a row per image and edit, with a record per step, and how long each took.

The rows of a shard say settings as JSON and layers as words (``ROW_SCHEMA``), as they always did, so that
rows of all times lie side by side. The manifest of a batch has types for both (``MANIFEST_SCHEMA``), and says
where the unedited image and its latent lie.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, get_args, get_origin

import pyarrow as pa

from styleclip.tasks.artifacts.outcomes import STATUS_FIELDS, Row
from styleclip_core.options import annotated_fields
from styleclip_core.settings.optimization import OptimizationSettings

SCORES = ("clip_before", "clip_after", "directional", "identity", "lpips")
_SCORES = [(name, pa.float32()) for name in SCORES]
_CHOICES = [
    ("neutral", pa.string()), ("target", pa.string()), ("method", pa.string()), ("alpha", pa.float64()),
    ("beta", pa.float64()), ("top_k", pa.int32()), ("strength", pa.float64()), ("channels", pa.int32()),
]  # fmt: skip
_NAMES = [
    ("image_key", pa.string()), ("content_hash", pa.string()), ("edit", pa.string()),
    ("variant", pa.string()),
]  # fmt: skip
_SIZE = [("width", pa.int32()), ("height", pa.int32())]
_FILES = [("latents", pa.string()), ("video", pa.string())]

# ---- rows of a shard
_WORDS = [("layers", pa.string()), ("settings", pa.string())]
_STEP = pa.struct([*_CHOICES, *_WORDS, *_SCORES, *_FILES])
ROW_SCHEMA = pa.schema([
    *_NAMES, *_CHOICES, *_WORDS, ("output_key", pa.string()), *_SCORES, ("steps", pa.list_(_STEP)),
    *STATUS_FIELDS, *_SIZE,
])  # fmt: skip
TIMING_SCHEMA = pa.schema([
    ("image_key", pa.string()), ("edit", pa.string()), ("variant", pa.string()), ("seconds", pa.float32()),
])  # fmt: skip


# ---- the manifest
def _arrow(kind: object) -> pa.DataType:
    """Return the type of a column for a field of settings; words of a list are strings."""
    kinds = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    if kind in kinds:
        return kinds[kind]
    # a field that may be none has its other type's
    inner = [each for each in get_args(kind) if each in kinds] if get_origin(kind) else []
    return kinds[inner[0]] if inner else pa.string()


_OPTIMIZATION = {
    **{name: _arrow(kind) for name, (kind, _) in annotated_fields(OptimizationSettings).items()},
    "reference_compat": pa.bool_(), "frames": pa.int64(),
}  # fmt: skip
_OWN = {
    "templates": pa.string(), "relevance": pa.string(), "weights": pa.string(),
    "include": pa.list_(pa.string()), "exclude": pa.list_(pa.string()), "mapper": pa.string(),
    "alpha_unit": pa.string(), "strength_unit": pa.string(), "reason": pa.string(),
    "optimization": pa.struct(list(_OPTIMIZATION.items())), "others": pa.string(),
}  # fmt: skip
SETTINGS_TYPE = pa.struct(list(_OWN.items()))
_TYPED = [("layers", pa.list_(pa.string())), ("settings", SETTINGS_TYPE)]
STEP_TYPE = pa.struct([*_CHOICES, *_TYPED, *_SCORES, *_FILES])
MANIFEST_SCHEMA = pa.schema([
    *_NAMES, *_CHOICES, *_TYPED, ("output_key", pa.string()), *_SIZE,
    ("inversion_key", pa.string()), ("latent", pa.string()),
    *_SCORES, ("steps", pa.list_(STEP_TYPE)), *STATUS_FIELDS,
])  # fmt: skip


def manifest_row(row: Row) -> Row:
    """Return a row of a shard as it stands in a manifest, but for what only the report knows."""
    steps = row["steps"]
    return _typed(row) | {"steps": [_typed(step) for step in steps] if steps is not None else None}


def _typed(row: Row) -> Row:
    layers, said = row.get("layers"), row.get("settings")
    return row | {"layers": layers.split() if layers else None, "settings": typed_settings(said)}


@lru_cache(maxsize=4096)  # rows of an edit say the same
def typed_settings(said: str | None) -> Mapping[str, Any] | None:
    """Return the settings that a row says as JSON, by the fields of ``SETTINGS_TYPE``.

    What stands in columns of its own is not repeated; what no field is called is kept as JSON in ``others``.
    """
    if said is None:
        return None

    given = json.loads(said)
    columns = {name for name, _ in _CHOICES}
    own = {name: given[name] for name in _OWN if name in given}
    optimization = {name: given[name] for name in _OPTIMIZATION if name in given}
    others = {
        name: value
        for name, value in given.items()
        if name not in columns | _OWN.keys() | _OPTIMIZATION.keys()
    }
    return own | {
        "optimization": optimization or None,
        "others": json.dumps(others, sort_keys=True) if others else None,
    }
