"""The tables: ways at matched moves of the target, and alpha and beta chosen without the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from benchmarks.quality.prompts import PROMPTS, tunes
from benchmarks.quality.scores import Array, Curve, at_level, curve, over_prompts, replicates
from benchmarks.quality.sweep import LEVELS, room
from benchmarks.quality.ways import DEFAULT
from benchmarks.quality.world import QualityWorld
from benchmarks.report import Section
from data.world.quality import Prompt

Cells = Callable[[str, Prompt], dict[str, dict[str, Tensor]] | None]
_BASE, _VALIDATION, _AUTOMATIC = "exact", "exact, validation", "automatic"
_CLEAR = 2.0  # standard errors of a difference that is more than noise


@dataclass(frozen=True, eq=False)
class _Curves:
    """Every curve there is: way -> prompt -> setting; how far portraits can go; the alphas chosen."""

    curves: dict[str, dict[str, dict[str, Curve]]]
    rooms: dict[str, float]
    chosen: dict[str, float]

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
            each.name: world.choice(each)[0] for each in PROMPTS if each.name in found.get(_AUTOMATIC, {})
        }
        return cls(found, rooms, chosen)

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
    if _AUTOMATIC in known.curves and _BASE in known.curves:
        found += _choices(known)
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
    found = []
    for way in ways:
        if way in (_VALIDATION, "default") or way not in known.curves:
            continue
        settings = {name for each in known.curves[way].values() for name in each}
        if _default() in settings and way != _AUTOMATIC:
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
        others = at_level(each, weights, np.full(1, level * known.rooms[prompt.name])).others[0]
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
    """How an automatic choice does beside the best fixed pair of the same prompt.

    Attributes:
        prompt: The prompt.
        alpha: Chosen strength.
        setting: Chosen beta.
        moved: Fraction of the room that the chosen pair moves the target.
        others: Its leakage.
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


def verdicts(known: _Curves) -> list[Verdict]:
    """Return a verdict for every prompt whose choice has been measured."""
    found = []
    for prompt in PROMPTS:
        mine, setting = known.only(prompt.name, _AUTOMATIC, None), known.curves[_AUTOMATIC].get(prompt.name)
        best = best_beta(known, prompt, LEVELS[1]) or best_beta(known, prompt, LEVELS[0])
        rival = known.only(prompt.name, _BASE, best) if best else None
        if mine is None or not setting or rival is None or best is None:
            continue
        found.append(_verdict(known, prompt, mine, next(iter(setting)), rival, best))
    return [each for each in found if each is not None]


def _verdict(
    known: _Curves, prompt: Prompt, mine: Curve, setting: str, rival: Curve, best: str
) -> Verdict | None:
    place = int(np.abs(mine.strengths - known.chosen[prompt.name]).argmin())
    weights = replicates(mine.target.shape[1])
    moved, others = mine.target[place] @ weights.T, mine.others[place] @ weights.T
    against = at_level(rival, weights, moved).others
    if np.isnan(against[0]):  # the best pair never moves it so far: compare where it moves it most
        top = int(rival.target.mean(axis=1).argmax())
        moved = 0.99 * rival.target[top] @ weights.T
        others, against = (at_level(each, weights, moved).others for each in (mine, rival))
    difference = np.where(np.isnan(others - against), (others - against)[0], others - against)
    standard = known.only(prompt.name, _BASE, _default())
    pair = known.only(prompt.name, "default", None)
    room_ = known.rooms[prompt.name]
    one = np.full((1, mine.target.shape[1]), 1 / mine.target.shape[1])
    there = np.full(1, mine.target[place].mean())
    return Verdict(
        prompt, float(mine.strengths[place]), setting, float(mine.target[place].mean() / room_),
        float(mine.others[place].mean()), best, float(against[0]), float(difference[0]),
        float(difference[1:].std()),
        float(at_level(standard, one, there).others[0]) if standard else float("nan"),
        float(pair.target[1].mean() / room_) if pair else float("nan"),
        float(pair.others[1].mean()) if pair else float("nan"),
    )  # fmt: skip


def _choices(known: _Curves) -> list[Section]:
    each = verdicts(known)
    rows = [
        (
            found.prompt.name + (" (tuning)" if tunes(found.prompt) else ""),
            f"{found.alpha:.3g}", found.setting.removeprefix("b"), f"{found.moved:.0%}", f"{found.others:.3f}",
            f"{found.best_others:.3f}", found.best.removeprefix("b"),
            f"{found.difference:+.3f} ± {found.error:.3f}", f"{found.default_others:.3f}",
            f"{found.default_moved:.0%}", f"{found.default_pair:.3f}",
        )
        for found in each
    ]  # fmt: skip
    header = ("prompt", "alpha", "beta", "target moved, of its room", "others",
              "others of the best fixed beta, moved as far", "that beta", "difference",
              f"others at beta {DEFAULT[1]:g}, moved as far",
              f"target moved by alpha {DEFAULT[0]:g}, beta {DEFAULT[1]:g}", "its others")  # fmt: skip
    judged = [found for found in each if not tunes(found.prompt)]
    return [
        Section("alpha and beta chosen without the truth", header, rows),
        Section("summary of the choices", ("prompts", *_SUMMARY), [
            _summary("judged", judged), _summary("tuned on", [each for each in each if tunes(each.prompt)]),
        ]),
    ]  # fmt: skip


_SUMMARY = (
    "number", "as good as the best fixed pair, but for noise", "within 5 % of it or better", "clearly worse",
    "largest clear excess", "target moved, lowest to highest", "mean others: chosen", "best fixed",
    "beta 0.15, where it gets as far", "moves of the default pair, lowest to highest", "its mean others",
)  # fmt: skip


def _summary(name: str, found: list[Verdict]) -> tuple[str, ...]:
    if not found:
        return (name, "0", *("-" for _ in _SUMMARY[1:]))
    count = len(found)
    close = sum(each.others <= 1.05 * each.best_others or each.difference <= 0 for each in found)
    worse = [each for each in found if each.clearly_worse]
    reached = [each.default_others for each in found if not np.isnan(each.default_others)]
    return (
        name, str(count), f"{sum(each.as_good for each in found)} of {count}", f"{close} of {count}",
        str(len(worse)), f"{max((each.difference for each in worse), default=0):+.3f}",
        f"{min(each.moved for each in found):.0%} to {max(each.moved for each in found):.0%}",
        f"{np.mean([each.others for each in found]):.3f}",
        f"{np.mean([each.best_others for each in found]):.3f}", f"{np.mean(reached):.3f} ({len(reached)})",
        f"{min(each.default_moved for each in found):.0%} to {max(each.default_moved for each in found):.0%}",
        f"{np.mean([each.default_pair for each in found]):.3f}",
    )  # fmt: skip


def markdown(found: list[Section]) -> str:
    """Return the tables as Markdown."""
    parts = []
    for section in found:
        head = f"| {' | '.join(section.header)} |\n|{'---|' * len(section.header)}"
        body = "\n".join(f"| {' | '.join(row)} |" for row in section.rows)
        parts.append(f"## {section.title[0].upper()}{section.title[1:]}\n\n{head}\n{body}\n")
    return "\n".join(parts)
