"""What a prompt concerns in style space: which channels, where it brings them, how far each may be moved.

Descent that may move every channel finds what pleases CLIP and no person. So it is given the channels in
which codes that show the target differ from the others (``styleclip_core.matching``), begins where these
have them, and counts moves in deviations of a channel, by how much the prompt concerns it.

A channel that serves much else is hardly drawn together, and then the way ends before the target is seen: the
colour of eyes is such a case in the embedded world. So where codes that lack the target still lack it at the
end, images go on along derivatives of CLIP's embedding (``styleclip_core.instant``), all by the same step.
They begin with that where hardly any sampled code shows the target, or those that do differ in no channel.

Shapes: n sampled codes, B codes, N editable style channels, D width of the CLIP embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from styleclip_core.batches import Batches
from styleclip_core.editing import ChannelSelection, StyleDirection
from styleclip_core.errors import NoEffectError, NoRelevantChannelError
from styleclip_core.matching import derivative_direction, likelihood, matched_direction
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.prompts import TextDirection
from styleclip_core.relevance import EmbedImages
from styleclip_core.settings.editing import END_OF_WAY
from styleclip_core.style_space import StyleCode

BETA = 0.08  # on Hellinger's distance; chosen on prompts and portraits that judge nothing
SHARES = (0.25, 0.5, 0.75, 1.0, 1.25, END_OF_WAY)  # of the way, at which effects are looked at
FURTHER = (1.75, 2.0, 2.25, 2.5)  # the same, where there is a further way
_LEAST = 0.5  # of the way, also where CLIP sees the target already: one look at one image is no proof
_SEEN = 0.5  # mean probability of the target at the end of a way that is long enough
_LACKING = 16  # codes without the target, at most, by which that is told


@dataclass(frozen=True, slots=True, eq=False)
class RelevantChannels:
    """Where a prompt brings its channels, and how far each may move; 0 for those that must stay.

    Attributes:
        delta: Change at the centre, the whole way, ``[N]``.
        pull: Share of its distance from the centre that a channel loses, ``[N]``.
        centre: ``[N]``.
        further: Change from the end of that way on, which lies at 1.5 of it, ``[N]``; 0 where it is enough.
        width: Deviation of a channel times the root of its relevance, ``[N]``: what a move of 1 is.
    """

    delta: Tensor
    pull: Tensor
    centre: Tensor
    further: Tensor
    width: Tensor

    @property
    def goes_further(self) -> bool:
        """Return whether derivatives say where images go that the way does not bring to the target."""
        return bool(self.further.any())

    @property
    def shares(self) -> tuple[float, ...]:
        """Return the shares of the way at which effects are looked at; beyond 1.5 it is the further way."""
        return SHARES + FURTHER if self.goes_further else SHARES

    def begin(self, styles: Tensor, share: Tensor | float) -> Tensor:
        """Return a share of the way of editable channels ``[B, N]``, in widths; 0 for channels that stay.

        Args:
            styles: Where they are, ``[B, N]``.
            share: One for all, or ``[B, 1]``.
        """
        first, rest = parts_of(torch.as_tensor(share, dtype=styles.dtype, device=styles.device))
        step = first * (self.delta - self.pull * (styles - self.centre)) + rest * self.further
        return torch.where(self.width > 0, step / self.width.clamp(min=1e-12), 0.0)

    def to(self, like: Tensor) -> RelevantChannels:
        """Return them on the device, and in the number format, of some tensor."""
        return replace(self, **{each.name: getattr(self, each.name).to(like) for each in fields(self)})


def parts_of(share: Tensor) -> tuple[Tensor, Tensor]:
    """Return which parts of a share are of the way itself, and of the further one."""
    return share.clamp(max=END_OF_WAY), (share - END_OF_WAY).clamp(min=0)


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
        generator: Draws images.
        embed_images: Images ``[b, 3, H, H]`` in -1..1 -> unit embeddings ``[b, D]``, with gradients.
        codes: n sampled codes; the first 16 of them for derivatives.
        embeddings: Unit CLIP embeddings of what they draw, ``[n, D]``.
        text: From the neutral to the target prompt.
        scale: What CLIP multiplies cosines by before a softmax, 100 for OpenAI's.

    Raises:
        NoRelevantChannelError: If no channel has anything to do with the prompt.
    """
    seen = likelihood(embeddings, text, scale)
    deviations = codes.editable().double().std(dim=0, correction=0).float()
    still = torch.zeros_like(deviations)
    try:
        matched = matched_direction(codes, seen, ChannelSelection(beta=BETA))
    except (NoEffectError, NoRelevantChannelError):
        bare = RelevantChannels(still, still, still, still, still)
        return _further(generator, embed_images, codes, text, deviations, bare)

    pull, centre = matched.pull, matched.centre
    if pull is None or centre is None:
        raise AssertionError("a matched direction depends on the image")
    found = RelevantChannels(matched.delta, pull, centre, still, _width(matched, deviations))

    # tried on codes that need it
    few = codes.select((seen < 0.5).nonzero()[:_LACKING, 0]).to(generator.device)
    if not few.batch_size:
        return found
    here = found.to(few.editable())
    moved = few.add(here.width * here.begin(few.editable(), END_OF_WAY))
    there = likelihood(look_at(generator, embed_images, moved), text, scale).mean().item()
    if there >= _SEEN:
        return found
    return _further(generator, embed_images, codes, text, deviations, found)


def _further(
    generator: Generator,
    embed_images: EmbedImages,
    codes: StyleCode,
    text: TextDirection,
    deviations: Tensor,
    found: RelevantChannels,
) -> RelevantChannels:
    """Return channels with the further way that derivatives say."""
    direction = derivative_direction(generator, embed_images, codes, text, ChannelSelection(beta=0.0))
    width = torch.maximum(found.width, _width(direction, deviations))
    return replace(found, further=direction.delta, width=width)


def _width(found: StyleDirection, deviations: Tensor) -> Tensor:
    return torch.where(found.delta != 0, deviations * found.relevance.abs().sqrt(), 0.0)


def logit(effect: float) -> float:
    """Return the logit of a probability, which is what CLIP's cosines are proportional to."""
    return math.log(effect / (1 - effect))


def shares_of_the_way(
    before: Tensor, after: Callable[[float], Tensor], wanted: float, shares: Sequence[float] = SHARES
) -> Tensor:
    """Return how much of its way each image goes until it shows the target, half of it at least, ``[B]``.

    Args:
        before: Logits of CLIP's probability of the target before any edit, ``[B]``.
        after: Share of the way -> logits there, ``[B]``.
        wanted: Logit that is wanted; where it is never reached, the image goes to the end.
        shares: Shares that are looked at, rising.
    """
    last, found = before, torch.full_like(before, shares[-1])
    reached, low = before >= wanted, 0.0
    found = torch.where(reached, 0.0, found)
    for share in shares:
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
