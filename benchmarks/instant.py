"""Instant mode: seconds per prompt pair, and how far it agrees with the exact table."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.agreement import (
    BETA,
    EDIT_HEADER,
    PAIRS,
    direction_cosines,
    edit_rows,
    edit_scores,
    per_edit_rows,
    relevances,
    texts,
)
from benchmarks.fast import exact_scores
from benchmarks.networks import Case, cases, clock, exact_table
from benchmarks.report import Options, Section
from styleclip.tasks.settings import Instant
from styleclip_core.instant import instant_relevance

SETTINGS = Instant()


def measure(options: Options) -> Iterator[Section]:
    """Yield time, agreement, and edits."""
    for case in cases(options):
        directions = texts(case)
        timed = [clock(options.device, lambda: _instant(case, directions[0])) for _ in range(options.rounds)]  # noqa: B023
        seconds = statistics.median(each[0] for each in timed)
        yield Section(
            f"{case.name}: instant relevance of a prompt pair, {SETTINGS.codes} codes, "
            f"{SETTINGS.probes} probes",
            (f"seconds (median of {options.rounds})", "largest difference between repeats"),
            [(f"{seconds:.2f}", f"{max((each[1] - timed[0][1]).abs().max().item() for each in timed):.0e}")],
            {"seconds": seconds},
        )  # fmt: skip
        if options.networks == "world":
            ours = _instant(case, directions)
            yield _agreement(case, ours, relevances(exact_table(case), directions))
            scores = {"exact": exact_scores(case)["exact"]}
            scores["instant"] = edit_scores(case, lambda text: _instant(case, text))  # noqa: B023
            name = "edits of data/edits.yaml, same alpha and beta; ± one standard error over photographs"
            yield Section(name, EDIT_HEADER, edit_rows(scores, "exact"))
            header = ("edit", *(f"{each}: target / others" for each in scores))
            yield Section("the same, edit by edit", header, per_edit_rows(scores))


def _instant(case: Case, text: Tensor) -> Tensor:
    few = case.sampled.select(slice(0, SETTINGS.codes))
    return instant_relevance(
        case.generator, case.clip.embed_whole, few, text, case.deviations, probes=SETTINGS.probes,
        seed=SETTINGS.seed,
    )  # fmt: skip


def _agreement(case: Case, ours: Tensor, exact: Tensor) -> Section:
    relevance = F.cosine_similarity(ours, exact, dim=1)
    ranks = F.cosine_similarity(_ranks(ours), _ranks(exact), dim=1)
    cosines = direction_cosines(case, ours, exact, BETA)
    top = torch.stack([
        torch.isin(a.abs().topk(30).indices, b.abs().topk(30).indices).float().mean()
        for a, b in zip(ours, exact, strict=True)
    ])  # fmt: skip
    columns = {
        "cosine of relevance": relevance, "rank correlation of relevance": ranks,
        f"cosine of style directions at beta {BETA:g}": cosines, "share of the 30 most relevant": top,
    }  # fmt: skip
    return Section(
        f"agreement with the exact table over {PAIRS} prompt pairs, mean / lowest",
        tuple(columns),
        [tuple(f"{each.mean():.3f} / {each.min():.3f}" for each in columns.values())],
        {name: each.mean().item() for name, each in columns.items()},
    )


def _ranks(relevance: Tensor) -> Tensor:
    ranks = relevance.argsort(dim=1).argsort(dim=1).double()
    return ranks - ranks.mean(dim=1, keepdim=True)
