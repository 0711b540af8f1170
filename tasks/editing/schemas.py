"""Columns of what edits leave: a row per image and edit, with a record per step, and how long each took."""

from __future__ import annotations

import pyarrow as pa

from tasks.artifacts.outcomes import STATUS_FIELDS

_SETTINGS = [
    ("neutral", pa.string()), ("target", pa.string()), ("method", pa.string()), ("alpha", pa.float64()),
    ("beta", pa.float64()), ("top_k", pa.int32()), ("strength", pa.float64()), ("channels", pa.int32()),
    ("layers", pa.string()), ("settings", pa.string()),
]  # fmt: skip
SCORES = ("clip_before", "clip_after", "directional", "identity", "lpips")
_SCORES = [(name, pa.float32()) for name in SCORES]
STEP_TYPE = pa.struct([*_SETTINGS, *_SCORES, ("latents", pa.string()), ("video", pa.string())])
MANIFEST_FIELDS = [
    ("image_key", pa.string()), ("content_hash", pa.string()),
    ("edit", pa.string()), ("variant", pa.string()), *_SETTINGS,
    ("output_key", pa.string()), *_SCORES, ("steps", pa.list_(STEP_TYPE)), *STATUS_FIELDS,
]  # fmt: skip
MANIFEST_SCHEMA = pa.schema(MANIFEST_FIELDS)
TIMING_SCHEMA = pa.schema([("image_key", pa.string()), ("edit", pa.string()), ("seconds", pa.float32())])
