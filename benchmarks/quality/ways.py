"""The ways to edit that are compared, each as edits that a strength drives.

A way offers one edit or several for a prompt, e.g. one per beta. Style directions and linear directions
are multiplied by the strength, mappers' steps too; an optimized code is reached along the straight line
from its source, 1 being the optimum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from benchmarks.quality.sweep import Portraits
from benchmarks.quality.world import QualityWorld
from styleclip.data.world.quality import Prompt
from styleclip_core.editing import (
    ChannelSelection,
    EditedLatents,
    StyleDirection,
    Weights,
    select_channels,
    style_direction,
)
from styleclip_core.errors import NoRelevantChannelError
from styleclip_core.mapper_training import apply_mapper
from styleclip_core.matching import going_further
from styleclip_core.models.mapper import PUBLISHED_STRENGTH
from styleclip_core.relevance import RelevanceTable
from styleclip_core.style_space import StyleCode

BETAS = (0.08, 0.15, 0.25, 0.4)
DEFAULT = (4.1, 0.15)  # alpha and beta of the published notebook


@dataclass(frozen=True, eq=False)
class Candidate:
    """An edit whose strength is free.

    Attributes:
        setting: What tells it from the way's other edits of the prompt, e.g. ``b0.15``; may be empty.
        move: Strength -> edited codes.
        first: Strength to begin a sweep with.
        once: Whether to measure that strength and no other.
    """

    setting: str
    move: Callable[[float], StyleCode]
    first: float
    once: bool = False


Way = Callable[[QualityWorld, Prompt, Portraits], Iterator[Candidate]]


def by_table(table: Callable[[QualityWorld], RelevanceTable], weights: Weights = "relevance") -> Way:
    """Return the way that takes relevance, or rows for least squares, from a table."""

    def direct(world: QualityWorld, prompt: Prompt, beta: float) -> StyleDirection:
        selection = ChannelSelection(beta=beta, weights=weights)
        return style_direction(table(world), world.texts[prompt.name], world.deviations, selection)

    return partial(_at_betas, direct)


def by_gradients(world: QualityWorld, prompt: Prompt, start: Portraits) -> Iterator[Candidate]:
    """Yield edits whose relevance comes from gradients."""

    def direct(world: QualityWorld, prompt: Prompt, beta: float) -> StyleDirection:
        layout, relevance = world.generator.layout, world.instant[prompt.name]
        return select_channels(layout, relevance, world.deviations, ChannelSelection(beta=beta))

    yield from _at_betas(direct, world, prompt, start)


def _at_betas(
    direct: Callable[[QualityWorld, Prompt, float], StyleDirection],
    world: QualityWorld,
    prompt: Prompt,
    start: Portraits,
) -> Iterator[Candidate]:
    """Yield the style direction of every beta that a channel reaches."""
    for beta in BETAS:
        try:
            delta = direct(world, prompt, beta).delta
        except NoRelevantChannelError:
            return
        yield along(f"b{beta:g}", delta, start, first=2.0 if beta > 0.1 else 1.0)


def along(setting: str, delta: Tensor, start: Portraits, *, first: float) -> Candidate:
    """Return the edit that adds a style direction, ``[N]`` or a row for each portrait."""
    return Candidate(setting, lambda alpha: start.codes.add(alpha * delta), first)


def mapped(preset: str) -> Way:
    """Return the way by the prompt's mapper of a preset; strength 1 is the published one."""

    def edits(world: QualityWorld, prompt: Prompt, start: Portraits) -> Iterator[Candidate]:
        mapper, source = world.mapper(prompt, preset), EditedLatents(start.w_plus)

        def move(strength: float) -> StyleCode:
            moved = apply_mapper(mapper, world.generator, source, strength * PUBLISHED_STRENGTH)
            return moved.codes(world.generator)

        yield Candidate("", move, 0.7)

    return edits


def optimized(preset: str) -> Way:
    """Return the way to codes optimized for the prompt by a preset."""

    def edits(world: QualityWorld, prompt: Prompt, start: Portraits) -> Iterator[Candidate]:
        before, layout = start.codes.flat(), world.generator.layout
        step = world.optimized(prompt, start, preset) - before
        yield Candidate("", lambda share: StyleCode.from_flat(layout, before + share * step), 1.0)

    return edits


def automatic(weights: Weights) -> Way:
    """Return the way whose alpha and beta are chosen without the truth, on the validation portraits."""

    def edits(world: QualityWorld, prompt: Prompt, start: Portraits) -> Iterator[Candidate]:
        alpha, beta = world.choice(prompt, weights)
        yield _fixed(world, prompt, start, alpha, ChannelSelection(beta=beta, weights=weights))

    return edits


def matched(world: QualityWorld, prompt: Prompt, start: Portraits) -> Iterator[Candidate]:
    """Yield the ways to where codes that show the prompt have their channels; strength 1 is the whole way."""
    rest = world.beyond(prompt)
    for beta in BETAS:
        try:
            yield _matched(world, prompt, start, rest, 0.7, beta)
        except NoRelevantChannelError:
            return


def automatic_matched(world: QualityWorld, prompt: Prompt, start: Portraits) -> Iterator[Candidate]:
    """Yield the matched way whose alpha and beta are chosen without the truth."""
    alpha, beta = world.choice(prompt, "matched")
    yield _matched(world, prompt, start, world.beyond(prompt), alpha, beta)


def _matched(
    world: QualityWorld, prompt: Prompt, start: Portraits, rest: StyleDirection, alpha: float, beta: float
) -> Candidate:
    way = going_further(world.matched(prompt, ChannelSelection(beta=beta)), rest)
    return Candidate(f"b{beta:g}", lambda each: start.codes.add(way.change(each, start.codes)), alpha)


def default(world: QualityWorld, prompt: Prompt, start: Portraits) -> Iterator[Candidate]:
    """Yield the edit at the published notebook's alpha and beta."""
    alpha, beta = DEFAULT
    yield replace(_fixed(world, prompt, start, alpha, ChannelSelection(beta=beta)), once=True)


def _fixed(
    world: QualityWorld, prompt: Prompt, start: Portraits, alpha: float, selection: ChannelSelection
) -> Candidate:
    found = style_direction(world.exact_table, world.texts[prompt.name], world.deviations, selection)
    return along(f"b{selection.beta:g}", found.delta, start, first=alpha)
