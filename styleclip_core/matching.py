"""Text prompts -> where images that show them have their style channels, and the way there.

A style direction adds the same to every image. But black hair becomes grey by growing lighter and red hair
by losing its red: what is right for one is wrong for the other, and what is added for the average tints
both. So here a channel is not moved by something but *to* something. Among sampled codes it has a mean m and
a deviation s; among those that CLIP sees the target in, m_t and s_t. Between two normal distributions the
shortest way of all is

    T(x) = m_t + s_t / s (x - m)

(Monge's map; Peyre and Cuturi 2019, Computational Optimal Transport, remark 2.31). The edit is
``x + alpha (T(x) - x)``: channels that decide what is seen are drawn together, the others stay. How much a
channel takes part is how far its two distributions lie apart, by Hellinger's distance, 0 to 1.

A code counts among those that show the target by the fourth power of CLIP's probability, so that codes of
which CLIP is in doubt count little: 1/16 at one half. The power was chosen on prompts and portraits that
judge nothing.

Shapes: n sampled codes, N editable style channels, D width of the CLIP embedding.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from styleclip_core.editing import ChannelSelection, StyleDirection, chosen_channels, layers_of
from styleclip_core.errors import NoEffectError
from styleclip_core.prompts import TextDirection
from styleclip_core.settings.choosing import ChoosingSettings
from styleclip_core.style_space import StyleCode

_FURTHEST = 1.5  # of the way; where a channel loses most of its spread, more turns it round
_POWER = 4
_FEWEST = 10.0  # codes that must show the target, for a mean and a deviation that mean something


def likelihood(embeddings: Tensor, text: TextDirection, scale: float) -> Tensor:
    """Return CLIP's probability of the target against the neutral prompt, as it classifies.

    Args:
        embeddings: Unit image embeddings, ``[n, D]``.
        text: From the neutral to the target prompt.
        scale: What CLIP multiplies cosines by before a softmax, 100 for OpenAI's.

    Returns:
        ``[n]`` in 0..1.
    """
    return torch.sigmoid(scale * text.norm * (embeddings @ text.direction.to(embeddings)))


def matched_direction(codes: StyleCode, seen: Tensor, selection: ChannelSelection) -> StyleDirection:
    """Return the way of every channel from where codes have it to where those that show a target do.

    Args:
        codes: n sampled codes.
        seen: How likely each shows the target, ``[n]`` in 0..1.
        selection: Which channels take part; beta is a threshold on the distance of the two distributions.

    Returns:
        A direction that depends on the image: alpha 1 is the whole way.

    Raises:
        NoEffectError: If hardly any code shows the target.
        NoRelevantChannelError: If no channel reaches beta.
    """
    layout = codes.layout
    styles = codes.editable().double()
    weights = seen.double().to(styles.device) ** _POWER
    # as many codes that count alike would tell as much (Kish's effective size)
    total = weights.sum()
    count = (total.square() / weights.square().sum().clamp(min=1e-30)).item() if total > 0 else 0.0
    if count < _FEWEST:
        raise NoEffectError(
            f"CLIP sees the target in {count:.1f} of {len(styles)} sampled codes, {_FEWEST:g} are "
            "needed; sample more codes, give a target that the generator draws, or take relevance from the "
            "table"
        )

    # both distributions, channel by channel
    share = weights / total
    mean, deviation = styles.mean(dim=0), styles.std(dim=0, correction=0)
    there = share @ styles
    spread = (share @ (styles - there).square()).sqrt()
    moving = deviation > 0
    ratio = torch.where(moving, spread / deviation.clamp(min=1e-30), 1.0)
    shift = torch.where(moving, (there - mean) / deviation.clamp(min=1e-30), 0.0)

    # where both agree, the map is no more than the noise of the samples
    relevance = _distance(shift, ratio).float()
    kept = chosen_channels(layout, relevance, selection)
    delta, pull = (torch.where(kept, each, 0.0).float() for each in (there - mean, 1 - ratio))
    return StyleDirection(
        delta, relevance, int(kept.sum()), layers_of(layout, kept), pull=pull, centre=mean.float()
    )


def at(direction: StyleDirection, codes: StyleCode) -> StyleDirection:
    """Return a direction as it is for some codes, with a row of ``delta`` for each, ``[B, N]``.

    For what adds it to these codes and no others, as choosing alpha and beta does.
    """
    return replace(direction, delta=direction.step(codes), pull=None, centre=None)


def matching_settings(settings: ChoosingSettings) -> ChoosingSettings:
    """Return how strengths are sought where 1 is the whole way: from there on, and not far beyond."""
    return replace(settings, first=1.0, strongest=_FURTHEST)


def _distance(shift: Tensor, ratio: Tensor) -> Tensor:
    """Return Hellinger's distance of N(0, 1) and N(shift, ratio^2), ``[N]`` in 0..1."""
    both = 1 + ratio.square()
    overlap = (2 * ratio / both).sqrt() * torch.exp(-shift.square() / (4 * both))
    return (1 - overlap).clamp(min=0).sqrt()
