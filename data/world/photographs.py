"""Portraits that no training has seen, as files: the image data set of the embedded world."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from styleclip.data.world.captions import ATTRIBUTES
from styleclip.data.world.dataset import Z_DIM
from styleclip.data.world.renderer import FACTORS, factors_of, render, strengths
from styleclip_core.images import encode_png

PHOTOGRAPH_SEED, VALIDATION_SEED = 7001, 7002  # trainings use 1 to 41
COUNT, VALIDATION_COUNT = 96, 64


def held_out_factors(seed: int, count: int) -> Tensor:
    """Return the factors of portraits kept out of all trainings, ``[count, K]``."""
    return factors_of(torch.randn(count, Z_DIM, generator=torch.Generator().manual_seed(seed)))


def write_photographs(folder: Path, factors: Tensor) -> None:
    """Write portraits as ``portrait-000.png`` ... and their true factors as ``factors.parquet``."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"portrait-{index:03d}.png" for index in range(len(factors))]
    for name, image in zip(names, render(factors), strict=True):
        (folder / name).write_bytes(encode_png(image))
    shown = strengths(factors)
    columns: dict[str, object] = {"image_key": names}
    columns |= {name: factors[:, index].numpy() for index, name in enumerate(FACTORS)}
    columns |= {f"{name}_strength": shown[:, index].numpy() for index, name in enumerate(FACTORS)}
    pq.write_table(pa.table(columns), folder / "factors.parquet", compression="zstd")


def write_labels(folder: Path, factors: Tensor) -> None:
    """Write which attributes hold of every portrait as ``labels.csv``, 1 or 0, a column for each."""
    shown = strengths(factors)
    columns = {each.name.replace("_", " "): each.test(shown).int().tolist() for each in ATTRIBUTES}
    with (folder / "labels.csv").open("w", newline="") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(["image_key", *columns])
        for index, values in enumerate(zip(*columns.values(), strict=True)):
            rows.writerow([f"portrait-{index:03d}.png", *values])


def read_factors(folder: Path) -> dict[str, Tensor]:
    """Return the true factors of every photograph, by file name, ``[K]`` each."""
    table = pq.read_table(folder / "factors.parquet")
    rows = zip(*(table[name].to_pylist() for name in FACTORS), strict=True)
    return {name: torch.tensor(row) for name, row in zip(table["image_key"].to_pylist(), rows, strict=True)}
