"""Decisions between computed figures that do not hang on their last bits.

Another processor, or another batch, rounds otherwise. So figures that agree to ``ALIKE`` count as equal, and
of equal ones the first is taken. Such a margin has edges of its own: a figure that lies within rounding of
one, at an odd number of halves of ``ALIKE``, can still be taken for either of its neighbours.

The figures are cosines, probabilities and distances of unit vectors: numbers of about 1 at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

ALIKE = 1e-5  # what forward passes may differ by, see docs/reproducibility.md
_Figure = TypeVar("_Figure", float, Tensor)


def ranked(sizes: Tensor) -> Tensor:
    """Return the places of sizes ``[N]``, none negative, from the largest on; of equal ones the first first.

    A size above 0, however small, comes before all zeros.
    """
    steps = (sizes.double() / ALIKE).round()
    return torch.where(sizes > 0, steps.clamp(min=1), 0).argsort(descending=True, stable=True)


def least(figures: Sequence[float]) -> int:
    """Return the place of the least of some figures, the first of equal ones."""
    return min(range(len(figures)), key=lambda place: round(figures[place] / ALIKE, 0))


def improves(loss: _Figure, best: _Figure, *, by: float = ALIKE) -> _Figure | bool:
    """Return whether a loss is lower than the best one so far by more than this share of it.

    Args:
        loss: Not negative.
        best: Not negative; infinite before there is one.
        by: Share of ``best``; where an improvement lies within rounding of it, processors may differ.
    """
    return loss < best * (1 - by)
