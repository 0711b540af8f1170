"""Scores of an edit, from unit CLIP embeddings of the image before and after.

Shapes: B images, D width of the CLIP embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def clip_similarity(images: Tensor, text: Tensor) -> Tensor:
    """Return the cosine of unit image embeddings ``[B, D]`` to a unit text embedding ``[D]``, ``[B]``."""
    return images @ text


def directional_similarity(before: Tensor, after: Tensor, text_direction: Tensor) -> Tensor:
    """Return cos(E(after) - E(before), text direction), ``[B]`` in -1..1; 0 where nothing changed.

    The directional CLIP score of StyleGAN-NADA (Gal et al. 2022, section 4.1), without its noise.

    Args:
        before: Unit embeddings of the images before the edit, ``[B, D]``.
        after: Unit embeddings after the edit, ``[B, D]``.
        text_direction: Unit vector from the neutral to the target prompt, ``[D]``.
    """
    change = after - before
    cosine = F.normalize(change, dim=1) @ text_direction
    return torch.where(change.norm(dim=1) > 1e-6, cosine, torch.zeros_like(cosine))
