"""The pictures that README opens with: five edits of three faces of the demo, and one edit by its strength.

Chosen by a rule, not by hand. The edits are the five with the highest mean directional similarity; the faces
are those at which the mean of these five scores stands a quarter, half and three quarters of the way from the
worst photograph to the best. The moving picture is the first of the edits on the middle face.

    python -m benchmarks.first_picture demo/batches/*/manifest.parquet
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from PIL import Image, ImageDraw, ImageFont

import data

_EDITS, _SCALE, _MARGIN, _HEADER, _FRAMES = 5, 3, 6, 34, 12
_QUARTERS = (0.25, 0.5, 0.75)


def main() -> None:
    """Draw the pictures into a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", help="manifest.parquet of a demo's batch")
    parser.add_argument("--out", default="docs", help="folder of edits.png and strength.webp")
    chosen = parser.parse_args()

    rows = pd.read_parquet(chosen.manifest).query("status == 'ok'")
    names, keys = choose(rows)
    out, batch = Path(chosen.out), Path(chosen.manifest).parents[2]
    _sheet(rows, names, keys, batch).save(out / "edits.png", optimize=True)

    frames = _strengths(rows, names[0], keys[1], batch)
    frames += frames[-2:0:-1]  # there and back
    frames[0].save(
        out / "strength.webp", save_all=True, append_images=frames[1:], duration=110, loop=0, quality=80
    )
    sys.stdout.write(json.dumps({"edits": names, "faces": keys}) + "\n")


def choose(rows: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Return the edits that worked best, and three faces that are neither the best nor the worst for them."""
    means = rows.groupby("edit")["directional"].mean().sort_values(ascending=False, kind="stable")
    names = list(means.index[:_EDITS])
    scores = (
        rows[rows["edit"].isin(names)].groupby("image_key")["directional"].mean().sort_values(kind="stable")
    )
    return names, [str(scores.index[round(share * (len(scores) - 1))]) for share in _QUARTERS]


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


def _strengths(rows: pd.DataFrame, name: str, key: str, batch: Path) -> list[Image.Image]:
    """Return one face under an edit from no strength to all of it, by a run of its own."""
    mine = rows[(rows["edit"] == name) & (rows["image_key"] == key)].to_dict("records")[0]
    edit = next(each for each in yaml.safe_load(data.EDITS.read_text()) if each["name"] == name)
    alphas = [round(edit["alpha"] * (number + 1) / _FRAMES, 4) for number in range(_FRAMES)]

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        (out / "edits.yaml").write_text(yaml.safe_dump([edit | {"alpha": alphas}]))
        command = [
            sys.executable, "-m", "styleclip_cli.main", "edit", "--photos", str(data.PHOTOGRAPHS / key),
            "--out", folder, "--edits", f"{folder}/edits.yaml", "--workspace", str(batch / "workspace"),
            "--json", "-q",
        ]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = pd.read_parquet(json.loads(done.stdout)["manifest"]).sort_values("alpha").to_dict("records")
        drawn = [_before(mine, batch), *(_after(each, out) for each in found)]
    return [each.resize((each.width * 4, each.height * 4), Image.Resampling.LANCZOS) for each in drawn]


if __name__ == "__main__":
    main()
