"""Image -> w_plus: an encoder's guess, then gradient descent on that guess.

The refinement minimizes a pixel loss (mean square, mean absolute and coarse differences, plus a
perceptual term if one is given) over w_plus, starting at the encoder's code. A pull towards that
code keeps the result where edits still work. Every image has its own loss, its own Adam moments
and its own early stop, so its result does not depend on its batch.

Shapes: B images, L rows of w_plus, W w_dim, H side in pixels. Images are in -1..1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from styleclip_core.descent import cosine_fall
from styleclip_core.models.stylegan2 import Generator

PerceptualLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class RefinementSettings:
    """How long and how hard to refine.

    Attributes:
        steps: Gradient steps at most; 0 keeps the encoder's code.
        learning_rate: Adam's rate at its peak.
        latent_weight: Pull towards the starting code, per squared unit of w.
        perceptual_weight: Weight of the perceptual term, if one is given.
        patience: Stop an image after this many steps without an improvement of 0.1 %.
    """

    steps: int = 100
    learning_rate: float = 0.05
    latent_weight: float = 0.0005
    perceptual_weight: float = 0.1
    patience: int = 20

    def __post_init__(self) -> None:
        if self.steps < 0 or self.patience < 1 or not self.learning_rate > 0:
            raise ValueError(
                "steps must not be negative, patience must be at least 1 and learning_rate positive; "
                f"got {self.steps}, {self.patience}, {self.learning_rate}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Refinement:
    """State after a step.

    Attributes:
        step: Number of steps done.
        w_plus: Best latents so far, ``[B, L, W]``.
        loss: Their losses, ``[B]``.
        active: Images that are still improving, ``[B]`` bool.
    """

    step: int
    w_plus: Tensor
    loss: Tensor
    active: Tensor


def reconstruction_loss(image: Tensor, target: Tensor) -> Tensor:
    """Return mean square + half mean absolute + half coarse mean square difference, ``[B]``."""
    difference = image - target
    coarse = F.avg_pool2d(difference, 4)
    dims = (1, 2, 3)
    return (
        difference.square().mean(dims) + 0.5 * difference.abs().mean(dims) + 0.5 * coarse.square().mean(dims)
    )


def refine(
    generator: Generator,
    target: Tensor,
    w_start: Tensor,
    settings: RefinementSettings,
    *,
    perceptual: PerceptualLoss | None = None,
) -> Iterator[Refinement]:
    """Refine latents and yield after every step; the last state holds the result.

    Args:
        generator: Draws the images; its weights stay as they are.
        target: Images to reproduce, ``[B, 3, H, V]`` in -1..1, of the generator's size.
        w_start: Where to start, ``[B, L, W]``; left unchanged.
        settings: Steps, rates and weights.
        perceptual: Two batches of images -> distance per image, ``[B]``, or None.

    Yields:
        The best latents so far; the first state is the start itself.

    Raises:
        ValueError: If the target does not have the generator's size.
    """
    expected = [len(w_start), 3, *generator.image_size]
    if list(target.shape) != expected:
        raise ValueError(f"target must be {expected} for these latents, got {list(target.shape)}")
    w_plus = w_start.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([w_plus], lr=settings.learning_rate)
    best, best_loss = w_start.detach().clone(), torch.full((len(target),), math.inf, device=target.device)
    stale = torch.zeros(len(target), dtype=torch.int64, device=target.device)
    for step in range(settings.steps + 1):
        image = generator.synthesize(generator.styles(w_plus))
        loss = reconstruction_loss(image, target)
        loss = loss + settings.latent_weight * (w_plus - w_start).square().mean(dim=1).sum(dim=1)
        if perceptual is not None:
            loss = loss + settings.perceptual_weight * perceptual(image, target)

        # keep each image's best; a loss that is not a number never is
        value = loss.detach()
        improved = (value < best_loss * 0.999) & (stale < settings.patience)
        stale = torch.where(improved | (stale >= settings.patience), stale * ~improved, stale + 1)
        best = torch.where(improved[:, None, None], w_plus.detach(), best)
        best_loss = torch.where(improved, value, best_loss)
        active = stale < settings.patience
        yield Refinement(step, best, best_loss, active)
        if step == settings.steps or not active.any():
            return

        optimizer.param_groups[0]["lr"] = settings.learning_rate * _rate(step / settings.steps)
        optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()
        optimizer.step()


def _rate(t: float) -> float:
    """Return the learning rate factor: a short ramp up, then a cosine down over the last half."""
    return min(1.0, t / 0.05 + 0.1) * cosine_fall(t, 0.5)
