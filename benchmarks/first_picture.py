"""The picture that README opens with: five edits of three faces of the demo, large.

Chosen by a rule, not by hand. The faces are the first three portraits without hat, glasses and beard; the
edits are the first ones of the demo's list for each part: hair, mouth, glasses, beard, background.

    python -m benchmarks.first_picture demo/batches/*/manifest.parquet
"""

from __future__ import annotations

import argparse
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from styleclip import data

_EDITS = ("grey-hair", "smiling", "glasses", "beard", "blue-background")
_WORN = ("hat", "glasses", "beard")
_FACES, _SCALE, _MARGIN, _HEADER = 3, 3, 6, 34


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", help="manifest.parquet of a demo's batch")
    parser.add_argument("--out", default="docs/edits.png", help="the picture")
    chosen = parser.parse_args()

    rows = pd.read_parquet(chosen.manifest).query("status == 'ok'")
    labels = pd.read_csv(data.LABELS).sort_values("image_key")
    bare = labels[(labels[list(_WORN)] == 0).all(axis=1)]
    _sheet(rows, list(_EDITS), list(bare["image_key"][:_FACES]), Path(chosen.manifest).parents[2]).save(
        chosen.out, optimize=True
    )


def _sheet(rows: pd.DataFrame, names: list[str], keys: list[str], batch: Path) -> Image.Image:
    """Draw a row for each face: what the generator drew of the photograph, and its edits."""
    by = {(row["edit"], row["image_key"]): row for row in rows.to_dict("records")}
    tiles = [
        [_before(by[names[0], key], batch), *(_after(by[name, key], batch) for name in names)] for key in keys
    ]
    titles = ["before", *(by[name, keys[0]]["target"].removeprefix("face with ") for name in names)]

    side = tiles[0][0].width * _SCALE
    step = side + _MARGIN
    sheet = Image.new("RGB", (len(titles) * step + _MARGIN, _HEADER + len(keys) * step), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=18)
    for column, title in enumerate(titles):
        left = _MARGIN + column * step
        pen.text((left + (side - font.getlength(title)) / 2, 7), title, fill="black", font=font)
        for row, line in enumerate(tiles):
            large = line[column].resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(large, (left, _HEADER + row * step))
    return sheet


def _before(row: Mapping[Hashable, Any], batch: Path) -> Image.Image:
    return Image.open(batch / "workspace" / "latents" / row["inversion_key"]).convert("RGB")


def _after(row: Mapping[Hashable, Any], batch: Path) -> Image.Image:
    return Image.open(batch / row["output_key"]).convert("RGB")


if __name__ == "__main__":
    main()
