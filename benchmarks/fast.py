"""Fast mode: its time against the reference loop for the same table, and what its tables are worth.

The reference loop is measured three times, before, among and after the fast table's layers, so that a
machine that slows down slows down both. The exact table and its two halves say how much of a difference
is the noise of a hundred codes.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.agreement import (
    BETA,
    EDIT_HEADER,
    PAIRS,
    EditScores,
    direction_cosines,
    edit_rows,
    edit_scores,
    per_edit_rows,
    relevances,
    texts,
)
from benchmarks.networks import Case, cases, clock, exact_table
from benchmarks.reference import reference_directions, table_seconds
from benchmarks.report import Options, Section
from styleclip.tasks.settings import fast_relevance
from styleclip_core.derivatives import embedding_basis, unit_derivatives
from styleclip_core.relevance import ChannelDirections, RelevanceTable

SLOW_CODES, SLOW = 8, 3
BETAS = (0.08, BETA, 0.2)


def measure(options: Options) -> Iterator[Section]:
    """Yield speed, agreement of directions, and edits."""
    for case in cases(options):
        table, section = _speed(case, options)
        yield section
        if options.networks != "world":
            continue  # generated weights mean nothing, so edits cannot be right or wrong
        yield _agreement(case, table)
        scores = {**exact_scores(case), "fast": edit_scores(case, partial(relevances, table))}
        name = (
            "edits of data/edits.yaml; ± one standard error over photographs; units: deviations of a factor"
        )
        yield Section(name, EDIT_HEADER, edit_rows(scores, "exact"))
        header = ("edit", *(f"{each}: target / others" for each in scores))
        yield Section("the same, edit by edit", header, per_edit_rows(scores))


@lru_cache(maxsize=1)
def exact_scores(case: Case) -> dict[str, EditScores]:
    """Return the scores of edits with the exact table, and with those of either half of the codes."""
    table = exact_table(case)
    ways = {"exact": table, "exact, first half": case.tables[0], "exact, second half": case.tables[1]}
    return {name: edit_scores(case, partial(relevances, each)) for name, each in ways.items()}


def _speed(case: Case, options: Options) -> tuple[RelevanceTable, Section]:
    settings = fast_relevance({"batch_size": 32 if options.device == "cpu" else 256})
    generator, codes, drawn = case.generator, case.sampled, [0]

    def derivatives() -> tuple[Tensor, Tensor]:
        basis = embedding_basis(generator, case.clip.embed_whole, codes, settings.derivatives)
        return basis, torch.cat(list(unit_derivatives(generator, case.clip.embed_whole, codes, basis)))

    reference = [_reference(case, options)]
    first, (basis, along) = clock(options.device, derivatives)
    among, moved, weighted, parts = 0.0, 0.0, 0.0, list[ChannelDirections]()
    for layer in generator.layout.editable:
        among += _reference(case, options, layer.name)
        part = case.middle(layer.name, 0 if options.networks == "world" else options.channels)
        start = generator.layout.editable_slices[layer.name].start
        drawn[0] = 0
        with _counted(case, drawn):
            seconds, found = clock(
                options.device,
                lambda: case.measure(
                    layer.name, part, settings, None,  # noqa: B023
                    along[:, start + part.start : start + part.stop] @ basis,  # noqa: B023
                ),
            )  # fmt: skip
        share = layer.channels / len(part)
        moved += seconds * share
        weighted += drawn[0] / 2 * share
        parts.append(found)
    reference += [among, _reference(case, options)]
    ratios = [each / (first + moved) for each in reference]
    count, channels = codes.batch_size, generator.layout.num_editable
    whole = all(len(each.channels) == generator.layout.layer(each.layer).channels for each in parts)
    section = Section(
        f"{case.name}: fast relevance, {channels} channels x {count} codes, "
        f"{'all measured' if whole else 'weighted from some channels of every layer'}; reference loop "
        f"weighted from {_slow(options)} channels of every layer x {min(SLOW_CODES, count)} codes",
        ("reference loop", "derivatives", "moves", "fast in all", "codes moved per channel",
         "ratio (median of 3)", "ratios"),
        [(
            f"{statistics.median(reference):.0f} s", f"{first:.1f} s", f"{moved:.1f} s",
            f"{first + moved:.1f} s", f"{weighted / channels:.1f} of {count}",
            f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}",
        )],
        {
            "ratio": statistics.median(ratios), "seconds": first + moved, "codes moved": weighted / channels,
            "seconds of reference loop": statistics.median(reference),
        },
    )  # fmt: skip
    return RelevanceTable.from_parts(generator.layout, parts), section


class _counted:
    """Counts the images that a case's CLIP is shown."""

    def __init__(self, case: Case, drawn: list[int]) -> None:
        self.clip, self.drawn, self.real = case.clip, drawn, case.clip.embed_whole

    def __enter__(self) -> None:
        def embed(image: Tensor) -> Tensor:
            self.drawn[0] += len(image)
            return self.real(image)

        self.clip.embed_whole = embed  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        del self.clip.embed_whole


def _slow(options: Options) -> int:
    return SLOW if options.networks == "world" else 1


def _reference(case: Case, options: Options, only: str = "") -> float:
    """Return the reference loop's seconds for all codes and all channels of every layer, or of one."""
    count, total = min(SLOW_CODES, case.sampled.batch_size), 0.0
    codes = case.sampled.select(slice(0, count))
    for layer in case.generator.layout.editable:
        if only in ("", layer.name):
            some = case.middle(layer.name, _slow(options))
            seconds, _ = clock(
                options.device, lambda: reference_directions(case, codes, layer.name, some)  # noqa: B023
            )  # fmt: skip
            total += table_seconds(case, layer.name, seconds, len(some), count, case.sampled.batch_size)
    return total


def _agreement(case: Case, table: RelevanceTable) -> Section:
    exact, directions = exact_table(case), texts(case)
    truth = relevances(exact, directions)
    rows, figures = [], {}
    for name, ours, theirs in (
        ("fast and exact", table, truth),
        ("exact of first and of second half", case.tables[0], relevances(case.tables[1], directions)),
    ):
        found = relevances(ours, directions)
        cosines = [direction_cosines(case, found, theirs, beta) for beta in BETAS]
        rows.append((name, *(f"{each.mean():.4f} / {each.min():.3f} ({len(each)})" for each in cosines)))
        if ours is table:
            figures = {
                f"cosine at {beta:g}": each.mean().item() for beta, each in zip(BETAS, cosines, strict=True)
            }
    row = F.cosine_similarity(table.direction, exact.direction, dim=1)
    return Section(
        f"cosine of style directions over {PAIRS} prompt pairs, mean / lowest (pairs); "
        f"rows of the two tables: {row.mean():.4f} mean, {row.min():.4f} lowest",
        ("directions", *(f"beta {beta:g}" for beta in BETAS)), rows, figures,
    )  # fmt: skip
