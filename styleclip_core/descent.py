"""Many small problems optimized side by side: what keeps one from seeing another.

Losses are summed, and neither that sum nor Adam, which works element by element, mixes the problems. But
a machine rounds differently for other sizes of a batch, and gradient descent makes much of that. So
networks are always given chunks of one size, which only a GPU without the memory for it makes smaller.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum
from typing import TypeVar

import torch
from torch import Tensor

from styleclip_core.batches import Batches
from styleclip_core.decisions import improves

_T = TypeVar("_T")
Terms = Callable[[Tensor, Tensor], Tensor]  # numbers [B, ...] of problems [B] -> figures [K, B], loss last
_IMPROVEMENT = 1e-3  # of the best loss; less counts as standing still


class Status(IntEnum):
    """How a pair stands."""

    RUNNING = 0
    DONE = 1  # all steps
    CONVERGED = 2  # its patience is at an end
    DIVERGED = 3  # its loss is no number, or its code ran away


class Progress:
    """How each of P problems stands: its best numbers, its patience, whether it goes on.

    Patience ends on the margin of ``decisions.improves``, so processors may end at steps that differ.

    Attributes:
        result: Best numbers so far, or without patience the last ones, never diverged: ``[P, ...]``.
        loss: Lowest losses so far, ``[P]``; infinite where none was a number.
        status: Values of ``Status``, ``[P]``.
        running: Numbers of the problems that go on, ``[A]`` int64.
    """

    def __init__(self, start: Tensor, patience: int | None) -> None:
        self.result, self._patience = start.clone(), patience
        self.running = torch.arange(len(start), device=start.device)
        self.loss = torch.full((len(start),), math.inf, device=start.device, dtype=start.dtype)
        self.status, self._stale = torch.zeros_like(self.running), torch.zeros_like(self.running)

    def judge(self, numbers: Tensor, loss: Tensor, fine: Tensor, *, last: bool) -> Tensor | None:
        """Take note of an evaluation and return which of the A problems go on, ``[a]`` int64; None for all.

        The host waits for the device once: to learn whether a problem has ended.

        Args:
            numbers: What the problems that run are at, ``[A, ...]``.
            loss: Their losses, ``[A]``.
            fine: Which of them have not diverged, ``[A]`` bool.
            last: Whether this was the last evaluation.
        """
        each, value = self.running, loss.to(self.loss)
        improved = fine & improves(value, self.loss[each], by=_IMPROVEMENT)

        # without a mask as an index, whose size the host would have to know
        kept = (fine if self._patience is None else improved).view(-1, *[1] * (numbers.ndim - 1))
        self.result[each] = torch.where(kept, numbers.detach(), self.result[each])
        self.loss[each] = torch.where(improved, value, self.loss[each])
        self._stale[each] = torch.where(improved, 0, self._stale[each] + 1)

        outcome = torch.full_like(each, Status.DONE if last else Status.RUNNING)
        if self._patience is not None:
            outcome = outcome.masked_fill(self._stale[each] >= self._patience, Status.CONVERGED)
        outcome = outcome.masked_fill(~fine, Status.DIVERGED)
        self.status[each] = outcome

        running = outcome == Status.RUNNING
        if running.all():
            return None
        (going,) = running.nonzero(as_tuple=True)
        self.running = each[going]
        return going


class Chunks(Batches):
    """Work on many problems, always exactly ``size`` at once, and half as many once memory was too small."""

    def over(self, count: int, device: torch.device, work: Callable[[Tensor], _T]) -> list[_T]:
        """Return what ``work`` makes of each chunk of 0 to ``count - 1``, the last filled up with its first.

        Raises:
            torch.OutOfMemoryError: If a single problem does not fit.
        """
        index = torch.arange(-(-count // self.size) * self.size, device=device)
        first = index // self.size * self.size
        return [done for _, done in self.run(torch.where(index < count, index, first), work)]


def in_chunks(items: Tensor, work: Callable[[Tensor], Tensor], *, size: int) -> Tensor:
    """Return what ``work`` makes of items ``[B, ...]``, bit for bit the same whatever their batch.

    Args:
        items: What is worked on.
        work: Makes as many rows as it is given, each of its own item alone.
        size: Items at once, always exactly so many.
    """
    parts = Chunks(size).over(len(items), items.device, lambda index: work(items[index]))
    return torch.cat(parts)[: len(items)]


def evaluate(numbers: Tensor, problems: Tensor, terms: Terms, *, chunks: Chunks) -> tuple[Tensor, Tensor]:
    """Return the figures of many problems and the gradients of their losses, a chunk at a time.

    Args:
        numbers: What the problems are at, ``[A, ...]``.
        problems: Which problems those are, ``[A]`` int64.
        terms: Computes K figures of each problem of a chunk; the last of them is its loss.
        chunks: How many problems are worked on at once; the same in all steps, so that it learns what fits.

    Returns:
        Figures ``[K, A]`` and gradients ``[A, ...]``, neither with a graph.
    """

    def differentiate(index: Tensor) -> tuple[Tensor, Tensor]:
        moving = numbers[index].requires_grad_(True)
        found = terms(moving, problems[index])
        (gradient,) = torch.autograd.grad(found[-1].sum(), moving)
        return found.detach(), gradient

    figures, gradients = zip(*chunks.over(len(numbers), numbers.device, differentiate), strict=True)

    # what filled the last chunk up is cut off again
    return torch.cat(figures, dim=1)[:, : len(numbers)], torch.cat(gradients)[: len(numbers)]


def only(kept: Tensor, latents: Tensor, optimizer: torch.optim.Adam) -> tuple[Tensor, torch.optim.Adam]:
    """Return some of the problems ``[A, ...]``, by their places, and an Adam for them, with their moments."""
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
