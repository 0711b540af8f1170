"""Figures of a sweep at a given move of the target, and their errors.

A curve is the mean over portraits at every strength; where it first reaches a level, the other figures are
read off between its two neighbours, linearly in the target's move. Errors are bootstrapped: portraits
are drawn with replacement, the same ones for every way, so differences are paired; for means over
prompts, the prompts are drawn as well.

Shapes: S strengths, B portraits, K factors, R replicates (the first is the measured set itself), P prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from styleclip.data.world.quality import Prompt
from styleclip.data.world.renderer import FACTORS, INDEX

REPLICATES, _SEED = 400, 17
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curve:
    """A sweep in figures, with the unedited portraits as its first point.

    Attributes:
        target: Move of the target towards the prompt, in deviations, ``[S, B]``.
        others: Mean absolute move of the unrelated factors, ``[S, B]``.
        identity: Cosine to before, ``[S, B]``.
        strengths: ``[S]``, rising, the first 0.
    """

    target: Array
    others: Array
    identity: Array
    strengths: Array


def unrelated(prompt: Prompt) -> list[int]:
    """Return the factors that should stay."""
    return [i for i, name in enumerate(FACTORS) if name != prompt.factor and name not in prompt.related]


def curve(prompt: Prompt, found: dict[str, Tensor]) -> Curve:
    """Return a sweep's figures."""
    change = found["change"].double()
    target = prompt.sign * change[:, :, INDEX[prompt.factor]]
    others = change[:, :, unrelated(prompt)].abs().mean(dim=2)

    def with_start(values: Tensor, first: float) -> Array:
        start = torch.full_like(values[:1], first)
        return torch.cat([start, values]).double().numpy()

    return Curve(
        with_start(target, 0), with_start(others, 0), with_start(found["identity"], 1),
        np.concatenate([[0.0], found["strengths"].double().numpy()]),
    )  # fmt: skip


def replicates(portraits: int, *, count: int = REPLICATES) -> Array:
    """Return how much each portrait weighs in each replicate, ``[R, B]``; rows add up to 1."""
    random = np.random.default_rng(_SEED)
    drawn = random.multinomial(portraits, np.full(portraits, 1 / portraits), size=count - 1)
    return np.concatenate([np.ones((1, portraits)), drawn]) / portraits


def reach(moved: Array, level: Array) -> tuple[NDArray[np.int64], Array]:
    """Return the point before which each curve reaches its level, and how far between the two.

    Args:
        moved: Mean moves along the strengths, ``[S, R]``; the first row is below every level.
        level: ``[R]``.

    Returns:
        Index of the first point at or above the level, ``[R]``, and the share of the way to it from the one
        before, ``[R]``; NaN where the level is not reached.
    """
    above = moved >= level
    reached = above.any(axis=0)
    high = np.where(reached, above.argmax(axis=0), 1)
    column = np.arange(moved.shape[1])
    low, top = moved[high - 1, column], moved[high, column]
    share = (level - low) / np.where(top > low, top - low, 1)
    return high, np.where(reached, share, np.nan)


@dataclass(frozen=True, eq=False)
class Matched:
    """Figures where the target has moved to a level, ``[R]`` each; NaN where it never does."""

    others: Array
    identity: Array
    strength: Array


def at_level(found: Curve, weights: Array, level: Array) -> Matched:
    """Return what a way costs at a move of the target, ``level [R]`` in deviations."""
    high, share = reach(found.target @ weights.T, level)
    column = np.arange(len(level))

    def read(values: Array) -> Array:
        return values[high - 1, column] * (1 - share) + values[high, column] * share

    strengths = np.repeat(found.strengths[:, None], len(level), axis=1)
    return Matched(
        read(found.others @ weights.T), read(found.identity @ weights.T), read(strengths)
    )  # fmt: skip


def over_prompts(values: Array) -> tuple[float, float]:
    """Return mean and standard error over prompts and portraits, from ``[P, R]`` without NaN."""
    random = np.random.default_rng(_SEED)
    prompts, count = values.shape
    rows = random.integers(prompts, size=(count, prompts))
    rows[0] = np.arange(prompts)
    drawn = np.take_along_axis(values.T, rows, axis=1).mean(axis=1)
    return float(drawn[0]), float(drawn[1:].std())
