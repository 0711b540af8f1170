"""Scores of an edit, from the image before and after: unit CLIP embeddings, and pixels.

Shapes: B images, D width of the CLIP embedding, K images at rising strength.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from styleclip_core.images import psnr


def clip_similarity(images: Tensor, text: Tensor) -> Tensor:
    """Return the cosine of unit image embeddings ``[B, D]`` to unit text embeddings, ``[B]``.

    Args:
        images: ``[B, D]``.
        text: One for all images, ``[D]``, or one for each, ``[B, D]``.
    """
    return images @ text if text.ndim == 1 else (images * text).sum(dim=1)


def directional_similarity(before: Tensor, after: Tensor, text_direction: Tensor) -> Tensor:
    """Return cos(E(after) - E(before), text direction), ``[B]`` in -1..1; 0 where nothing changed.

    The directional CLIP score of StyleGAN-NADA (Gal et al. 2022, section 4.1), without its noise.

    Args:
        before: Unit embeddings of the images before the edit, ``[B, D]``.
        after: Unit embeddings after the edit, ``[B, D]``.
        text_direction: Unit vector from the neutral to the target prompt: one for all images, ``[D]``, or one
            for each, ``[B, D]``.
    """
    change = after - before
    cosine = clip_similarity(F.normalize(change, dim=1), text_direction)

    # the direction of a change that is none is rounding, and its cosine any number
    return torch.where(change.norm(dim=1) > 1e-6, cosine, torch.zeros_like(cosine))


def step_agreement(embeddings: Tensor, text_direction: Tensor) -> Tensor:
    """Return cos(E(x_k) - E(x_k-1), text direction) of consecutive images, ``[K - 1]`` in -1..1.

    The alignment metric of StyleCLIP's published code: its mean and the fraction above 0 say whether every
    further bit of strength still leads where the prompt points.

    Args:
        embeddings: Unit embeddings of one image at rising strength, the unedited one among them, ``[K, D]``.
        text_direction: Unit vector from the neutral to the target prompt, ``[D]``.
    """
    return directional_similarity(embeddings[:-1], embeddings[1:], text_direction)


def pixel_scores(image: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """Return how far apart the pixels of two batches are, ``[B]`` each.

    ``psnr`` in dB, infinite where nothing differs; ``ssim`` in -1..1, with Gaussian windows of 1.5 pixels
    (Wang et al. 2004); ``l1``, the mean absolute difference of pixels in 0..1.

    Args:
        image: ``[B, 3, H, W]`` in -1..1; values outside are clamped.
        reference: The images to compare with, of the same shape.

    Raises:
        ValueError: If the shapes differ.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # seconds to import

    if image.shape != reference.shape:
        raise ValueError(f"images are {list(image.shape)} and {list(reference.shape)}; give equal shapes")

    first, second = ((each.float().clamp(-1, 1) + 1) / 2 for each in (image, reference))
    ssim = structural_similarity_index_measure(first, second, data_range=1.0, reduction="none")
    return {
        "psnr": psnr(image, reference),
        "ssim": cast(Tensor, ssim).reshape(len(image)),
        "l1": (first - second).abs().mean(dim=(1, 2, 3)),
    }


def mean_and_error(values: Sequence[float]) -> tuple[float, float, int]:
    """Return mean, standard error of the mean and number of the values that are finite.

    NaN for the mean of no value, and for the error of fewer than two.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return math.nan, math.nan, 0

    error = stdev(finite) / math.sqrt(len(finite)) if len(finite) > 1 else math.nan
    return fmean(finite), error, len(finite)


def area_under_curve(scores: Tensor, holds: Tensor) -> float:
    """Return the area under the receiver operating characteristic, 0..1; ties count half.

    NaN where all items hold, or none does.

    Args:
        scores: Higher where the label should hold, ``[B]``.
        holds: Whether it does, ``[B]`` bool.
    """
    from torchmetrics.functional.classification import binary_auroc  # seconds to import

    if not 0 < int(holds.sum()) < len(holds):
        return math.nan

    # ranks, since torchmetrics squashes scores that are not in 0..1, which can make ties
    order = scores.double().unique(return_inverse=True)[1]
    return float(binary_auroc(order / order.max().clamp(min=1), holds.long()))
