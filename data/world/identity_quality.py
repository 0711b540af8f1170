"""Measure the identity network: does it know people again, and what does its similarity react to?

People are drawn anew, so nobody was seen in training. A pair of portraits shows one person with different
nuisances, or two people. ``generated=True`` has the generator draw the portraits instead of the renderer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from styleclip.data.world.renderer import FACTORS, INDEX, NUM_FACTORS, render
from styleclip.data.world.train_identity import IDENTITY, portraits_of
from styleclip.data.world.training import Draw, draw
from styleclip_core.models.identity import CompactIdentity, IdentityNetwork
from styleclip_core.models.stylegan2 import Generator

Draws = Callable[[Tensor], Tensor]  # factors [B, K] -> images [B, 3, H, W] in -1..1
SEED = 9101


@dataclass(frozen=True)
class Verification:
    """How well one person's portraits are told from two people's.

    Attributes:
        auc: Probability that a pair of one person is more similar than a pair of two.
        equal_error_rate: Share of errors where both kinds are equally frequent.
        accuracy: Share of right answers at the threshold that is best on other people.
        same: Cosine of pairs of one person, mean and deviation.
        different: Cosine of pairs of two people, mean and deviation.
    """

    auc: float
    equal_error_rate: float
    accuracy: float
    same: tuple[float, float]
    different: tuple[float, float]


def latents_of(factors: Tensor, noise: Tensor) -> Tensor:
    """Return latents ``[B, z_dim]`` of which ``factors_of`` reads these factors, ``[B, K]`` in 0..1.

    Args:
        factors: What to show.
        noise: Normal numbers for the rest of z, ``[B, z_dim - K]``.
    """
    shown = math.sqrt(2) * torch.erfinv((2 * factors - 1).clamp(-0.998, 0.998))
    rest = noise.shape[1] + factors.shape[1] - shown.square().sum(dim=1, keepdim=True)
    return torch.cat(
        [shown, noise * (rest.clamp(min=1e-3) / noise.square().sum(dim=1, keepdim=True)).sqrt()], 1
    )


@torch.no_grad()
def generated_by(generator: Generator, random_source: Draw) -> Draws:
    """Return the generator's way to draw factors."""

    def portray(factors: Tensor) -> Tensor:
        z = latents_of(factors, random_source.normal(len(factors), generator.config.z_dim - NUM_FACTORS))
        return torch.cat(
            [generator.synthesize(generator.styles(generator.map(part))) for part in z.split(32)]
        )

    return portray


@torch.no_grad()
def verify(
    network: IdentityNetwork | CompactIdentity,
    *,
    portray: Draws = render,
    people: int = 1000,
    seed: int = SEED,
) -> Verification:
    """Compare portraits of people, two of each; half of the people set the threshold."""
    source = draw(seed, 0)
    shapes = source.uniform(people, len(IDENTITY))
    first, second = (
        network.embed(portray(portraits_of(shapes, source.uniform(people, NUM_FACTORS)))) for _ in range(2)
    )
    same = (first * second).sum(dim=1)
    different = (first * second.roll(1, 0)).sum(dim=1)
    half = people // 2
    threshold = best_threshold(same[:half], different[:half])
    right = torch.cat([same[half:] >= threshold, different[half:] < threshold])
    return Verification(
        (same[:, None] > different).double().mean().item(),
        equal_error_rate(same, different),
        right.double().mean().item(),
        (same.mean().item(), same.std().item()),
        (different.mean().item(), different.std().item()),
    )


def best_threshold(same: Tensor, different: Tensor) -> Tensor:
    """Return the cosine that gives most right answers: ``same`` at or above it, ``different`` below."""
    candidates = torch.cat([same, different]).sort().values
    right = (same >= candidates[:, None]).sum(dim=1) + (different < candidates[:, None]).sum(dim=1)
    return candidates[right.argmax()]


def equal_error_rate(same: Tensor, different: Tensor) -> float:
    """Return the rate of errors at the cosine where both kinds of pairs have it most nearly in common."""
    candidates = torch.cat([same, different]).sort().values
    missed = (same < candidates[:, None]).double().mean(dim=1)
    passed = (different >= candidates[:, None]).double().mean(dim=1)
    at = int((missed - passed).abs().argmin())
    return ((missed[at] + passed[at]) / 2).item()


@torch.no_grad()
def sensitivity(
    network: IdentityNetwork | CompactIdentity, *, portray: Draws = render, count: int = 300, seed: int = SEED
) -> dict[str, float]:
    """Return the mean cosine of portraits before and after one factor alone is drawn anew, by factor."""
    source = draw(seed, 1)
    factors = source.uniform(count, NUM_FACTORS)
    before = network.embed(portray(factors))
    found = {}
    for name in FACTORS:
        changed = factors.clone()
        changed[:, INDEX[name]] = source.uniform(count)
        found[name] = (network.embed(portray(changed)) * before).sum(dim=1).mean().item()
    return found
