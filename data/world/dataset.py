"""Rendered portraits on disk, shared by the trainings that read the same ones."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from styleclip.data.world.renderer import factors_of, render

SEED = 1
COUNT = 32_000
Z_DIM = 64


@dataclass(frozen=True)
class RenderedPortraits:
    """Training portraits: factors ``[n, K]`` and a memory-mapped file of uint8 images."""

    factors: Tensor
    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.factors)

    def images(self, index: Tensor) -> Tensor:
        """Return chosen portraits, ``[B, 3, 64, 64]`` in -1..1."""
        return torch.from_numpy(self.pixels[index.numpy()]).float() / 127.5 - 1

    @classmethod
    def prepare(cls, build: Path) -> RenderedPortraits:
        """Render all portraits once; later calls map the file."""
        latents = torch.randn(COUNT, Z_DIM, generator=torch.Generator().manual_seed(SEED))
        factors = factors_of(latents)
        path = build / "portraits.npy"
        if not path.exists():
            build.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(f".{os.getpid()}.tmp")
            images = np.lib.format.open_memmap(aside, mode="w+", dtype=np.uint8, shape=(COUNT, 3, 64, 64))
            for start in range(0, COUNT, 1000):
                part = slice(start, start + 1000)
                images[part] = ((render(factors[part]) + 1) * 127.5).round().byte().numpy()
            images.flush()
            os.replace(aside, path)  # noqa: PTH105
        return cls(factors, np.load(path, mmap_mode="r"))
