"""What prompts and style channels will do, before anything is edited.

Shapes: N editable style channels, K prompts or edits, B images, D width of the CLIP embedding, H V pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from styleclip_core.decisions import ranked
from styleclip_core.editing import ChannelSelection, editable_mask, select_channels
from styleclip_core.errors import LayoutMismatchError
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.relevance import RelevanceTable
from styleclip_core.style_space import StyleCode, StyleLayout

COINCIDE = 0.9
"""Cosine from which two prompts of a batch nearly coincide. A style direction is known only to within the
codes behind its table: two halves of one table gave directions of the same prompts at cosine 0.908 at worst
(the embedded world, 50 prompts), so two directions above 0.9 are no further apart than one is from itself.
Synonyms lie at 0.998 and above there, different attributes at 0.61 and below."""


CARRIED = 0.13
"""Length below which a text direction counts as carried by no channel, see ``carried_share``. In the
embedded world the 40 attributes that its generator draws have 0.41 and more, and all reach their target;
words that its CLIP was never taught, such as "astronaut" or "old person", have 0.05 and less
(``python -m benchmarks.quality.carried``). This lies in the middle of the two, as a ratio. The AUC on prompts
held out is 1.00, as is that of the prompts' distance alone, which that CLIP makes small of such words. What
CLIP knows and the generator does not draw, as "face with green skin", is as long as the others, and no figure
of the table tells those (an AUC of 0.82 at best). Other CLIPs hold prompts less far apart; nobody has
measured it with one of these."""


@dataclass(frozen=True, slots=True)
class Channel:
    """A style channel and what it has to do with a prompt.

    Attributes:
        layer: Its layer.
        channel: Its number within the layer.
        index: Its place among the editable channels.
        relevance: Cosine of its CLIP direction and the text direction, -1..1.
    """

    layer: str
    channel: int
    index: int
    relevance: float

    @property
    def name(self) -> str:
        """Return its name, e.g. ``b16.conv1.42``."""
        return f"{self.layer}.{self.channel}"


def channel_counts(
    layout: StyleLayout,
    relevance: Tensor,
    betas: Sequence[float],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> list[int]:
    """Return how many channels take part at each beta, of those that the layer masks allow.

    Args:
        layout: Names the channels.
        relevance: Of every editable channel, ``[N]``.
        betas: Thresholds on |relevance|, 0..1.
        include: Patterns of layers that may be edited; empty for all.
        exclude: Patterns of layers that stay.

    Raises:
        LayoutMismatchError: If a pattern matches no layer.
    """
    allowed = editable_mask(layout, include, exclude)
    size = relevance.abs()[allowed]
    return [int(((size >= beta) & (size > 0)).sum()) for beta in betas]


def carried_share(table: RelevanceTable, text_direction: Tensor, selection: ChannelSelection) -> float:
    """Return how nearly an edit's channels together lead where its words do, a cosine, 0..1.

    Each channel that takes part moves CLIP's embedding along its mean direction, as far as the channel is
    relevant; this is the cosine between the sum of these and the text direction. Times the distance of the
    two prompts it is the length of what is carried: 0 where CLIP knows no such word, or no channel serves it.

    Args:
        table: CLIP direction of every editable style channel.
        text_direction: Unit vector from the neutral to the target prompt, ``[D]``.
        selection: Which channels take part.

    Raises:
        NoRelevantChannelError: If none does.
        LayoutMismatchError: If a layer pattern matches nothing.
    """
    relevance = table.relevance(text_direction)
    same = torch.ones_like(relevance)  # whoever takes part does so at any deviation
    chosen = select_channels(table.layout, relevance, same, selection).delta != 0

    led = relevance[chosen] @ table.direction[chosen]
    return F.cosine_similarity(led, text_direction.to(led), dim=0).clamp(min=0).item()


def strongest_channels(layout: StyleLayout, relevance: Tensor, count: int) -> list[Channel]:
    """Return the channels of largest |relevance|, ``[N]``, the strongest first; none without relevance."""
    most = ranked(relevance.abs())[:count].tolist()
    found = [Channel(*layout.channel_of(place), place, relevance[place].item()) for place in most]
    return [each for each in found if each.relevance != 0]


def find_channel(layout: StyleLayout, name: str) -> Channel:
    """Return the channel called e.g. ``b16.conv1.42``; its relevance is 0.

    Raises:
        LayoutMismatchError: If there is no such channel; the message has the layers and their widths.
    """
    layer, _, number = name.rpartition(".")
    slices = layout.editable_slices
    # int() alone would take "-1" and "1_0" too
    if layer in slices and number.isdecimal():
        place = slices[layer].start + int(number)
        if place < slices[layer].stop:
            return Channel(layer, int(number), place, 0.0)

    widths = ", ".join(f"{each} ({part.stop - part.start})" for each, part in slices.items())
    raise LayoutMismatchError(
        f"no editable style channel is called {name!r}; give layer and number, as b4.conv1.0; there are "
        f"{widths}"
    )


def cosine_matrix(vectors: Tensor) -> Tensor:
    """Return the cosine of every pair of rows ``[K, M]``, ``[K, K]``; 0 with a row of zeros."""
    unit = F.normalize(vectors.double(), dim=1)
    return (unit @ unit.T).clamp(-1, 1).float()


def step_similarity(steps: Sequence[Tensor]) -> Tensor:
    """Return how alike the steps are that edits make, ``[K, K]``.

    Off the diagonal, the mean over images of the cosine between two edits' steps of the same image. On it,
    the mean cosine between one edit's steps of different images, NaN for one image: near 1, the edit is
    nearly one direction for all images (the paper's comparison of manipulation directions, section 5).

    Args:
        steps: For every edit its steps in style space, ``[B, M]``, of the same images in the same order.
    """
    # in float64: a mean of many cosines near 1 is compared with a threshold near 1
    unit = torch.stack([F.normalize(each.double(), dim=1) for each in steps])  # [K, B, M]

    found = torch.einsum("abm,cbm->ac", unit, unit) / unit.shape[1]
    count = unit.shape[1]

    # pairs of different images only: with itself an image agrees, which says nothing of the edit
    own = unit.square().sum(dim=2).sum(dim=1)  # 1 for every image that moved at all
    between = (unit.sum(dim=1).square().sum(dim=1) - own) / max(count * (count - 1), 1)

    diagonal = between if count > 1 else torch.full_like(between, torch.nan)
    return (found - found.diag().diag() + diagonal.diag()).float()


@torch.no_grad()
def channel_images(
    generator: Generator, codes: StyleCode, channel: Channel, std: float, sigmas: Sequence[float]
) -> Tensor:
    """Draw codes with one channel moved, ``[B, len(sigmas), 3, H, V]``.

    Args:
        generator: Draws them.
        codes: B style codes.
        channel: The channel.
        std: Its standard deviation.
        sigmas: Moves in standard deviations, e.g. ``(-5, 0, 5)``.
    """
    drawn = []
    for sigma in sigmas:
        style = codes[channel.layer].clone()
        style[:, channel.channel] += sigma * std
        drawn.append(generator.synthesize(codes.replace(channel.layer, style)))

    return torch.stack(drawn, dim=1)


def nearest_prompts(direction: Tensor, text_directions: Tensor) -> Tensor:
    """Return the cosine of a channel's CLIP direction ``[D]`` to text directions ``[K, D]``, ``[K]``.

    0 where the channel is invisible to CLIP.
    """
    return F.normalize(text_directions, dim=1) @ F.normalize(direction, dim=0)
