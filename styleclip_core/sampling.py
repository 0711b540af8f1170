"""Seeded latents and streaming statistics of style space.

Every sample has a random generator of its own, keyed by seed and sample number, so sample i is the
same whatever batch, shard or machine draws it. Statistics merge exactly (Chan et al. 1983), so
100,000 codes never lie in memory at once.

Shapes: B batch, M all style channels, L rows of w_plus.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from styleclip_core.errors import LayoutMismatchError
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.style_space import StyleCode


def sample_z(seed: int, sample_ids: Sequence[int], z_dim: int) -> Tensor:
    """Draw normal latents, each from its own generator.

    Args:
        seed: From 0 to 2^64 - 1.
        sample_ids: Numbers of the samples.
        z_dim: Width of z.

    Returns:
        ``[len(sample_ids), z_dim]`` float32.
    """
    rows = [
        np.random.Generator(np.random.Philox(key=[seed, sample])).standard_normal(z_dim, np.float32)
        for sample in sample_ids
    ]
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, z_dim)


@torch.no_grad()
def sample_styles(
    generator: Generator,
    *,
    seed: int,
    sample_ids: Sequence[int],
    truncation_psi: float,
    truncation_cutoff: int | None = None,
    label: int | None = None,
    batch_size: int = 500,
) -> Iterator[tuple[list[int], Tensor, StyleCode]]:
    """Sample style codes, batch by batch.

    Args:
        generator: Maps z to styles.
        seed: Seed of all samples.
        sample_ids: Numbers of the samples.
        truncation_psi: Pull towards the average w, 1 for none.
        truncation_cutoff: Rows of w_plus that are truncated, None for all.
        label: Class of a conditional generator, from 0.
        batch_size: Samples at once; does not change them.

    Yields:
        The numbers of a batch, w before truncation ``[B, w_dim]``, and the style codes.

    Raises:
        ValueError: If the generator needs a label and none is given, or has none of that number.
    """
    ids = list(sample_ids)
    one_hot = _one_hot(generator, label)

    # one row per sample from the sample's own generator: no sample depends on its batch
    for first in range(0, len(ids), batch_size):
        batch = ids[first : first + batch_size]
        z = sample_z(seed, batch, generator.config.z_dim).to(generator.device)
        w = generator.map(z, None if one_hot is None else one_hot.expand(len(z), -1))

        # truncated here, not in map(): w before truncation is yielded too
        average = generator.mapping.w_avg
        cutoff = generator.num_ws if truncation_cutoff is None else truncation_cutoff
        w_plus = torch.cat([average.lerp(w[:, :cutoff], truncation_psi), w[:, cutoff:]], dim=1)

        yield batch, w[:, 0], generator.styles(w_plus)


def _one_hot(generator: Generator, label: int | None) -> Tensor | None:
    classes = generator.config.c_dim
    if label is None and not classes:
        return None

    if label is None or not 0 <= label < classes:
        known = f"give a label from 0 to {classes - 1}" if classes else "leave the label out"
        raise ValueError(f"this generator has {classes} classes, the label is {label}: {known}")
    return F.one_hot(torch.tensor([label]), classes).float().to(generator.device)


@dataclass(frozen=True, slots=True, eq=False)
class ChannelStatistics:
    """Statistics of all M style channels over n codes, in float64.

    Attributes:
        n: Number of codes.
        mean: ``[M]``.
        m2: Sum of squared differences from the mean, ``[M]``.
        min: ``[M]``.
        max: ``[M]``.
    """

    n: int
    mean: Tensor
    m2: Tensor
    min: Tensor
    max: Tensor

    @classmethod
    def from_codes(cls, flat: Tensor) -> Self:
        """Measure flat style codes ``[B, M]``, B from 1.

        Raises:
            ValueError: If there are no codes, or they are not flat.
        """
        if flat.ndim != 2 or not len(flat):
            raise ValueError(f"flat style codes are [B, M] with B from 1, got {list(flat.shape)}")
        # in float64, and around the mean: float32 sums of 100,000 squares lose the small deviations
        codes = flat.detach().cpu().double()

        mean = codes.mean(dim=0)
        m2 = (codes - mean).square().sum(dim=0)
        return cls(len(codes), mean, m2, codes.amin(dim=0), codes.amax(dim=0))

    @property
    def std(self) -> Tensor:
        """Return the standard deviation, ``[M]``, of the population (ddof = 0), as published."""
        return (self.m2 / self.n).sqrt()

    def merge(self, other: ChannelStatistics) -> ChannelStatistics:
        """Return the statistics over both sets of codes.

        Raises:
            LayoutMismatchError: If they describe different numbers of channels.
        """
        if self.mean.shape != other.mean.shape:
            raise LayoutMismatchError(
                f"statistics of {len(self.mean)} and of {len(other.mean)} style channels cannot be merged; "
                "measure both on the same generator"
            )

        # the pairwise form of Chan et al. 1983: plain sums of squares would cancel
        n = self.n + other.n
        delta = other.mean - self.mean

        return ChannelStatistics(
            n,
            self.mean + delta * (other.n / n),
            self.m2 + other.m2 + delta.square() * (self.n * other.n / n),
            torch.minimum(self.min, other.min),
            torch.maximum(self.max, other.max),
        )


def measure_statistics(codes: Iterable[StyleCode]) -> ChannelStatistics:
    """Measure style codes batch by batch; only one batch lies in memory.

    Raises:
        LayoutMismatchError: If the batches come from different generators.
        ValueError: If there is no batch.
    """
    total: ChannelStatistics | None = None

    for batch in codes:
        part = ChannelStatistics.from_codes(batch.flat())
        total = part if total is None else total.merge(part)

    if total is None:
        raise ValueError("there are no style codes to measure; sample at least one")
    return total
