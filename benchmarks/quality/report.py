"""The tables: ways at matched moves of the target, and alpha and beta chosen without the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.prompts import PROMPTS, tunes
from benchmarks.quality.scores import Array, Curve, at_level, curve, over_prompts, replicates
from benchmarks.quality.sweep import LEVELS, room
from benchmarks.quality.ways import DEFAULT
from benchmarks.quality.world import QualityWorld
from benchmarks.report import Section
from styleclip.data.world.quality import Prompt
from styleclip_core.choosing import ChoosingSettings
from styleclip_core.editing import Weights

Cells = Callable[[str, Prompt], dict[str, dict[str, Tensor]] | None]
_BASE, _VALIDATION = "exact", "exact, validation"
_AUTOMATIC: dict[str, Weights] = {"automatic": "least-squares", "automatic, relevance": "relevance"}
_CLEAR = 2.0  # standard errors of a difference that is more than noise


@dataclass(frozen=True, eq=False)
class _Curves:
    """Every curve there is: way -> prompt -> setting; how far portraits can go; alphas chosen."""

    curves: dict[str, dict[str, dict[str, Curve]]]
    rooms: dict[str, float]
    validation_rooms: dict[str, float]
    chosen: dict[tuple[str, str], float]

    @classmethod
    def read(cls, world: QualityWorld, ways: list[str], cells: Cells) -> _Curves:
        found: dict[str, dict[str, dict[str, Curve]]] = {}
        for way in ways:
            for prompt in PROMPTS:
                cell = cells(way, prompt)
                if cell is not None:
                    each = {setting: curve(prompt, parts) for setting, parts in cell.items() if setting}
                    each |= {"": curve(prompt, cell[""])} if "" in cell else {}
                    found.setdefault(way, {})[prompt.name] = each
        rooms = {each.name: room(world, each, world.judged.readings).mean().item() for each in PROMPTS}
        chosen = {
            (way, each.name): world.choice(each, weights)[0]
            for way, weights in _AUTOMATIC.items()
            for each in PROMPTS
            if each.name in found.get(way, {})
        }
        others = {each.name: room(world, each, world.chosen_on.readings).mean().item() for each in PROMPTS}
        return cls(found, rooms, others, chosen)

    def only(self, name: str, way: str, setting: str | None) -> Curve | None:
        """Return the curve of a setting, or the way's only one."""
        settings = self.curves.get(way, {}).get(name, {})
        if setting is None:
            return next(iter(settings.values()), None)
        return settings.get(setting)


def _first(found: Curve, count: int) -> Curve:
    return Curve(found.target[:, :count], found.others[:, :count], found.identity[:, :count], found.strengths)


def sections(world: QualityWorld, ways: list[str], cells: Cells) -> list[Section]:
    """Return both tables from what has been measured."""
    known = _Curves.read(world, ways, cells)
    found = [_ways(known, ways, level) for level in LEVELS]
    if _VALIDATION in known.curves and _BASE in known.curves:
        found += _choices(world, known, cells)
    return found


# ---- ways at one move -----------------------------------------------------------------------------


def _ways(known: _Curves, ways: list[str], level: float) -> Section:
    rows, figures = [], dict[str, float]()
    for way, setting, title in _rows(known, ways):
        cells = [_at(known, prompt, way, setting, level) for prompt in PROMPTS]
        done = [each for each in cells if each is not None]
        reached = [each for each in done if not np.isnan(each[0][0])]
        both = [each for each in reached if not np.isnan(each[2][0])]
        if not done:
            continue
        portraits = next(iter(known.curves[way].values()))
        count = next(iter(portraits.values())).target.shape[1] if portraits else 0
        row = [title, str(count), f"{len(reached)} of {len(done)}"]
        for number, values in (("others", [each[0] for each in reached]),
                               ("identity", [each[1] for each in reached]),
                               ("difference", [each[0] - each[2] for each in both])):  # fmt: skip
            if number == "difference" and (way, setting) == (_BASE, _default()):
                row.append("")
                continue
            row.append(_with_error(values, "+" if number == "difference" else ""))
            if values:
                figures[f"{title}: {number}"] = over_prompts(_filled(values))[0]
        rows.append(tuple(row))
    title = f"where the target has moved {level:.0%} of its room"
    header = ("way", "portraits", "prompts that get there", "others", "identity",
              f"others less those of {_BASE}, beta {DEFAULT[1]:g}")  # fmt: skip
    return Section(title, header, rows, figures)


