"""Many small problems optimized side by side: what keeps one from seeing another.

Losses are summed, and neither that sum nor Adam, which works element by element, mixes the problems. But
a machine rounds differently for other sizes of a batch, and gradient descent makes much of that. So
networks are always given chunks of one size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor


def chunks(count: int, size: int, device: torch.device) -> Iterator[Tensor]:
    """Yield 0 to ``count - 1`` in chunks of exactly ``size``; the last is filled up with its first."""
    for first in range(0, count, size):
        index = torch.arange(first, first + size, device=device)
        yield torch.where(index < count, index, first)


def only(kept: Tensor, latents: Tensor, optimizer: torch.optim.Adam) -> tuple[Tensor, torch.optim.Adam]:
    """Return some of the problems ``[A, ...]``, by a mask, and an Adam for them, with their moments."""
    fewer = latents[kept]
    smaller = torch.optim.Adam([fewer], eps=optimizer.param_groups[0]["eps"])
    smaller.state[fewer] = {
        name: value if name == "step" else value[kept] for name, value in optimizer.state[latents].items()
    }
    return fewer, smaller


def cosine_fall(done: float, share: float) -> float:
    """Return the factor of a rate that falls from 1 to 0 along a cosine, over the last ``share`` of the way.

    Args:
        done: Part of the way that is done, 0..1.
        share: Part of it over which the rate falls, above 0.
    """
    return 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - done) / share))
