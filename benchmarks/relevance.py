"""Exact relevance: the engine against the reference loop, on the same networks and codes.

Seconds are for all channels, from those of some channels in the middle of every layer, weighted by the
layer's channels; the reference loop takes fewer of them. Both round images to 8 bits here. A pixel whose
value lies on the edge of two levels may fall to either side, so rows are compared over all codes, as a
table holds them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch.nn.functional as F

from benchmarks.networks import Case, cases, clock
from benchmarks.reference import reference_directions, table_seconds
from benchmarks.report import Options, Section
from styleclip_core.relevance import RelevanceSettings

CODES, SLOW = 8, 3


def measure(options: Options) -> Iterator[Section]:
    """Yield a table per pair of networks."""
    for case in cases(options):
        rounds = [_round(case, options) for _ in range(options.rounds)]
        slow, fast = (statistics.median(each[index] for each in rounds) for index in (0, 1))
        ratios = [each[0] / each[1] for each in rounds]
        difference = _difference(case, options)
        layout, codes = case.generator.layout, min(CODES, options.codes)
        engine = sum(len(case.middle(layer.name, options.channels)) for layer in layout.editable)
        yield Section(
            f"{case.name}: exact relevance, {layout.num_editable} channels x {codes} codes, weighted from "
            f"{engine} (engine) and {_slow(options) * len(layout.editable)} (reference) measured channels",
            ("reference loop", "engine", f"ratio (median of {options.rounds})", "ratios",
             f"difference of unit rows, {case.sampled.batch_size} codes"),
            [(
                f"{slow:.1f} s", f"{fast:.1f} s", f"{statistics.median(ratios):.2f}",
                f"{min(ratios):.2f} to {max(ratios):.2f}", f"{difference:.1e}",
            )],
            {"ratio": statistics.median(ratios), "difference": difference},
        )  # fmt: skip


def _slow(options: Options) -> int:
    return SLOW if options.networks == "world" else 1


def _settings(options: Options) -> RelevanceSettings:
    return RelevanceSettings(batch_size=32 if options.device == "cpu" else 256, eight_bit=True)


def _round(case: Case, options: Options) -> tuple[float, float]:
    """Return the seconds of the reference loop and of the engine for all channels."""
    count, slow, fast = min(CODES, options.codes), 0.0, 0.0
    codes, settings = case.sampled.select(slice(0, count)), _settings(options)
    for layer in case.generator.layout.editable:
        part = case.middle(layer.name, options.channels)
        some = part[: _slow(options)]
        seconds, _ = clock(
            options.device, lambda: reference_directions(case, codes, layer.name, some)  # noqa: B023
        )  # fmt: skip
        slow += table_seconds(case, layer.name, seconds, len(some), count, count)
        seconds, _ = clock(
            options.device, lambda: case.measure(layer.name, part, settings, codes).direction  # noqa: B023
        )  # fmt: skip
        fast += table_seconds(case, layer.name, seconds, len(part), count, count)
    return slow, fast


def _difference(case: Case, options: Options) -> float:
    """Return the largest difference of unit rows, on the reference's channels and all codes."""
    largest = 0.0
    for layer in case.generator.layout.editable:
        some = case.middle(layer.name, _slow(options))
        expected = reference_directions(case, case.sampled, layer.name, some)
        found = case.measure(layer.name, some, _settings(options)).direction
        gap = F.normalize(found, dim=1) - F.normalize(expected, dim=1)
        largest = max(largest, gap.abs().max().item())
    return largest
