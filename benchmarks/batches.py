"""A batch without a generator: drawn faces under any keys, a manifest of made-up scores.

It has the files that editing leaves (photographs, inversions, edited images, index, manifest), so a page can
be made of it, and measured, without the time of editing.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from styleclip.tasks.artifacts import Recipe, artifact_uri, write_table
from styleclip.tasks.artifacts.outcomes import OK
from styleclip.tasks.directions.style_directions import ALPHA_UNIT
from styleclip.tasks.editing.schemas import MANIFEST_SCHEMA, TIMING_SCHEMA
from styleclip.tasks.photographs.images import write_index
from styleclip.tasks.settings.edits import Edit, EditVariant, all_variants
from styleclip.tasks.storage import (
    ObjectInfo,
    is_local,
    join,
    local_path,
    output_key,
    versions_of,
    write_bytes_atomic,
)

_HAIR = ("#3b2a20", "#c9a35a", "#7d3320", "#8b8d92", "#1d1b1c", "#b8693a")
_SKIN = ("#f1c9a5", "#d9a577", "#8d5a3b", "#f6d8c0")


@dataclass(frozen=True)
class Made:
    """A batch that was made up.

    Attributes:
        manifest: URI of its manifest.
        out: Prefix of batches and images.
        workspace: Folder of artifacts.
        variants: Its edits.
    """

    manifest: str
    out: str
    workspace: str
    variants: list[EditVariant]

    def variant(self, edit: int) -> str:
        """Return what names an edit in tables and folders."""
        return f"{self.variants[edit].label}_{edit:08x}"

    def folder(self, edit: int) -> str:
        """Return where an edit's images lie, relative to ``out``."""
        return f"images/{self.variant(edit)}"


def make_batch(
    place: str,
    keys: Sequence[str],
    edits: Sequence[Edit],
    *,
    size: int = 64,
    failed: Sequence[str] = (),
    copies: int = 0,
) -> Made:
    """Write the files of a batch under ``place``.

    Args:
        place: Folder or prefix.
        keys: Keys of its photographs.
        edits: What was done to each.
        size: Side of the images in pixels.
        failed: Keys of photographs that could not be read, and so have no edit.
        copies: Draw only this many different faces, and write them again and again; 0 draws one per key.
    """
    photos, out, workspace = join(place, "photos"), join(place, "out"), join(place, "out/workspace")
    variants, keys = all_variants(list(edits)), sorted(keys)
    made = Made("", out, workspace, variants)
    latents = artifact_uri(workspace, "latents", "made-up")
    for number, key in enumerate(keys):
        if key in failed:
            continue
        # by its key, so that another one beside it leaves it as it is
        face = zlib.crc32(key.encode()) % copies if copies else number
        _put(join(photos, key), draw(face, -1, 0.0, size + 16))
        name = output_key(key, suffix=".png")
        _put(join(latents, "reconstructions", name), draw(face, -1, 0.0, size))
        for edit, variant in enumerate(variants):
            strength = (variant.steps[0].alpha or 1.0) / 4
            target = zlib.crc32(variant.name.encode()) % len(_HAIR)
            _put(join(out, made.folder(edit), name), draw(face, target, strength, size))

    # one that failed was listed like the others
    there = versions_of(photos, keys)
    objects = [ObjectInfo(key, there.get(key) or str(zlib.crc32(key.encode())), 1) for key in keys]
    index = write_index(objects, photos, workspace, 16)

    listed = [
        {**each.parameters(), "method": each.method, "variant": made.variant(edit)}
        for edit, each in enumerate(variants)
    ]
    recipe = Recipe("made-up", "1", {"edits": listed}, {"index": index.uri}, "g" * 64, "c" * 64)
    batch = join(out, "batches", recipe.fingerprint[:16])
    manifest = join(batch, "manifest.parquet")
    provenance = recipe.made(
        "edits-manifest", {"index": index.fingerprint}, photos=photos, alpha_unit=ALPHA_UNIT,
        latents=latents, models={"encoder": "e" * 64}, tables=["t" * 32],
    )  # fmt: skip
    rows = [table(made, edit, keys, failed) for edit in range(len(variants))]
    write_table(manifest, pa.concat_tables(rows), provenance)
    write_table(manifest.replace("manifest", "timings"), TIMING_SCHEMA.empty_table(), provenance)
    write_bytes_atomic(join(batch, "contact-sheet.png"), draw(0, -1, 0.0, size))
    return Made(manifest, out, workspace, variants)


