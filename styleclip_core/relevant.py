"""What a prompt concerns in style space: which channels, where it brings them, how far each may be moved.

Descent that may move every channel finds what pleases CLIP and no person. So it is given the channels in
which codes that show the target differ from the others (``styleclip_core.matching``), begins where these
have them, and counts moves in deviations of a channel, by how much the prompt concerns it.

Where hardly any sampled code shows the target, or those that do differ in no channel, there is nothing to
compare. Then derivatives of CLIP's
embedding say which channels matter (``styleclip_core.instant``), and all images begin with the same step.

Shapes: n sampled codes, B codes, N editable style channels, D width of the CLIP embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from styleclip_core.batches import Batches
from styleclip_core.editing import ChannelSelection, StyleDirection, select_channels
from styleclip_core.errors import NoEffectError, NoRelevantChannelError
from styleclip_core.instant import instant_relevance
from styleclip_core.matching import likelihood, matched_direction
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.prompts import TextDirection
from styleclip_core.relevance import EmbedImages
from styleclip_core.style_space import StyleCode

BETA = 0.08  # on Hellinger's distance; chosen on prompts and portraits that judge nothing
_GRADIENT_BETA, _GRADIENT_ALPHA = 0.15, 3.0  # threshold and whole way of derivatives, as edits have them
_GRADIENT_CODES, _GRADIENT_PROBES = 16, 16
SHARES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # of the way, at which effects are looked at
_LEAST = 0.5  # of the way, also where CLIP sees the target already: one look at one image is no proof


@dataclass(frozen=True, slots=True, eq=False)
class RelevantChannels:
    """Where a prompt brings its channels, and how far each may move; 0 for those that must stay.

    Attributes:
        delta: Change at the centre, the whole way, ``[N]``.
        pull: Share of its distance from the centre that a channel loses, ``[N]``.
        centre: ``[N]``.
        width: Deviation of a channel times the root of its relevance, ``[N]``: what a move of 1 is.
    """

    delta: Tensor
    pull: Tensor
    centre: Tensor
    width: Tensor

    @property
    def compared(self) -> bool:
        """Return whether codes that show the target were compared with others; else derivatives said it."""
        return bool(self.pull.any())

    def start(self, styles: Tensor) -> Tensor:
        """Return the whole way of editable channels ``[B, N]`` in widths; 0 for channels that stay."""
        step = self.delta - self.pull * (styles - self.centre)
        return torch.where(self.width > 0, step / self.width.clamp(min=1e-12), 0.0)

    def to(self, like: Tensor) -> RelevantChannels:
        """Return them on the device, and in the number format, of some tensor."""
        return replace(self, **{each.name: getattr(self, each.name).to(like) for each in fields(self)})


def relevant_channels(
    generator: Generator,
    embed_images: EmbedImages,
    codes: StyleCode,
    embeddings: Tensor,
    text: TextDirection,
    scale: float,
) -> RelevantChannels:
    """Return the channels that a prompt concerns.

    Args:
        generator: Draws images, where derivatives are needed.
        embed_images: Images ``[b, 3, H, H]`` in -1..1 -> unit embeddings ``[b, D]``, with gradients.
        codes: n sampled codes; the first 16 of them for derivatives.
        embeddings: Unit CLIP embeddings of what they draw, ``[n, D]``.
        text: From the neutral to the target prompt.
        scale: What CLIP multiplies cosines by before a softmax, 100 for OpenAI's.

    Raises:
        NoRelevantChannelError: If no channel has anything to do with the prompt.
    """
    seen, layout = likelihood(embeddings, text, scale), codes.layout
    deviations = codes.editable().double().std(dim=0, correction=0).float()
    try:
        found = matched_direction(codes, seen, ChannelSelection(beta=BETA))
        return _channels(found, deviations, codes.editable().mean(dim=0))
    except (NoEffectError, NoRelevantChannelError):
        few = codes.select(slice(_GRADIENT_CODES)).to(generator.device)

    # the same step for all, as edits with instant relevance have it
    probes = min(_GRADIENT_PROBES, embeddings.shape[1])
    relevance = instant_relevance(generator, embed_images, few, text.direction, deviations, probes=probes).to(
        deviations
    )
    beta = min(_GRADIENT_BETA, relevance.abs().max().item() / 2)
    found = select_channels(layout, relevance, deviations, ChannelSelection(beta=beta))
    whole = replace(found, delta=_GRADIENT_ALPHA * found.delta)
    return _channels(whole, deviations, codes.editable().mean(dim=0))


def _channels(found: StyleDirection, deviations: Tensor, mean: Tensor) -> RelevantChannels:
    pull = torch.zeros_like(found.delta) if found.pull is None else found.pull
    width = torch.where(found.delta != 0, deviations * found.relevance.abs().sqrt(), 0.0)
    return RelevantChannels(found.delta, pull, mean if found.centre is None else found.centre, width)


def logit(effect: float) -> float:
    """Return the logit of a probability, which is what CLIP's cosines are proportional to."""
    return math.log(effect / (1 - effect))


def shares_of_the_way(before: Tensor, after: Callable[[float], Tensor], wanted: float) -> Tensor:
    """Return how much of its way each image goes until it shows the target, half of it at least, ``[B]``.

    Args:
        before: Logits of CLIP's probability of the target before any edit, ``[B]``.
        after: Share of the way -> logits there, ``[B]``.
        wanted: Logit that is wanted; where it is never reached, the image goes 1.5 times the way.
    """
    last, found = before, torch.full_like(before, SHARES[-1])
    reached, low = before >= wanted, 0.0
    found = torch.where(reached, 0.0, found)
    for share in SHARES:
        here = after(share)
        # straight between two looks, where the one before was too low
        part = (wanted - last) / (here - last).clamp(min=1e-6)
        now = (here >= wanted) & ~reached
        found = torch.where(now, low + part.clamp(0, 1) * (share - low), found)
        reached, last, low = reached | now, here, share
    return found.clamp(min=_LEAST)


def look_at(
    generator: Generator, embed_images: EmbedImages, codes: StyleCode, *, batch_size: int = 32
) -> Tensor:
    """Return CLIP's unit embeddings of what some codes draw, ``[n, D]`` float32 on the CPU."""

    @torch.no_grad()
    def embed(index: Tensor) -> Tensor:
        return embed_images(generator.synthesize(codes.select(index))).float().cpu()

    found = Batches(batch_size).run(torch.arange(codes.batch_size), embed)
    return torch.cat([each for _, each in found])
