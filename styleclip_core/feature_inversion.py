"""Finds the residuals of photographs' features: conjugate gradients on the layers after them.

With w the latent, F(w) its features at one resolution and T what the layers after them draw, this minimizes
``|T(F(w) + R) - photograph|^2`` over the residual R. T is nearly linear where R is small, so a few steps
do: directions are those of Polak and Ribière's nonlinear conjugate gradients (Nocedal and Wright 2006,
Numerical Optimization, equation 5.44, not below 0), and the length of a step is the best one of T made linear
along its direction (Gauss and Newton's), which a second drawing a little way along it tells. There is no
rate to choose. What few steps leave undone is what the image hardly depends on, so stopping early takes the
place of a penalty.

The C channels of a residual are then projected onto the R directions in which it is largest, those of its
singular vectors. Each image is worked on alone, in chunks of one size, so that a result is the same, bit for
bit, whatever its batch.

Shapes: P images, B of them in a chunk, C channels, H and V height and width of the features, R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from styleclip_core.descent import Chunks
from styleclip_core.features import FeatureResidual, feature_shape, features_at
from styleclip_core.models.stylegan2 import Generator, SynthesisState
from styleclip_core.settings.features import FeatureSettings as FeatureSettings
from styleclip_core.style_space import StyleCode

_PROBE = 0.01  # how far along a step the second drawing is, in root mean squares of the features
_TINY = 1e-20


def find_residuals(
    generator: Generator, target: Tensor, w_plus: Tensor, settings: FeatureSettings
) -> list[FeatureResidual | None]:
    """Return what has to be added to the features of each image, so that it becomes the photograph.

    Args:
        generator: Draws the images; its weights stay as they are.
        target: Images to reproduce, ``[P, 3, H, V]`` in -1..1, of the generator's size.
        w_plus: Their latents, ``[P, L, W]``; left unchanged.
        settings: Resolution, steps and rank.

    Returns:
        A residual for each image, with which it is never further from its photograph than without, but for
        what rank and float16 leave out; None where one is not finite.

    Raises:
        ValueError: If the target does not have the generator's size.
    """
    expected = [len(w_plus), 3, *generator.image_size]
    if list(target.shape) != expected:
        raise ValueError(f"target must be {expected} for these latents, got {list(target.shape)}")
    if not len(target):
        return []

    side = feature_side(generator, settings.resolution)
    rank = min(settings.rank, feature_shape(generator, side)[0])
    found = Chunks(settings.chunk).over(
        len(target), target.device,
        lambda index: _compact(_find(generator, target[index], w_plus[index], side, settings.steps), rank),
    )  # fmt: skip

    # what filled the last chunk up is cut off again; the device is waited for here, once for all images
    channels, places = (torch.cat(parts)[: len(target)].half().cpu() for parts in zip(*found, strict=True))
    return [
        FeatureResidual(generator.fingerprint, side, *(each.clone() for each in pair))
        if all(each.isfinite().all() for each in pair)
        else None
        for pair in zip(channels, places, strict=True)
    ]


def feature_side(generator: Generator, most: int) -> int:
    """Return the largest side of features, in pixels, that is at most ``most`` and below the image's own."""
    below = generator.config.resolutions[:-1]
    return max([side for side in below if side <= most], default=below[0])


@torch.no_grad()
def _find(generator: Generator, target: Tensor, w_plus: Tensor, side: int, steps: int) -> Tensor:
    """Return the best residuals of a chunk, ``[B, C, H, V]``."""
    styles = generator.styles(w_plus)
    state = features_at(generator, styles, side)
    size = _root_mean_square(state.features)

    residual = torch.zeros_like(state.features)
    best, least = residual, torch.full_like(size, torch.inf)
    step = before = residual
    for number in range(steps + 1):
        image, gradient = _drawn(generator, state, styles, residual, target)

        # the function is not quite linear: a step may lead too far, and is then not kept
        loss = (image - target).square().sum(dim=(1, 2, 3), keepdim=True)
        better = loss < least
        best, least = torch.where(better, residual, best), torch.where(better, loss, least)
        if number == steps:
            break

        # the first direction is the steepest, as there is no gradient before it
        share = _dot(gradient, gradient - before) / _dot(before, before).clamp(min=_TINY)
        step = share.clamp(min=0) * step - gradient if number else -gradient
        before = gradient

        near = _PROBE * size / _root_mean_square(step).clamp(min=_TINY)
        along = (_tail(generator, state, styles, residual + near * step) - image) / near
        residual = residual - _dot(gradient, step) / _dot(along, along).clamp(min=_TINY) * step

    # what is no number may never have been better than nothing
    return torch.where(least.isfinite(), best, torch.nan)


def _drawn(
    generator: Generator, state: SynthesisState, styles: StyleCode, residual: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the images ``[B, 3, H, V]``, and half the gradient of their squared error by the residual."""
    with torch.enable_grad():
        moving = residual.detach().requires_grad_(True)
        image = _tail(generator, state, styles, moving)
        (gradient,) = torch.autograd.grad(0.5 * (image - target).square().sum(), moving)
    return image.detach(), gradient


def _tail(generator: Generator, state: SynthesisState, styles: StyleCode, residual: Tensor) -> Tensor:
    features = state.features + residual
    return generator.resume(SynthesisState(state.next_layer, features, state.image), styles)


def _compact(residual: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return residuals ``[B, C, H, V]`` as channels ``[B, C, R]`` and places ``[B, R, H V]``."""
    flat = residual.flatten(2)
    # of the small square matrix; what is not finite has no such directions, and is refused later
    square = (flat @ flat.mT).nan_to_num(0.0, 0.0, 0.0)
    channels = torch.linalg.eigh(square).eigenvectors[:, :, -rank:]
    return channels, channels.mT @ flat


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Return the products of images with each other, ``[B, 1, 1, 1]``."""
    return (one * other).sum(dim=(1, 2, 3), keepdim=True)


def _root_mean_square(features: Tensor) -> Tensor:
    return features.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