def _put(uri: str, data: bytes) -> None:
    """Write an image; on this machine without waiting for the disk."""
    if not is_local(uri):
        write_bytes_atomic(uri, data)
        return
    path = local_path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_bytes() != data:  # to write it anew would make a version of it
        path.write_bytes(data)


def table(made: Made, edit: int, keys: Sequence[str], failed: Sequence[str]) -> pa.Table:
    """Return the rows of one edit: scores that depend on key, strength and threshold."""
    variant = made.variants[edit]
    step, draws = variant.steps[0], np.random.default_rng(edit)
    strength, threshold = step.alpha or 1.0, step.beta or 0.0
    noise = draws.normal(0, 1, (len(keys), 3))
    before = 0.2 + 0.02 * noise[:, 0]
    columns: dict[str, Any] = {
        "directional": 0.45 * (1 - np.exp(-strength / 2)) - 0.3 * threshold + 0.06 * noise[:, 1],
        "clip_before": before,
        "clip_after": before + 0.03 * strength + 0.01 * noise[:, 1],
        "identity": np.clip(1 - 0.05 * strength * (1.2 - threshold) - 0.04 * np.abs(noise[:, 2]), -1, 1),
    }
    rows = []
    for number, key in enumerate(keys):
        row = dict.fromkeys(MANIFEST_SCHEMA.names) | {
            "image_key": key, "edit": variant.name, "variant": made.variant(edit), "neutral": variant.neutral,
            "target": variant.target, "method": variant.method, "alpha": step.alpha, "beta": step.beta,
            "top_k": step.top_k,
        }  # fmt: skip
        if key in failed:
            row |= {
                "status": "skipped", "error_type": "ImageDecodeError",
                "error": f"damaged or truncated image: {key}; upload it again",
            }  # fmt: skip
        else:
            name = output_key(key, suffix=".png")
            row |= {score: float(values[number]) for score, values in columns.items()}
            row |= {"status": OK, "output_key": f"{made.folder(edit)}/{name}", "channels": 12 + edit}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)


@lru_cache(maxsize=4096)
def draw(face: int, target: int, strength: float, size: int) -> bytes:
    """Return a PNG of a face; an edit colours its hair.

    Args:
        face: Number of the face; each looks different.
        target: Colour of the edit, -1 for none.
        strength: How much of that colour, 0 to 1 and more.
        size: Side in pixels.
    """
    draws = np.random.default_rng(face)
    paper, skin, hair = (_rgb(f"#{v:06x}") for v in draws.integers(0x606060, 0xE0E0E0, 3))
    skin, hair = _rgb(_SKIN[face % len(_SKIN)]), _rgb(_HAIR[int(draws.integers(len(_HAIR)))])
    if target >= 0:
        hair = hair + (_rgb(_HAIR[target]) - hair) * min(strength, 1.0)
    scale, wide = 4 * size, 0.24 + 0.05 * draws.random()
    image = Image.new("RGB", (scale, scale), _hex(paper))
    pen = ImageDraw.Draw(image)

    def ellipse(x: float, y: float, across: float, down: float, colour: np.ndarray) -> None:
        box = ((x - across) * scale, (y - down) * scale, (x + across) * scale, (y + down) * scale)
        pen.ellipse(box, fill=_hex(colour))

    ellipse(0.5, 1.08, 0.4, 0.3, paper * 0.5)
    ellipse(0.5, 0.46, wide + 0.09, 0.37, hair)
    ellipse(0.5, 0.53, wide, 0.31, skin)
    ellipse(0.5, 0.22, wide + 0.02, 0.1, hair)
    for x in (0.5 - wide * 0.45, 0.5 + wide * 0.45):
        ellipse(x, 0.5, 0.035, 0.025, np.full(3, 250.0))
        ellipse(x, 0.5, 0.017, 0.02, paper * 0.3)
    ellipse(0.5, 0.7, 0.08, 0.018, skin * 0.6)
    buffer = io.BytesIO()
    image.resize((size, size), Image.Resampling.LANCZOS).save(buffer, "PNG")
    return buffer.getvalue()


def _rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)], np.float64)


def _hex(colour: np.ndarray) -> str:
    return "#" + "".join(f"{int(value):02x}" for value in np.clip(colour, 0, 255))
