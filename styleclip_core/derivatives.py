"""Unit derivatives of CLIP's embedding by all style channels: what moves are expected to show.

A table needs two images per channel and code. Derivatives by all channels at once need one backward
pass per code and direction of the embedding, however many channels there are, and their unit rows g are
nearly the unit changes d that moves show. So moves need only measure the difference d - g, which varies
little, on some of the codes (a control variate; ``measure_channels(expected=...)``):

    D_c = mean over all codes of g_c + mean over the moved codes of (d_c - g_c).

Embeddings of one generator's images span few dimensions. The directions are their principal ones; what
lies outside is part of the difference, so it is corrected as well.

Shapes: B style codes, N editable style channels, P directions, D width of the CLIP embedding.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from styleclip_core.batches import Batches
from styleclip_core.instant import derivatives
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.relevance import EmbedImages
from styleclip_core.style_space import StyleCode

_SMALL = 1e-12  # a shorter derivative has no direction


@torch.no_grad()
def embedding_basis(
    generator: Generator, embed_images: EmbedImages, codes: StyleCode, count: int, *, batch_size: int = 32
) -> Tensor:
    """Return the principal directions of the embeddings of the codes' images.

    Args:
        generator: Draws the images.
        embed_images: Images ``[b, 3, H, H]`` in -1..1 -> unit embeddings ``[b, D]``.
        codes: B style codes.
        count: Directions wanted.
        batch_size: Images at once, at most: fewer where a GPU's memory is too small.

    Returns:
        Orthonormal rows, ``[P, D]`` float32; P is ``count``, or fewer where codes or D are fewer.
    """
    drawn = Batches(batch_size).run(
        torch.arange(codes.batch_size), lambda part: embed_images(generator.synthesize(codes.select(part)))
    )

    # around their mean: what all images of a generator have in common is no direction of an edit
    embedded = torch.cat([found for _, found in drawn]).double()
    rows: Tensor = torch.linalg.svd(embedded - embedded.mean(dim=0), full_matrices=False)[2][:count]
    return rows.float().cpu()


def unit_derivatives(
    generator: Generator, embed_images: EmbedImages, codes: StyleCode, basis: Tensor, *, batch_size: int = 8
) -> Iterator[Tensor]:
    """Yield the unit derivatives of the embedding in the coordinates of ``basis``, batch by batch.

    Args:
        generator: Draws the images.
        embed_images: Images ``[b, 3, H, H]`` in -1..1 -> unit embeddings ``[b, D]``, with gradients.
        codes: B style codes, left unchanged.
        basis: Orthonormal rows, ``[P, D]``.
        batch_size: Images at once, at most: fewer where a GPU's memory is too small.

    Yields:
        ``[b, N, P]`` float32, unit rows; times ``basis`` they are directions in the embedding.
    """
    for found in derivatives(generator, embed_images, codes, basis, batch_size=batch_size):
        yield F.normalize(found.transpose(1, 2), dim=2, eps=_SMALL).cpu()
