"""Alpha and beta of a style direction, chosen on a few images by what CLIP sees.

*Effect* is the zero-shot probability of the target prompt against the neutral one, as CLIP classifies
(Radford et al. 2021, section 3.1.1), a mean over the images: where images show the target by nature, that
of the embedded world's CLIP is 0.7 to 0.8. *Movement* is what an edit changes beside the target: the
length of the change of CLIP's image embedding at right angles to the text direction. Where it is known what
should stay, movement is the geometric mean of that and of how far those prompts' scores move. The choice
is the pair that reaches the wanted effect at the least movement.

For every threshold the strength is sought at which the effect is reached, beginning where the threshold
before ended. Thresholds come by the number of channels that reach them, geometrically, then two more
around the best. Nothing is drawn at random. Strengths are rounded, and movements compared as in
``decisions``; where an effect lies within rounding of the wanted one, processors may choose otherwise.

Shapes: B images, N editable style channels, D width of the CLIP embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from styleclip_core.batches import Batches
from styleclip_core.decisions import least
from styleclip_core.editing import (
    ChannelSelection,
    StyleDirection,
    beta_for,
    editable_mask,
)
from styleclip_core.errors import NoEffectError
from styleclip_core.prompts import TextDirection
from styleclip_core.relevance import EmbedImages
from styleclip_core.settings.choosing import ChoosingSettings as ChoosingSettings
from styleclip_core.style_space import StyleCode, StyleLayout
from styleclip_core.tuned import AnyGenerator

Stage = Literal["coarse", "fine", "chosen"]
_FEWEST, _LARGEST_SHARE = 4, 4  # channels of the highest threshold; the lowest edits a fourth of them all
_CLOSE = 0.12  # effects of two strengths between which the line is straight enough
_GROWTH = (1.25, 2.5)  # by how much a strength that was too weak is raised
_VISIBLE = 1e-6  # a rise of the effect below this is none
_NEARLY = 0.9  # of the way to the most that can be reached, where the wanted effect cannot


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What a step in style space did to every image.

    Attributes:
        effect: Probability of the target after it, ``[B]``.
        movement: Change beside the target, ``[B]``.
    """

    effect: Tensor
    movement: Tensor