def _default() -> str:
    return f"b{DEFAULT[1]:g}"


def _rows(known: _Curves, ways: list[str]) -> list[tuple[str, str | None, str]]:
    """Return way, setting and title of every row; ways by relevance at the default beta."""
    found = list[tuple[str, str | None, str]]()
    for way in ways:
        if way in (_VALIDATION, "default") or way not in known.curves:
            continue
        settings = {name for each in known.curves[way].values() for name in each}
        if _default() in settings and way not in _AUTOMATIC:
            found.append((way, _default(), f"{way}, beta {DEFAULT[1]:g}"))
        else:
            found.append((way, None, way))
        if way == _BASE and _VALIDATION in known.curves:
            found.append((way, "best", f"{way}, best beta of each prompt by the truth on other portraits"))
    return found


def _at(
    known: _Curves, prompt: Prompt, way: str, setting: str | None, level: float
) -> tuple[Array, Array, Array] | None:
    """Return others and identity at a level, and the others of the base for the same portraits."""
    if setting == "best":
        setting = best_beta(known, prompt, level)
        if setting is None:
            return None
    if prompt.name not in known.curves.get(way, {}):
        return None
    mine = known.only(prompt.name, way, setting)
    base = known.only(prompt.name, _BASE, _default())
    nothing = np.full(1, np.nan)
    if mine is None:
        return nothing, nothing, nothing
    portraits = mine.target.shape[1]
    weights = replicates(portraits)
    wanted = np.full(len(weights), level * known.rooms[prompt.name])
    found = at_level(mine, weights, wanted)
    compared = at_level(_first(base, portraits), weights, wanted).others if base else wanted * np.nan
    return found.others, found.identity, compared


def best_beta(known: _Curves, prompt: Prompt, level: float) -> str | None:
    """Return the setting of least leakage at a level on the validation portraits; None if none gets there."""
    found = {}
    for setting, each in known.curves.get(_VALIDATION, {}).get(prompt.name, {}).items():
        weights = np.full((1, each.target.shape[1]), 1 / each.target.shape[1])
        others = at_level(each, weights, np.full(1, level * known.validation_rooms[prompt.name])).others[0]
        if not np.isnan(others):
            found[setting] = others
    return min(found, key=lambda each: found[each]) if found else None


def _filled(values: list[Array]) -> Array:
    """Return values as ``[P, R]``; a replicate that does not get there counts as the measured one."""
    rows = np.stack(values)
    return np.where(np.isnan(rows), rows[:, :1], rows)


def _with_error(values: list[Array], sign: str) -> str:
    if not values:
        return "-"
    mean, error = over_prompts(_filled(values))
    return f"{mean:{sign}.3f} ± {error:.3f}"


