"""Ways to edit against the true picture: measured where sweeps have found equal moves of the target.

Two pictures are the truth of an edit. The *nearest* counterfactual says what the edit has reached, and what
is wrong with it beside that. The *wanted* one is the same for all ways: the portrait after half of its way
to the prompt, or three quarters. The error to it is read between two marks: the *floor*, of the unedited
portrait, and the *ceiling*, of the wanted picture itself, inverted and drawn again by encoder and generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.counterfactual import Counterfactuals, errors
from benchmarks.quality.scores import Array, at_level, curve, over_prompts, replicates, unrelated
from benchmarks.quality.sweep import LEVELS, Portraits, room, sweep
from benchmarks.quality.ways import DEFAULT, Candidate
from benchmarks.quality.world import QualityWorld
from benchmarks.report import Section
from styleclip.data.world.quality import Prompt
from styleclip.data.world.renderer import INDEX

Truths = dict[str, Tensor]  # "<level>/<figure>" -> one value for each portrait
Marks = ("floor", "ceiling")
CHOSEN = "chosen"
_NAMES = {level: f"{level:.0%}" for level in LEVELS}
_REFINED = 10  # steps of the ceiling's inversions, of which there are thousands


def marks(world: QualityWorld, prompt: Prompt) -> dict[str, Truths]:
    """Return the errors of the unedited portraits, and of the wanted pictures inverted, by level."""
    start = world.judged
    truth = _counterfactuals(world, prompt, start)
    found: dict[str, Truths] = {name: {} for name in Marks}
    nothing = torch.zeros(len(start.images))
    for level in LEVELS:
        wanted = truth.at(nothing + level)
        # from the portrait's own latent, moved by what the encoder sees of the difference
        moved = start.w_plus + world.encoder.encode(wanted) - world.encoder.encode(truth.at(nothing))
        drawn = world.draw(world.generator.styles(world.refined(wanted, moved, steps=_REFINED)))
        for name, images in (("floor", start.images), ("ceiling", drawn)):
            found[name] |= _judge(world, prompt, start, truth, images, level)
    return found


def judge_way(
    world: QualityWorld,
    prompt: Prompt,
    start: Portraits,
    candidates: Iterator[Candidate],
    chosen: float | None,
) -> Truths:
    """Return the errors of one edit of a way at both levels, and at the strength it chose itself.

    The edit is the way's only one, or that at the default beta. A level that is not reached has no figures.
    """
    edit = _only(candidates)
    if edit is None:
        return {}
    truth = _counterfactuals(world, prompt, start)
    found = curve(prompt, sweep(world, start, prompt, edit.move, edit.first))
    rooms = room(world, prompt, start.readings).mean().item()
    weights = np.full((1, len(start.images)), 1 / len(start.images))

    known: Truths = {}
    for level in LEVELS:
        strength = at_level(found, weights, np.full(1, level * rooms)).strength[0]
        if np.isfinite(strength):
            known |= _judge(world, prompt, start, truth, world.draw(edit.move(float(strength))), level)
    if chosen is not None:
        known |= _judge(world, prompt, start, truth, world.draw(edit.move(chosen)), None)
    return known


def _only(candidates: Iterator[Candidate]) -> Candidate | None:
    found = list(candidates)
    default = f"b{DEFAULT[1]:g}"
    return next((each for each in found if each.setting == default or len(found) == 1), None)


def _counterfactuals(world: QualityWorld, prompt: Prompt, start: Portraits) -> Counterfactuals:
    """Return the truth of the photographs, which ``start`` are the first of."""
    return Counterfactuals(prompt, world.shown[: len(start.images)])


def _judge(
    world: QualityWorld,
    prompt: Prompt,
    start: Portraits,
    truth: Counterfactuals,
    images: Tensor,
    level: float | None,
) -> Truths:
    """Return all figures of edited images under the name of a level, or of the chosen strength."""
    nearest = truth.nearest(images)
    found = errors(images, nearest.images, start.images, truth.region) | {"reached": nearest.value}
    if level is not None:
        wanted = truth.at(torch.full_like(nearest.value, level))
        found["wanted"] = errors(images, wanted, start.images, truth.region)["inside"]
    name = CHOSEN if level is None else _NAMES[level]
    found |= _beside(world, prompt, start, images)
    return {f"{name}/{figure}": values for figure, values in found.items()}


def _beside(world: QualityWorld, prompt: Prompt, start: Portraits, images: Tensor) -> Truths:
    """Return what the other tables have of edited images: move of the target, of the others, identity."""
    change = world.regressor.read(images) - start.readings
    moved = prompt.sign * change[:, INDEX[prompt.factor]] / room(world, prompt, start.readings).mean()
    others = change[:, unrelated(prompt)].abs().mean(dim=1)
    identity = (world.identity.embed(images) * start.identity).sum(dim=1)
    return {"moved": moved, "others": others, "identity": identity}


# ---- tables ---------------------------------------------------------------------------------------


FIGURES = {  # of a table, and what they are called
    "moved": "target moved, of its room", "others": "others", "identity": "identity",
    "reached": "value of the nearest true picture", "psnr": "PSNR to it, dB", "ssim": "SSIM to it",
    "inside": "CIEDE2000 to it, inside", "outside": "CIEDE2000 to before, outside",
    "wanted": "CIEDE2000 to the wanted picture, inside",
}  # fmt: skip
Found = Callable[[str, Prompt], Truths | None]


def over_portraits(values: Tensor) -> Array:
    """Return the mean over portraits that have a figure, in every replicate, ``[R]``; NaN where none has."""
    known, weights = np.isfinite(values.numpy()), replicates(len(values))
    total = weights @ known
    sums = weights @ np.where(known, values.double().numpy(), 0.0)
    return np.where(total > 0, sums / np.where(total > 0, total, 1.0), np.nan)


def truth_sections(ways: list[str], prompts: list[Prompt], found: Found) -> list[Section]:
    """Return a table for both levels, and one for the strengths that ways choose themselves.

    Each is of the prompts that all ways in it have been judged on, so that its rows compare.
    """
    made = [_section(_NAMES[level], ways, prompts, found) for level in LEVELS]
    made.append(_section(CHOSEN, ways, prompts, found))
    return [each for each in made if each.rows]


def _section(name: str, ways: list[str], prompts: list[Prompt], found: Found) -> Section:
    rows, figures = list[tuple[str, ...]](), dict[str, float]()
    known = {way: _with(f"{name}/inside", way, prompts, found) for way in [*Marks, *ways]}
    judged = [set(each) for way, each in known.items() if each and way not in Marks]
    shared = set.intersection(*judged) if judged else set()
    everything = [truths for each in known.values() for prompt, truths in each.items() if prompt in shared]
    names = [each for each in FIGURES if all(f"{name}/{each}" in truths for truths in everything)]
    for way, each in known.items():
        here = {prompt: truths for prompt, truths in each.items() if prompt in shared}
        if not here:
            continue
        count = str(len(next(iter(here.values()))[f"{name}/reached"]))
        row = [way, count, str(len(here))]
        for figure in names:
            means = [over_portraits(truths[f"{name}/{figure}"]) for truths in here.values()]
            text, value = _said([mean for mean in means if np.isfinite(mean[0])])
            row.append(text)
            figures[f"{way}: {figure}"] = value
        if name != CHOSEN:
            row.append(_between(name, here, prompts, found))
        rows.append(tuple(row))
    header = ["way", "portraits", "prompts", *(FIGURES[each] for each in names)]
    if name != CHOSEN:
        header.append("of the way from floor to ceiling")
    where = f"where the target has moved {name} of its room"
    title = "at the strengths that were chosen" if name == CHOSEN else where
    return Section(f"against the true picture, {title}", tuple(header), rows, figures)


def _with(figure: str, way: str, prompts: list[Prompt], found: Found) -> dict[str, Truths]:
    """Return what is known of the prompts for which a way has a figure."""
    known = {each.name: truths for each in prompts if (truths := found(way, each)) is not None}
    return {prompt: truths for prompt, truths in known.items() if figure in truths}


def _said(values: list[Array]) -> tuple[str, float]:
    if not values:
        return "-", float("nan")
    rows = np.stack(values)
    mean, error = over_prompts(np.where(np.isnan(rows), rows[:, :1], rows))
    return f"{mean:.3g} ± {error:.2g}", mean


def _between(name: str, here: dict[str, Truths], prompts: list[Prompt], found: Found) -> str:
    """Return how much of the way from floor to ceiling the mean error to the wanted picture has gone."""
    shares = []
    for prompt in prompts:
        floor, ceiling = (found(mark, prompt) for mark in Marks)
        if prompt.name not in here or floor is None or ceiling is None:
            continue
        low, high, own = (
            over_portraits(each[f"{name}/wanted"]) for each in (floor, ceiling, here[prompt.name])
        )
        if np.isfinite(low[0]) and low[0] > high[0]:
            shares.append((low - own) / np.where(low > high, low - high, np.nan))
    return _said(shares)[0]
