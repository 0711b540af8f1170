"""Scores of the edits that a manifest lists, by networks that need not be those that made them.

Both tables lie beside the manifest, in ``<batch>/evaluations/<16 hex digits>/``, one folder for every set
of judges and attributes; ``find_evaluations`` lists them. ``evaluation.parquet`` has a row for every row of
the manifest (``EVALUATION_SCHEMA``), ``summary.parquet`` a row for every edit and metric
(``SUMMARY_SCHEMA``). Rows of both name their edit by ``variant``, the folder of its images below
``images/`` (the second part of a manifest's ``output_key``).

Columns of ``evaluation.parquet``; null where there is no network for it, or the row's status is not ok:

=================  =========  =============================================================================
clip_before/after  -1..1      cosine to the target prompt, before and after the edit
directional        -1..1      cosine of the change of the embedding to the text direction
agreement          -1..1      the same of the step from the next weaker strength of a sweep (reference: GetAlign)
target_before/     0..1       zero-shot probability of the target prompt against the neutral one
after
identity           -1..1      cosine of the identity embeddings before and after
psnr, ssim, l1     dB, -1..1, edited against unedited image, pixels in 0..1; l1 is the mean absolute difference
                   0..1
lpips              0..        perceptual distance
target_attribute   name       attribute whose text direction is nearest to the edit's; null if none is near
target_move        deviations move of that attribute's logit towards what the edit wants
others_move        deviations mean absolute move of the logits of the attributes of other groups
worst_attribute    name       the one of those that moved most, and by how much (worst_move, signed)
attributes         list       of every attribute: its zero-shot probability before and after, and the change of
                              its logit in standard deviations over the unedited images of the batch
status, error ...             as in the manifest; failed rows are carried along
=================  =========  =============================================================================
"""

from __future__ import annotations

import pyarrow as pa

from tasks.outcomes import STATUS_FIELDS

_EDIT = [
    ("edit", pa.string()), ("variant", pa.string()), ("method", pa.string()), ("neutral", pa.string()),
    ("target", pa.string()), ("alpha", pa.float64()), ("beta", pa.float64()), ("top_k", pa.int32()),
    ("strength", pa.float64()),
]  # fmt: skip
METRICS = (
    "clip_before", "clip_after", "directional", "agreement", "target_before", "target_after", "identity",
    "psnr", "ssim", "l1", "lpips",
)  # fmt: skip
ATTRIBUTE_TYPE = pa.struct([
    ("attribute", pa.string()), ("before", pa.float32()), ("after", pa.float32()), ("change", pa.float32()),
])  # fmt: skip
EVALUATION_SCHEMA = pa.schema([
    ("image_key", pa.string()), *_EDIT, ("output_key", pa.string()),
    *[(name, pa.float32()) for name in METRICS],
    ("target_attribute", pa.string()), ("target_move", pa.float32()), ("others_move", pa.float32()),
    ("worst_attribute", pa.string()), ("worst_move", pa.float32()), ("attributes", pa.list_(ATTRIBUTE_TYPE)),
    *STATUS_FIELDS,
])  # fmt: skip
SUMMARY_SCHEMA = pa.schema([
    *_EDIT, ("metric", pa.string()), ("attribute", pa.string()), ("unit", pa.string()),
    ("mean", pa.float64()), ("standard_error", pa.float64()), ("n", pa.int64()), ("failed", pa.int64()),
])  # fmt: skip
