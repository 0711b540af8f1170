"""Scores that an evaluation found, joined to the images and edits of a batch."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from styleclip.tasks.artifacts import DamagedArtifactError, iter_batches
from styleclip.tasks.reports.page.batch import Batch, Score
from styleclip.tasks.reports.page.links import parent
from styleclip.tasks.storage import MissingObjectError, join, list_objects

_TABLE = "evaluation.parquet"
_SCORES = (
    Score("directional", "Directional", "Cosine of the image's move and the prompts' difference"),
    Score("agreement", "Agreement", "The same of the step from the next weaker strength of a sweep"),
    Score("target_after", "Target probability", "Zero-shot probability of the target against the neutral"),
    Score("target_move", "Target move", "Move of the target's attribute, in standard deviations"),
    Score("others_move", "Others moved", "Mean absolute move of unrelated attributes, in deviations",
          high_is_better=False),
    Score("identity", "Identity", "Cosine of the identity embeddings before and after"),
    Score("lpips", "LPIPS", "Perceptual distance to the image before", high_is_better=False),
    Score("psnr", "PSNR", "Peak signal-to-noise ratio to the image before, in dB"),
    Score("ssim", "SSIM", "Structural similarity to the image before"),
)  # fmt: skip


def find_evaluations(manifest: str) -> list[str]:
    """Return the evaluations that lie beside a manifest, by name."""
    folder = join(parent(manifest), "evaluations")
    try:
        keys = [found.key for found in list_objects(folder, suffixes=(_TABLE,))]
    except MissingObjectError:
        return []

    # one with rows that could not be scored is superseded by one of the same scores that has them all
    names = {key: key.partition("/")[0] for key in keys}
    whole = {name.partition(".")[0] for name in names.values() if "-" not in name}
    return [
        join(folder, key)
        for key, name in names.items()
        if "-" not in name or re.split(r"[.-]", name)[0] not in whole
    ]


def add_evaluations(batch: Batch, uris: list[str]) -> None:
    """Add the scores of evaluations to a batch; one that says what the manifest says already is left out.

    Raises:
        DamagedArtifactError: If a table is no evaluation, or of another batch.
        StorageError: If a table cannot be read.
    """
    for number, uri in enumerate(uris, start=1):
        values = _read(batch, uri)
        suffix = f" {number}" if len(uris) > 1 else ""
        for score in _SCORES:
            found, known = values[score.name], batch.values.get(score.name)
            # a score that is computed twice may differ in its last digits
            if known is not None and np.allclose(found, known, atol=1e-4, equal_nan=True):
                continue

            name = f"evaluation_{number}_{score.name}"
            title = f"{score.title} (evaluation{suffix})" if known is not None or suffix else score.title
            batch.values[name] = found
            batch.extra.append(replace(score, name=name, title=title))


def _read(batch: Batch, uri: str) -> dict[str, np.ndarray]:
    edits = batch.numbers
    images = {key: number for number, key in enumerate(batch.keys)}
    values = {each.name: np.full(batch.status.shape, np.nan, np.float32) for each in _SCORES}
    matched = 0

    # an evaluation may be of more edits or images than the batch has
    for part in iter_batches(uri, ["image_key", "variant", *values]):
        names = zip(part["variant"].to_pylist(), part["image_key"].to_pylist(), strict=True)
        # -1 where the batch has no such edit or image
        places = [(edits.get(variant, -1), images.get(key, -1)) for variant, key in names]
        edit, image = np.array(places, np.int64).reshape(-1, 2).T
        known = (edit >= 0) & (image >= 0)
        matched += int(known.sum())
        for name, found in values.items():
            found[edit[known], image[known]] = part[name].to_numpy(zero_copy_only=False)[known]

    if not matched:
        raise DamagedArtifactError(
            f"{uri} has no row of the batch {batch.manifest}; give an evaluation of that manifest"
        )
    return values
