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

Small parts, such as eyes and lips, lie in channels that serve much else: these are hardly drawn together, and
the way ends before the target is seen. From there on, derivatives of CLIP's embedding say where to go
(``styleclip_core.instant``), the same for all images.

A code counts among those that show the target by the fourth power of CLIP's probability, so that codes of
which CLIP is in doubt count little: 1/16 at one half. The power was chosen on prompts and portraits that
judge nothing.

Shapes: n sampled codes, B codes, N editable style channels, D width of the CLIP embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from styleclip_core.choosing import Choice, Direct, Measure, choose
from styleclip_core.editing import (
    ChannelSelection,
    StyleDirection,
    chosen_channels,
    editable_mask,
    layers_of,
    select_channels,
)
from styleclip_core.errors import NoEffectError, NoRelevantChannelError
from styleclip_core.instant import instant_relevance
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.prompts import TextDirection
from styleclip_core.relevance import EmbedImages
from styleclip_core.settings.choosing import ChoosingSettings
from styleclip_core.settings.editing import END_OF_WAY, FURTHEST
from styleclip_core.style_space import StyleCode, StyleLayout

_POWER = 4
_GAIN = 0.05  # of effect, for which it is worth going further
_FEWEST = 10.0  # codes that must show the target, for a mean and a deviation that mean something
# of the further way: threshold, what 1 of it is, codes and probes
_GRADIENT_BETA, _GRADIENT_ALPHA, _GRADIENT_CODES, _GRADIENT_PROBES = 0.15, 3.0, 16, 16


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


def derivative_direction(
    generator: Generator,
    embed_images: EmbedImages,
    codes: StyleCode,
    text: TextDirection,
    allowed: ChannelSelection,
) -> StyleDirection:
    """Return the further way: where derivatives of CLIP's embedding lead, alpha 1 being 3 deviations.

    Args:
        generator: Draws images.
        embed_images: Images ``[b, 3, H, H]`` in -1..1 -> unit embeddings ``[b, D]``, with gradients.
        codes: n sampled codes, for the channels' deviations; derivatives are taken at the first 16.
        text: From the neutral to the target prompt.
        allowed: Layers that may change.

    Raises:
        NoRelevantChannelError: If no channel that may change has anything to do with the target.
    """
    deviations = codes.editable().double().std(dim=0, correction=0).float()
    few = codes.select(slice(_GRADIENT_CODES)).to(generator.device)
    probes = min(_GRADIENT_PROBES, len(text.direction))
    found = instant_relevance(generator, embed_images, few, text.direction, deviations, probes=probes)
    relevance = found.to(deviations)

    # a small part moves CLIP little, and has channels of less relevance than others have
    mask = editable_mask(codes.layout, allowed.include, allowed.exclude).to(relevance.device)
    beta = min(_GRADIENT_BETA, relevance[mask].abs().max().item() / 2)
    selection = ChannelSelection(beta=beta, include=allowed.include, exclude=allowed.exclude)
    direction = select_channels(codes.layout, relevance, deviations, selection)
    return replace(direction, delta=_GRADIENT_ALPHA * direction.delta)


def going_further(matched: StyleDirection, beyond: StyleDirection) -> StyleDirection:
    """Return a matched direction that goes on by another from ``END_OF_WAY``."""
    moving = (matched.delta != 0) | (beyond.delta != 0)
    layers = tuple(dict.fromkeys([*matched.layers, *beyond.layers]))
    return replace(matched, channels=int(moving.sum()), layers=layers, further=beyond.delta)


def at(direction: StyleDirection, codes: StyleCode) -> StyleDirection:
    """Return a direction as it is for some codes, with a row of ``delta`` for each, ``[B, N]``.

    For what adds it to these codes and no others, as choosing alpha and beta does.
    """
    return replace(direction, delta=direction.step(codes), pull=None, centre=None)


def matching_settings(settings: ChoosingSettings, *, further: bool = False) -> ChoosingSettings:
    """Return how strengths are sought: where all of the way is 1 from there on, or on the further way."""
    first, strongest = (END_OF_WAY + 0.25, FURTHEST) if further else (1.0, END_OF_WAY)
    return replace(settings, first=first, strongest=strongest)


def choose_matched(
    measure: Measure,
    relevance: Tensor,
    direct: Direct,
    beyond: Callable[[], StyleDirection],
    settings: ChoosingSettings,
    *,
    layout: StyleLayout,
    allowed: ChannelSelection,
    alpha: float | None = None,
    fixed: bool = False,
) -> Choice:
    """Choose alpha, beta or both of a matched direction, on its further way where the way ends too soon.

    Args:
        measure: What a step does; see ``choosing.measure_on``.
        relevance: Relevance of every channel, ``[N]``.
        direct: Returns the matched direction of a selection of channels, as ``at`` makes it.
        beyond: Returns the further way; called where it is needed.
        settings: What is wanted.
        layout: Style channels of the generator.
        allowed: Layers that may change, and, if ``fixed``, the beta or top_k to keep.
        alpha: Strength to keep; None to choose it.
        fixed: Whether ``allowed`` decides the channels.

    Raises:
        NoEffectError: If every image shows the target before any edit, or the way brings none nearer to it.
        NoRelevantChannelError: If there is no relevant channel, or none at the fixed beta.
    """

    def on_from(rest: StyleDirection) -> Direct:
        return lambda selection: going_further(direct(selection), rest)

    seek = partial(choose, measure, layout, relevance)
    if alpha is not None:
        way = on_from(beyond()) if alpha > END_OF_WAY else direct
        return seek(way, matching_settings(settings), allowed=allowed, alpha=alpha, fixed=fixed)

    choice = seek(direct, matching_settings(settings), allowed=allowed, fixed=fixed)
    if choice.reached:
        return choice
    try:
        way = on_from(beyond())
    except NoRelevantChannelError:
        return choice

    # channels stay those of the way: they got nearest to the effect by the least movement
    settings = matching_settings(settings, further=True)
    further = seek(way, settings, allowed=choice.selection, fixed=True)
    if further.trials[-1].effect < choice.trials[-1].effect + _GAIN:
        return choice
    return replace(further, trials=choice.trials + further.trials)


def _distance(shift: Tensor, ratio: Tensor) -> Tensor:
    """Return Hellinger's distance of N(0, 1) and N(shift, ratio^2), ``[N]`` in 0..1."""
    both = 1 + ratio.square()
    overlap = (2 * ratio / both).sqrt() * torch.exp(-shift.square() / (4 * both))
    return (1 - overlap).clamp(min=0).sqrt()
