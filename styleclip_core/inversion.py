"""Image -> w_plus: an encoder's guess, then gradient descent on that guess.

The refinement minimizes a pixel loss (mean square, mean absolute and coarse differences, plus a
perceptual term if one is given) over w_plus, starting at the encoder's code. A pull towards that
code keeps the result where edits still work. Every image has its own loss, Adam moments and early stop,
and all are computed in chunks of one size, so that a result is the same, bit for bit, whatever its batch.

Shapes: B images, L rows of w_plus, W w_dim, H side in pixels. Images are in -1..1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from styleclip_core.descent import Chunks, Progress, Status, cosine_fall, evaluate, only
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.settings.inversion import RefinementSettings as RefinementSettings

PerceptualLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Refinement:
    """State after a step.

    Attributes:
        step: Number of steps done.
        w_plus: Best latents so far, ``[B, L, W]``.
        loss: Their losses, ``[B]``; infinite where none was computed, or none was a number.
        active: Images that go on, ``[B]`` bool.
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
        The best latents so far; the first state is the start itself, and the only one at 0 steps.

    Raises:
        ValueError: If the target does not have the generator's size.
    """
    expected = [len(w_start), 3, *generator.image_size]
    if list(target.shape) != expected:
        raise ValueError(f"target must be {expected} for these latents, got {list(target.shape)}")
    start = w_start.detach()
    progress = Progress(start, settings.patience)

    # without a step the start is the result
    if not settings.steps:
        yield _state(0, progress, active=torch.zeros_like(progress.running, dtype=torch.bool))
        return

    def terms(moving: Tensor, images: Tensor) -> Tensor:
        drawn = generator.synthesize(generator.styles(moving))
        loss = reconstruction_loss(drawn, target[images])
        # a latent far from its start draws the photograph, and is edited badly
        loss = loss + settings.latent_weight * (moving - start[images]).square().mean(dim=1).sum(dim=1)
        if perceptual is not None:
            loss = loss + settings.perceptual_weight * perceptual(drawn, target[images])
        return loss[None]

    latents, chunks = start.clone(), Chunks(settings.chunk)
    optimizer = torch.optim.Adam([latents], lr=settings.learning_rate)
    for step in range(settings.steps + 1):
        losses, gradient = evaluate(latents, progress.running, terms, chunks=chunks)
        fine = losses[0].isfinite() & gradient.isfinite().flatten(1).all(dim=1)

        # judged before the step, so that the state is of what was evaluated
        kept = progress.judge(latents, losses[0], fine, last=step == settings.steps)
        yield _state(step, progress, active=progress.status == Status.RUNNING)
        if not len(progress.running):
            return

        optimizer.param_groups[0]["lr"] = settings.learning_rate * _rate(step / settings.steps)
        latents.grad = gradient
        optimizer.step()
        # those that have ended cost nothing any more
        if kept is not None:
            latents, optimizer = only(kept, latents, optimizer)


def _state(step: int, progress: Progress, *, active: Tensor) -> Refinement:
    return Refinement(step, progress.result.clone(), progress.loss.clone(), active)


def _rate(t: float) -> float:
    """Return the learning rate factor: a short ramp up, then a cosine down over the last half."""
    return min(1.0, t / 0.05 + 0.1) * cosine_fall(t, 0.5)
