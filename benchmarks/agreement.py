"""How far a cheaper way to find style directions agrees with the exact table: directions, and edits.

Edits are those that ``make world-quality`` has chosen, applied to inversions of the embedded photographs and
read by the factor regressor of the embedded world, which nothing else uses. Units are standard deviations of
a factor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.networks import Case, exact_table
from styleclip import data
from styleclip.data.world import photographs
from styleclip.data.world.captions import ATTRIBUTES
from styleclip.data.world.quality import CHOSEN, PROMPTS, Bench, Portraits
from styleclip.data.world.regressor import load_regressor
from styleclip.data.world.renderer import FACTORS, INDEX, render
from styleclip_core import load_encoder
from styleclip_core.editing import ChannelSelection, StyleDirection, select_channels
from styleclip_core.errors import NoRelevantChannelError
from styleclip_core.images import psnr
from styleclip_core.inversion import RefinementSettings, refine
from styleclip_core.prompts import text_direction
from styleclip_core.relevance import RelevanceTable

PAIRS, BETA, REFINEMENT = 50, 0.15, 30


@lru_cache(maxsize=2)
def texts(case: Case) -> Tensor:
    """Return the text directions of 50 prompts against "face", ``[50, D]``.

    First the usual phrase of every attribute that a caption can name, then further ones.
    """
    phrases = [attribute.phrase for attribute in ATTRIBUTES]
    for attribute in ATTRIBUTES:
        phrases += [f"face with {noun}" for noun in attribute.nouns[1:]]
    chosen = list(dict.fromkeys(phrases))[:PAIRS]
    found = [text_direction(case.clip, neutral="face", target=phrase).direction for phrase in chosen]
    return torch.stack(found).cpu()


def relevances(table: RelevanceTable, directions: Tensor) -> Tensor:
    """Return the relevance of every channel for every text, ``[P, N]``."""
    return torch.stack([table.relevance(direction) for direction in directions])


def direction_cosines(case: Case, ours: Tensor, exact: Tensor, beta: float) -> Tensor:
    """Return the cosine of style directions from two relevances ``[P, N]``; prompts without one left out."""
    found = []
    for a, b in zip(ours, exact, strict=True):
        first, second = (_direction(case, each, ChannelSelection(beta=beta)) for each in (a, b))
        if first is not None and second is not None:
            found.append(F.cosine_similarity(first.delta, second.delta, dim=0))
    return torch.stack(found)


def _direction(case: Case, relevance: Tensor, selection: ChannelSelection) -> StyleDirection | None:
    try:
        return select_channels(case.generator.layout, relevance, case.deviations, selection)
    except NoRelevantChannelError:
        return None


@lru_cache(maxsize=1)
def portraits(case: Case) -> Portraits:
    """Invert the embedded photographs: the encoder, then a short refinement."""
    generator = case.generator
    factors = torch.stack(list(photographs.read_factors(data.PHOTOGRAPHS).values()))
    target = render(factors)
    guess = load_encoder(data.ENCODER).encode(target)
    settings = RefinementSettings(steps=REFINEMENT)
    found = []
    with torch.enable_grad():
        for part in torch.arange(len(target)).split(16):
            *_, last = refine(generator, target[part], guess[part], settings)
            found.append(last.w_plus)
    with torch.no_grad():
        codes = generator.styles(torch.cat(found))
        images = generator.synthesize(codes)
    readings = load_regressor(data.REGRESSOR).read(images)
    return Portraits(codes, images, readings, factors, psnr(images, target))


@dataclass(frozen=True, eq=False)
class EditScores:
    """What twelve edits did to every photograph, in standard deviations of the factors.

    Attributes:
        target: Move of the factor that the prompt names, ``[edits, B]``.
        others: Mean absolute move of the unrelated factors, ``[edits, B]``.
        rank: Place of the target among the factors by mean absolute move, ``[edits]``; 1 is the most moved.
        channels: Channels that took part, ``[edits]``.
    """

    target: Tensor
    others: Tensor
    rank: Tensor
    channels: Tensor


@torch.no_grad()
def edit_scores(case: Case, relevances_of: Callable[[Tensor], Tensor]) -> EditScores:
    """Score the chosen edits, channels by relevance, texts ``[P, D]`` -> ``[P, N]``."""
    regressor = load_regressor(data.REGRESSOR)
    bench = Bench(case.generator, case.clip, regressor, exact_table(case), case.deviations)
    known, rows = portraits(case), list[tuple[Tensor, Tensor, int, int]]()
    relevance = relevances_of(torch.stack([bench.text(prompt) for prompt in PROMPTS]))
    for prompt, each in zip(PROMPTS, relevance, strict=True):
        alpha, beta = CHOSEN[prompt.target]
        direction = _direction(case, each, ChannelSelection(beta=beta))
        if direction is None:
            nothing = torch.zeros(len(known.psnr))
            rows.append((nothing, nothing, len(FACTORS), 0))
            continue
        change, _ = bench.move(known, direction, alpha)
        target = INDEX[prompt.factor]
        unrelated = [i for i, name in enumerate(FACTORS) if i != target and name not in prompt.related]
        size = change.abs().mean(dim=0)
        rank = 1 + int((size > size[target]).sum())
        others = change[:, unrelated].abs().mean(dim=1)
        rows.append((prompt.sign * change[:, target], others, rank, direction.channels))
    return EditScores(
        torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows]),
        torch.tensor([row[2] for row in rows]), torch.tensor([row[3] for row in rows]),
    )  # fmt: skip


def with_error(values: Tensor) -> str:
    """Return mean and standard error of ``[B]``, e.g. ``+1.41 ± 0.03``."""
    return f"{values.mean():+.3f} ± {values.std() / len(values) ** 0.5:.3f}"


def edit_rows(scores: Mapping[str, EditScores], exact: str) -> Sequence[tuple[str, ...]]:
    """Return a row per way: means over edits with the photographs' standard errors, and against ``exact``."""
    base, rows = scores[exact], list[tuple[str, ...]]()
    for name, found in scores.items():
        same = name == exact
        rows.append((
            name, with_error(found.target.mean(dim=0)), with_error(found.others.mean(dim=0)),
            f"{int((found.rank == 1).sum())} of {len(found.rank)}",
            "" if same else with_error((found.target - base.target).mean(dim=0)),
            "" if same else with_error((found.others - base.others).mean(dim=0)),
        ))  # fmt: skip
    return rows


EDIT_HEADER = (
    "12 edits, photographs", "target moves", "others move", "target most moved", "target less exact's",
    "others less exact's",
)  # fmt: skip


def per_edit_rows(scores: Mapping[str, EditScores]) -> Sequence[tuple[str, ...]]:
    """Return a row per edit: target and others with their standard errors, for every way."""
    return [
        (
            prompt.name,
            *(
                f"{with_error(each.target[index])} / {each.others[index].mean():.3f}, "
                f"{int(each.channels[index])} ch., rank {int(each.rank[index])}"
                for each in scores.values()
            ),
        )
        for index, prompt in enumerate(PROMPTS)
    ]