# ---- automatic alpha and beta ---------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """How a choice does beside the best fixed pair of the same prompt.

    Attributes:
        prompt: The prompt.
        alpha: Chosen strength.
        setting: Chosen beta.
        moved: Fraction of the room that the chosen pair moves the target.
        others: Its leakage, there or where both can be compared.
        best: Beta of the best fixed pair.
        best_others: Leakage of that beta where it moves the target as far.
        difference: Leakage of the choice less that of the best fixed pair, at equal moves.
        error: Standard error of that, over portraits, paired.
        default_others: Leakage of beta 0.15 where it moves the target as far; NaN if it never does.
        default_moved: Fraction of the room that alpha 4.1, beta 0.15 move the target.
        default_pair: Leakage of that pair.
    """

    prompt: Prompt
    alpha: float
    setting: str
    moved: float
    others: float
    best: str
    best_others: float
    difference: float
    error: float
    default_others: float
    default_moved: float
    default_pair: float

    @property
    def as_good(self) -> bool:
        """Return whether the choice leaks no more than the best fixed pair, but for noise."""
        return self.difference <= _CLEAR * self.error

    @property
    def clearly_worse(self) -> bool:
        """Return whether it leaks more than that, by more than noise."""
        return not self.as_good


@dataclass(frozen=True)
class Rule:
    """A way to choose without the truth, on the betas that were swept.

    Attributes:
        title: Its name.
        kept: Whether movement also counts the scores of all unrelated prompts.
    """

    title: str
    kept: bool


RULES = (
    Rule("the pipeline's rule on the betas swept", kept=False),
    Rule("the same, told the unrelated prompts as what should stay", kept=True),
)
WANTED = ChoosingSettings().effect


def choice_by(
    world: QualityWorld, prompt: Prompt, cell: dict[str, dict[str, Tensor]], rule: Rule
) -> tuple[str, float]:
    """Return setting and strength that a rule chooses from the sweeps of the validation portraits."""
    text, before = world.texts[prompt.name], world.chosen_on.embedding
    gap = world.prompts[prompt.name] - world.prompts["neutral"]
    keep = torch.stack([world.texts[each.name] for each in PROMPTS if _unrelated(prompt, each)])

    def effect(embedded: Tensor) -> float:
        return float(torch.sigmoid(world.clip.logit_scale * (embedded @ gap)).mean())

    def movement(embedded: Tensor) -> float:
        change = embedded - before
        length = (change - (change @ text)[:, None] * text).norm(dim=1)
        if rule.kept:
            length = (length * (change @ keep.T).abs().mean(dim=1)).sqrt()
        return float(length.mean())

    curves = {}
    for setting, found in cell.items():
        fit = found["strengths"] <= ChoosingSettings().strongest
        curves[setting] = (
            np.array([0.0, *found["strengths"][fit].tolist()]),
            np.array([effect(before), *map(effect, found["embedding"][fit])]),
            np.array([0.0, *map(movement, found["embedding"][fit])]),
        )
    most = max(effects.max() for _, effects, _ in curves.values())
    wanted = WANTED if most >= WANTED else effect(before) + 0.9 * (most - effect(before))
    best, least, strength = "", np.inf, 0.0
    for setting, (strengths, effects, movements) in curves.items():
        above = np.flatnonzero(effects >= wanted)
        if not len(above):
            continue
        high = max(int(above[0]), 1)
        share = np.clip((wanted - effects[high - 1]) / max(effects[high] - effects[high - 1], 1e-9), 0, 1)
        moved = movements[high - 1] + share * (movements[high] - movements[high - 1])
        if moved < least:
            best, least = setting, float(moved)
            strength = float(strengths[high - 1] + share * (strengths[high] - strengths[high - 1]))
    return best, strength


def _unrelated(prompt: Prompt, other: Prompt) -> bool:
    return other.factor != prompt.factor and other.factor not in prompt.related


def _compare(known: _Curves, prompt: Prompt, way: str, setting: str, alpha: float) -> Verdict | None:
    """Return how a pair does on the portraits that judge; None where something is not measured yet."""
    best = best_beta(known, prompt, LEVELS[1]) or best_beta(known, prompt, LEVELS[0])
    mine = known.only(prompt.name, way, setting)
    rival = known.only(prompt.name, _BASE, best) if best else None
    if mine is None or rival is None or best is None:
        return None
    target, _ = _point(mine, alpha)
    weights = replicates(len(target))
    moved = target @ weights.T
    most = min(each.target.mean(axis=1).max() for each in (mine, rival))
    moved = moved * min(1.0, 0.99 * most / moved[0])  # both must get there to be compared there
    others, against = (at_level(each, weights, moved).others for each in (mine, rival))
    difference = np.where(np.isnan(others - against), (others - against)[0], others - against)
    standard, pair = known.only(prompt.name, _BASE, _default()), known.only(prompt.name, "default", None)
    room_, one = known.rooms[prompt.name], weights[:1]
    nothing = float("nan")
    return Verdict(
        prompt, alpha, setting, float(target.mean() / room_), float(others[0]), best, float(against[0]),
        float(difference[0]), float(difference[1:].std()),
        float(at_level(standard, one, moved[:1]).others[0]) if standard else nothing,
        float(pair.target[1].mean() / room_) if pair else nothing,
        float(pair.others[1].mean()) if pair else nothing,
    )  # fmt: skip


def _point(found: Curve, alpha: float) -> tuple[Array, Array]:
    """Return target and others at a strength, ``[B]`` each, between the two that were measured around it."""
    high = int(np.clip(np.searchsorted(found.strengths, alpha), 1, len(found.strengths) - 1))
    low = high - 1
    share = np.clip((alpha - found.strengths[low]) / (found.strengths[high] - found.strengths[low]), 0, 1)
    target, others = (each[low] + share * (each[high] - each[low]) for each in (found.target, found.others))
    return target, others


def _choices(world: QualityWorld, known: _Curves, cells: Cells) -> list[Section]:
    found: dict[str, list[Verdict]] = {}
    for rule in RULES:
        for prompt in PROMPTS:
            cell = cells(_VALIDATION, prompt)
            if cell:
                setting, alpha = choice_by(world, prompt, cell, rule)
                found.setdefault(rule.title, []).extend(_some(_compare(known, prompt, _BASE, setting, alpha)))
    for way, weights in _AUTOMATIC.items():
        for prompt in PROMPTS:
            settings = known.curves.get(way, {}).get(prompt.name)
            if settings:
                verdict = _compare(known, prompt, way, next(iter(settings)), known.chosen[way, prompt.name])
                found.setdefault(_own(weights), []).extend(_some(verdict))
    summaries = [
        _summary(f"{title}; {name}", [each for each in verdicts if tunes(each.prompt) == tuned])
        for title, verdicts in found.items()
        for name, tuned in (("judged", False), ("tuned on", True))
    ]
    return [
        Section("alpha and beta chosen without the truth", ("rule; prompts", *_SUMMARY), summaries),
        *(
            Section(f"{title}, prompt by prompt", _VERDICT, [_row(each) for each in found[title]])
            for title in map(_own, _AUTOMATIC.values())
            if title in found
        ),
    ]


def _own(weights: Weights) -> str:
    return f"the pipeline's own choice, {weights} weights"


def _some(verdict: Verdict | None) -> list[Verdict]:
    return [] if verdict is None else [verdict]


_VERDICT = (
    "prompt", "alpha", "beta", "target moved, of its room", "others",
    "others of the best fixed beta, moved as far", "that beta", "difference",
    f"others at beta {DEFAULT[1]:g}, moved as far",
    f"target moved by alpha {DEFAULT[0]:g}, beta {DEFAULT[1]:g}", "its others",
)  # fmt: skip


def _row(found: Verdict) -> tuple[str, ...]:
    return (
        found.prompt.name + (" (tuning)" if tunes(found.prompt) else ""), f"{found.alpha:.3g}",
        found.setting.removeprefix("b"), f"{found.moved:.0%}", f"{found.others:.3f}",
        f"{found.best_others:.3f}", found.best.removeprefix("b"),
        f"{found.difference:+.3f} ± {found.error:.3f}", f"{found.default_others:.3f}",
        f"{found.default_moved:.0%}", f"{found.default_pair:.3f}",
    )  # fmt: skip


_SUMMARY = (
    "number", "as good as the best fixed pair, but for noise", "within 5 % of it or better", "clearly worse",
    "largest clear excess", "target moved, of its room: lowest, median, highest", "mean others: chosen",
    "best fixed", "beta 0.15, where it gets as far", "moves of alpha 4.1, beta 0.15: lowest, median, highest",
    "its mean others",
)  # fmt: skip


def _summary(name: str, found: list[Verdict]) -> tuple[str, ...]:
    if not found:
        return (name, "0", *("-" for _ in _SUMMARY[1:]))
    count = len(found)
    close = sum(each.others <= 1.05 * each.best_others for each in found)
    worse = [each for each in found if each.clearly_worse]
    reached = [each.default_others for each in found if not np.isnan(each.default_others)]
    return (
        name, str(count), f"{sum(each.as_good for each in found)} of {count}", f"{close} of {count}",
        str(len(worse)), f"{max((each.difference for each in worse), default=0):+.3f}",
        _range([each.moved for each in found]),
        f"{np.mean([each.others for each in found]):.3f}",
        f"{np.mean([each.best_others for each in found]):.3f}", f"{_mean(reached):.3f} ({len(reached)})",
        _range([each.default_moved for each in found]),
        f"{_mean([each.default_pair for each in found]):.3f}",
    )  # fmt: skip


def _mean(values: list[float]) -> float:
    known = [each for each in values if not np.isnan(each)]
    return float(np.mean(known)) if known else float("nan")


def _range(values: list[float]) -> str:
    known = [each for each in values if not np.isnan(each)]
    if not known:
        return "-"
    low, middle, high = np.quantile(known, (0, 0.5, 1))
    return f"{low:.0%}, {middle:.0%}, {high:.0%}"


def markdown(found: list[Section]) -> str:
    """Return the tables as Markdown."""
    parts = []
    for section in found:
        head = f"| {' | '.join(section.header)} |\n|{'---|' * len(section.header)}"
        body = "\n".join(f"| {' | '.join(row)} |" for row in section.rows)
        parts.append(f"## {section.title[0].upper()}{section.title[1:]}\n\n{head}\n{body}\n")
    return "\n".join(parts)