Measure = Callable[[Tensor], Measured]  # step of the editable channels, [N]
Direct = Callable[[ChannelSelection], StyleDirection]


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """A pair that was tried.

    Attributes:
        alpha: Strength.
        selection: Beta or top_k, and the layers.
        channels: Channels that took part.
        measured: What it did to the images that count.
        stage: When it was tried.
    """

    alpha: float
    selection: ChannelSelection
    channels: int
    measured: Measured
    stage: Stage

    @property
    def effect(self) -> float:
        """Return the mean effect."""
        return self.measured.effect.mean().item()

    @property
    def movement(self) -> float:
        """Return the mean movement."""
        return self.measured.movement.mean().item()


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The chosen pair and everything that was tried.

    Attributes:
        alpha: Strength.
        selection: Beta or top_k, and the layers.
        before: Effect before any edit.
        reached: Whether the wanted effect was.
        reason: Why this pair, in a sentence or two.
        trials: All pairs tried, in order; the last is the choice.
    """

    alpha: float
    selection: ChannelSelection
    before: float
    reached: bool
    reason: str
    trials: tuple[Trial, ...]


def measure_on(
    generator: AnyGenerator,
    embed_images: EmbedImages,
    codes: StyleCode,
    text: TextDirection,
    scale: float,
    *,
    keep: Tensor | None = None,
    batch_size: int = 32,
) -> Measure:
    """Return what measures a step in style space on some images.

    Args:
        generator: Draws the images, image b with tuning b if it is a ``TunedGenerator``.
        embed_images: Images ``[b, 3, H, H]`` in -1..1 -> unit embeddings ``[b, D]``.
        codes: B style codes to edit.
        text: From the neutral to the target prompt.
        scale: What CLIP multiplies cosines by before a softmax, 100 for OpenAI's.
        keep: Unit text directions of what should stay, ``[Q, D]``; None where nothing is known.
        batch_size: Images at once, at most.
    """
    direction = text.direction.cpu().float()

    @torch.no_grad()
    def embed(step: Tensor) -> Tensor:
        moved = codes.add(step.to(generator.device))

        def work(index: Tensor) -> Tensor:
            return embed_images(generator.take(index).synthesize(moved.select(index))).float().cpu()

        index = torch.arange(codes.batch_size)
        return torch.cat([found for _, found in Batches(batch_size).run(index, work)])

    # the unedited images, once for every trial
    before = embed(torch.zeros(generator.layout.num_editable))

    def measure(step: Tensor) -> Measured:
        after = embed(step)
        along = after @ direction
        change = after - before
        beside = change - (change @ direction)[:, None] * direction
        movement = beside.norm(dim=1)
        if keep is not None:
            movement = (movement * (change @ keep.cpu().float().t()).abs().mean(dim=1)).sqrt()
        return Measured(torch.sigmoid(scale * text.norm * along), movement)

    return measure


def choose(
    measure: Measure,
    layout: StyleLayout,
    relevance: Tensor,
    direct: Direct,
    settings: ChoosingSettings,
    *,
    allowed: ChannelSelection,
    alpha: float | None = None,
    fixed: bool = False,
) -> Choice:
    """Choose alpha, beta or both.

    Where most images show the target already, those that do not are the ones that count. Where no pair
    reaches the wanted effect, nine tenths of the way to the most that was reached are wanted instead.

    Args:
        measure: What a step does; see ``measure_on``.
        layout: Style channels of the generator.
        relevance: Relevance of every channel, ``[N]``.
        direct: Returns the style direction of a selection of channels, as ``style_direction`` does.
        settings: What is wanted.
        allowed: Layers that may change, the kind of weights, and, if ``fixed``, the beta or top_k to keep.
        alpha: Strength to keep; None to choose it.
        fixed: Whether ``allowed`` decides the channels.

    Raises:
        NoEffectError: If every image shows the target before any edit, or nothing brings them nearer to it.
        NoRelevantChannelError: If there is no relevant channel, or none at the fixed beta.
    """
    unedited = measure(torch.zeros(layout.num_editable)).effect
    search = _Search(measure, direct, settings, alpha, _that_count(unedited, settings.effect))
    selections = [allowed] if fixed else _thresholds(layout, relevance, allowed, settings.thresholds)
    curves = [search.follow(each, "coarse") for each in selections]
    if not fixed:
        best = search.best(curves)[0]
        around = next(place for place, each in enumerate(curves) if each is best)
        for finer in _between(layout, relevance, curves, around, allowed):
            curves.append(search.follow(finer, "fine"))
    chosen, strength, wanted = search.best(curves)
    last = search.trial(round_to(strength, 3), chosen.direction, chosen.selection, "chosen")
    reason = search.reason(curves, chosen, last, wanted)
    return Choice(
        last.alpha, last.selection, search.before, wanted == settings.effect, reason, tuple(search.trials)
    )  # fmt: skip


def round_to(value: float, digits: int) -> float:
    """Return a positive number with so many significant digits."""
    return float(f"{value:.{digits}g}")


# ---- thresholds -----------------------------------------------------------------------------------


def _thresholds(
    layout: StyleLayout, relevance: Tensor, allowed: ChannelSelection, count: int
) -> list[ChannelSelection]:
    """Return betas from low to high, by numbers of channels that fall geometrically."""
    mask = editable_mask(layout, allowed.include, allowed.exclude)
    available = int((relevance[mask] != 0).sum())
    most, least = max(available // _LARGEST_SHARE, 1), min(_FEWEST, max(available // _LARGEST_SHARE, 1))
    steps = max(count - 1, 1)
    channels = [round(most * (least / most) ** (step / steps)) for step in range(count)]
    return _at_counts(layout, relevance, allowed, channels)


def _at_counts(
    layout: StyleLayout, relevance: Tensor, allowed: ChannelSelection, channels: list[int]
) -> list[ChannelSelection]:
    betas = [beta_for(layout, relevance, allowed, max(each, 1)) for each in channels]
    readable = dict.fromkeys(math.floor(1000 * beta) / 1000 for beta in betas)
    return [replace(allowed, beta=beta, top_k=None) for beta in readable]


def _between(
    layout: StyleLayout, relevance: Tensor, curves: list[_Curve], place: int, allowed: ChannelSelection
) -> list[ChannelSelection]:
    """Return betas half way to the neighbours of the best one, by numbers of channels."""
    mine = curves[place].direction.channels
    near = [curves[each].direction.channels for each in (place - 1, place + 1) if 0 <= each < len(curves)]
    tried = {each.selection.beta for each in curves}
    halves = _at_counts(layout, relevance, allowed, [round(math.sqrt(mine * each)) for each in near])
    return [each for each in halves if each.beta not in tried]


# ---- strengths ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Curve:
    """What was tried at one threshold, by rising strength; the first point is no edit at all."""

    selection: ChannelSelection
    direction: StyleDirection
    strengths: list[float]
    effects: list[float]
    movements: list[float]

    @property
    def most(self) -> float:
        return max(self.effects[1:])

    def at(self, wanted: float) -> tuple[float, float] | None:
        """Return strength and movement where the effect is first reached; None if it never is."""
        for low, high in zip(range(len(self.effects)), range(1, len(self.effects)), strict=False):
            if self.effects[high] >= wanted:
                share = _share(self.effects[low], wanted, self.effects[high])
                strength = self.strengths[low] + share * (self.strengths[high] - self.strengths[low])
                return strength, self.movements[low] + share * (self.movements[high] - self.movements[low])
        return None


class _Search:
    """Tries pairs and remembers them."""

    def __init__(
        self,
        measure: Measure,
        direct: Direct,
        settings: ChoosingSettings,
        alpha: float | None,
        counted: tuple[Tensor, float],
    ) -> None:
        self.settings, self.trials = settings, list[Trial]()
        self.counted, self.before = counted
        self._measure, self._direct, self._alpha, self._next = measure, direct, alpha, settings.first

    def trial(
        self, alpha: float, direction: StyleDirection, selection: ChannelSelection, stage: Stage
    ) -> Trial:
        found = self._measure(direction.change(alpha))
        kept = Measured(found.effect[self.counted], found.movement[self.counted])
        self.trials.append(Trial(alpha, selection, direction.channels, kept, stage))
        return self.trials[-1]

    def follow(self, selection: ChannelSelection, stage: Stage) -> _Curve:
        """Seek the strength at which a threshold reaches the effect."""
        direction = self._direct(selection)
        points, strength = {0.0: (self.before, 0.0)}, self._alpha or self._next
        for _ in range(1 if self._alpha else self.settings.strengths):
            tried = self.trial(round_to(strength, 4), direction, selection, stage)
            points[tried.alpha] = (tried.effect, tried.movement)
            following = propose({each: effect for each, (effect, _) in points.items()}, self.settings.effect)
            if following is None or tried.alpha >= self.settings.strongest < following:
                break
            strength = min(following, self.settings.strongest)
        order = sorted(points, key=abs)
        found = _Curve(
            selection, direction, order, [points[each][0] for each in order],
            [points[each][1] for each in order],
        )  # fmt: skip
        reached = found.at(self.settings.effect)
        self._next = reached[0] if reached else self._next
        return found

    def best(self, curves: list[_Curve]) -> tuple[_Curve, float, float]:
        """Return the threshold of least movement, its strength, and the effect at which they are compared."""
        if self._alpha:
            enough = [each for each in curves if each.most >= self.settings.effect]
            # of those that reach the effect, the one that moves least; else the one that comes nearest
            if enough:
                best = enough[least([each.movements[-1] for each in enough])]
                return best, self._alpha, self.settings.effect
            best = curves[least([-each.most for each in curves])]
            return best, self._alpha, best.most

        # where none reaches the effect, they are compared at what nearly the best one reaches
        wanted = self.settings.effect
        if all(each.at(wanted) is None for each in curves):
            most = max(each.most for each in curves)
            if most <= self.before + _VISIBLE:
                raise NoEffectError(
                    f"no alpha that was tried makes the target likelier: {self.before:.3f} before any edit, "
                    f"{most:.3f} at most after one; give prompts that CLIP knows, or numbers instead of auto"
                )
            wanted = self.before + _NEARLY * (most - self.before)

        reached = [(each, found) for each in curves if (found := each.at(wanted)) is not None]
        chosen, (strength, _) = reached[least([movement for _, (_, movement) in reached])]
        return chosen, strength, wanted

    def reason(self, curves: list[_Curve], chosen: _Curve, last: Trial, wanted: float) -> str:
        """Return in words why this pair was chosen."""
        count, goal = len(last.measured.effect), self.settings.effect
        said = f"effect {last.effect:.2f} on {count} images, {self.before:.2f} before"
        if wanted != goal:
            most = max(each.most for each in curves)
            said += f"; {goal:g} is out of reach, {most:.2f} was the most"
        said += f"; movement beside the target {last.movement:.3f}"
        others = [(found[1], each) for each in curves
                  if each is not chosen and (found := each.at(wanted)) is not None]  # fmt: skip
        if not others:
            return said
        movement, second = others[least([movement for movement, _ in others])]
        following = f"beta {second.selection.beta:g} has {movement:.3f}"
        return f"{said}, the least of {len(others) + 1} thresholds that reach it; {following}"


def propose(effects: dict[float, float], wanted: float) -> float | None:
    """Return the strength to try next, from strength -> effect; None if the wanted one is found, or too far.

    The strength 0 must be among them.
    """
    order = sorted(effects)
    above = next((place for place, each in enumerate(order) if place and effects[each] >= wanted), None)
    if above is None:
        last, before = order[-1], order[-2]
        if len(order) > 2 and effects[last] < effects[before] + 0.01:
            return None  # more does not help any more
        done = _share(effects[0.0], effects[last], wanted) if effects[last] > effects[0.0] else 0.0
        return last * min(max(1.1 / max(done, 1e-6), _GROWTH[0]), _GROWTH[1])
    low, high = order[above - 1], order[above]
    if effects[high] - effects[low] <= _CLOSE:
        return None
    return low + min(max(_share(effects[low], wanted, effects[high]), 0.15), 0.85) * (high - low)


def _share(low: float, value: float, high: float) -> float:
    """Return where a probability lies between two others, 0..1, by logits: they are what edits shift."""
    first, own, last = (math.log(each / (1 - each)) for each in (min(max(p, 1e-4), 1 - 1e-4)
                                                                 for p in (low, value, high)))  # fmt: skip
    return min(max((own - first) / (last - first), 0.0), 1.0) if last > first else 1.0


def _that_count(unedited: Tensor, wanted: float) -> tuple[Tensor, float]:
    """Return the images that count and their mean effect: all, or those that lack what most show already."""
    if unedited.mean() < wanted:
        return torch.ones_like(unedited, dtype=torch.bool), unedited.mean().item()
    lacking = unedited < wanted
    if not lacking.any():
        raise NoEffectError(
            f"all {len(unedited)} images have an effect of {unedited.min():.2f} or more before any edit, "
            f"{wanted:g} is wanted; give images that lack it, or want more"
        )
    return lacking, unedited[lacking].mean().item()
