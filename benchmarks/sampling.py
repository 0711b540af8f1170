"""Sampling of style codes and their statistics: where the time goes, and against a plain loop.

The plain loop is the published script's way: draw all codes, keep them in one array, take its mean and
deviation, one code at a time through the networks. Statistics of both must agree.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.counting import count_quiet
from benchmarks.limits import copy_rate, product_rate
from benchmarks.networks import PSI, SEED, Case, cases, clock
from benchmarks.report import Options, Section
from styleclip_core.sampling import ChannelStatistics, measure_statistics, sample_styles, sample_z

CODES, SLOW, BATCH = 100_000, 2_000, 500


def measure(options: Options) -> Iterator[Section]:
    """Yield the stages of one batch after the other, and the whole against a loop and the limit."""
    for case in cases(options):
        shares = _stages(case, options)
        total = sum(shares.values())
        rows = [(name, f"{each:.2f} s", f"{each / total:.0%}") for name, each in shares.items()]
        yield Section(
            f"{case.name}: statistics of {CODES:,} codes in batches of {BATCH}, stage by stage",
            ("stage", "time", "share"), rows, dict(shares),
        )  # fmt: skip
        yield _whole(case, options)


def _stages(case: Case, options: Options) -> dict[str, float]:
    generator, spent = (
        case.generator,
        dict.fromkeys(("draw z", "map to w", "to style codes", "statistics"), 0.0),
    )
    total: ChannelStatistics | None = None
    for first in range(0, CODES, BATCH):
        found: list[Tensor] = []

        def step(name: str, work: Callable[[], Tensor]) -> Tensor:
            seconds, result = clock(options.device, work)
            spent[name] += seconds
            return result

        with torch.no_grad():
            ids = range(first, first + BATCH)
            z = step("draw z", lambda: sample_z(SEED, ids, generator.config.z_dim))  # noqa: B023
            w = step("map to w", lambda: generator.map(z.to(generator.device), truncation_psi=PSI))  # noqa: B023
            found.append(step("to style codes", lambda: generator.styles(w).flat()))  # noqa: B023
        started, part = clock(options.device, lambda: ChannelStatistics.from_codes(found[0]))  # noqa: B023
        again, total = clock(options.device, lambda: part if total is None else total.merge(part))  # noqa: B023
        spent["statistics"] += started + again
    return spent


def _whole(case: Case, options: Options) -> Section:
    generator, runs = case.generator, []
    for _ in range(options.rounds):
        slow, theirs = clock(options.device, lambda: _loop(case, SLOW))
        fast, ours = clock(
            options.device,
            lambda: measure_statistics(
                styles
                for _, _, styles in sample_styles(
                    generator, seed=SEED, sample_ids=range(CODES), truncation_psi=PSI, batch_size=BATCH
                )
            ),
        )
        runs.append((slow / SLOW, fast / CODES))
    few = measure_statistics(
        styles
        for _, _, styles in sample_styles(generator, seed=SEED, sample_ids=range(SLOW), truncation_psi=PSI)
    )
    difference = max((few.mean - theirs[0]).abs().max().item(), (few.std - theirs[1]).abs().max().item())
    if ours.n != CODES:
        raise RuntimeError(f"statistics of {ours.n} codes, not of {CODES}")
    slow, fast = (statistics.median(each[index] for each in runs) for index in (0, 1))
    z = sample_z(SEED, range(BATCH), generator.config.z_dim).to(generator.device)
    cost = count_quiet(lambda: generator.styles(generator.map(z)).flat()) * (1 / BATCH)
    drawing = np.random.Generator(np.random.Philox(key=[SEED, 0]))
    numbers = BATCH * generator.config.z_dim
    drawn = min(
        clock("cpu", lambda: drawing.standard_normal(numbers, np.float32))[0] / BATCH for _ in range(5)
    )
    least = (
        cost.flops / product_rate(options.device, options.rounds),
        cost.moved / copy_rate(options.device, options.rounds),
    )
    limit = drawn + max(least)
    return Section(
        f"{case.name}: codes per second; the limit is drawing normal numbers in one stream, then "
        "the larger of products and copies alone",
        ("plain loop, one at a time", "ours", f"ratio (median of {options.rounds})", "limit",
         "fraction of it", f"difference of mean and deviation over {SLOW:,}"),
        [(
            f"{1 / slow:,.0f}/s", f"{1 / fast:,.0f}/s ({CODES:,} in {fast * CODES:.1f} s)",
            f"{statistics.median(a / b for a, b in runs):.1f}", f"{1 / limit:,.0f}/s", f"{limit / fast:.0%}",
            f"{difference:.0e}",
        )],
        {"codes/s": 1 / fast, "ratio": statistics.median(a / b for a, b in runs), "fraction": limit / fast},
    )  # fmt: skip


@torch.no_grad()
def _loop(case: Case, wanted: int) -> tuple[Tensor, Tensor]:
    generator, rows = case.generator, []
    for number in range(wanted):
        z = sample_z(SEED, [number], generator.config.z_dim).to(generator.device)
        rows.append(generator.styles(generator.map(z, truncation_psi=PSI)).flat().cpu().numpy())
    codes = np.concatenate(rows).astype(np.float64)
    return torch.from_numpy(codes.mean(axis=0)), torch.from_numpy(codes.std(axis=0))
