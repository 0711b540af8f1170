"""Instant relevance: channel relevance for one prompt from gradients, without a table.

The table moves every channel and looks; here the derivative says what a small move would do.
With J the mean over the codes of the derivative of CLIP's image embedding by the style code, times the
deviation of each channel, relevance is the cosine of a channel's row with the text direction,
``J_c t / |J_c|``. The numerator costs one backward pass per image. The length of a row is estimated
with random orthogonal directions v in place of t, ``|J_c|^2 = D mean (J_c v)^2``, one more pass each; it
does not depend on the prompt. With as many probes as the embedding is wide it is exact.

What differs from the table: a derivative sees small moves, the table those of several deviations.

Shapes: B style codes, N editable style channels, P directions, D width of the CLIP embedding.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from styleclip_core.batches import Batches
from styleclip_core.errors import LayoutMismatchError
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.relevance import EmbedImages
from styleclip_core.style_space import StyleCode


def derivatives(
    generator: Generator,
    embed_images: EmbedImages,
    codes: StyleCode,
    directions: Tensor,
    *,
    batch_size: int = 8,
) -> Iterator[Tensor]:
    """Yield the derivative of the embedding along some directions by every channel, batch by batch.

    Args:
        generator: Draws the images.
        embed_images: Images ``[b, 3, H, H]`` in -1..1 -> unit embeddings ``[b, D]``, with gradients.
        codes: B style codes, left unchanged.
        directions: Directions in the embedding, ``[P, D]``.
        batch_size: Images at once, at most: fewer where a GPU's memory is too small.

    Yields:
        ``[b, P, N]`` float32, on the codes' device.
    """

    def differentiate(index: Tensor) -> Tensor:
        some = {name: style.detach().clone() for name, style in codes.select(index).items()}
        editable = [some[layer.name].requires_grad_() for layer in generator.layout.editable]

        with torch.enable_grad():
            embedding = embed_images(generator.synthesize(StyleCode(generator.layout, some)))
            along = (embedding @ directions.to(embedding).t()).sum(dim=0)  # [P]

        # one forward pass for all directions, one backward pass each; the last one may free the graph
        rows = []
        for number in range(len(directions)):
            last = number == len(directions) - 1
            with torch.enable_grad():
                one = along[number]
            rows.append(torch.cat(torch.autograd.grad(one, editable, retain_graph=not last), dim=1))

        return torch.stack(rows, dim=1)

    for _, found in Batches(batch_size).run(torch.arange(codes.batch_size), differentiate):
        yield found


def mean_derivative(
    generator: Generator,
    embed_images: EmbedImages,
    codes: StyleCode,
    directions: Tensor,
    *,
    batch_size: int = 8,
) -> Tensor:
    """Return the mean of ``derivatives`` over all codes, ``[P, N]`` float32."""
    found = derivatives(generator, embed_images, codes, directions, batch_size=batch_size)
    total = sum(part.sum(dim=0).cpu().double() for part in found)
    return (torch.as_tensor(total) / codes.batch_size).float()


def instant_relevance(
    generator: Generator,
    embed_images: EmbedImages,
    codes: StyleCode,
    text_direction: Tensor,
    std: Tensor,
    *,
    probes: int = 16,
    seed: int = 0,
    batch_size: int = 8,
) -> Tensor:
    """Return the relevance of every editable channel for a prompt, from gradients.

    Args:
        generator: Draws the images.
        embed_images: Images ``[b, 3, H, H]`` in -1..1 -> unit embeddings ``[b, D]``, with gradients.
        codes: Style codes to average over; a dozen will do.
        text_direction: Unit vector from the neutral to the target prompt, ``[D]``, or several of them,
            ``[P, D]``: the probes are theirs in common, so a further prompt costs one pass per image.
        std: Standard deviation of every editable channel, ``[N]``.
        probes: Random directions that estimate the length of a channel's effect, D at most. With none,
            relevance is the effect itself, divided by the largest: channels that move little in any
            direction then count little.
        seed: Seed of the probes.
        batch_size: Images at once.

    Returns:
        ``[N]`` or ``[P, N]`` float32 in -1..1, each row for ``styleclip_core.editing.select_channels``; 0
        for a channel that does nothing.

    Raises:
        LayoutMismatchError: If ``std`` is not ``[N]``.
        ValueError: If there are no codes, or more probes than dimensions.
    """
    if std.shape != (generator.layout.num_editable,):
        raise LayoutMismatchError(
            f"the generator has {generator.layout.num_editable} editable channels, std is {list(std.shape)}"
        )

    texts = text_direction.detach().cpu().float().reshape(-1, text_direction.shape[-1])
    width = texts.shape[1]
    if not codes.batch_size:
        raise ValueError("there are no style codes to average over; give at least one")
    if not 0 <= probes <= width:
        raise ValueError(f"probes must be from 0 to the embedding's width {width}, got {probes}")

    # orthonormal probes: their squares, scaled by D / P, estimate the length of the whole derivative
    source = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, max(probes, 1), generator=source)).Q[:, :probes]
    directions = torch.cat([texts, basis.t()])

    effect = mean_derivative(generator, embed_images, codes, directions, batch_size=batch_size) * std.cpu()
    along, probed = effect[: len(texts)], effect[len(texts) :]
    size = (
        (probed.square().sum(dim=0) * width / probes).sqrt() if probes else along.abs().amax(1, keepdim=True)
    )

    relevance = torch.where(size > 0, along / size, torch.zeros_like(along)).clamp(-1, 1)
    return relevance.reshape(*text_direction.shape[:-1], -1)
