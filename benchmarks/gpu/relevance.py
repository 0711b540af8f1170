"""Relevance tables, extrapolated from a sample, beside the published loop on the same device.

A table is over a hundred codes. What a code costs is the same for all, so few are measured; what a channel
costs is the same for all of a layer, so some of every layer are.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.networks import Bench
from benchmarks.gpu.parts import Goal, Row
from benchmarks.gpu.timing import Timing, mean_of, seconds
from benchmarks.networks import Case
from benchmarks.reference import reference_directions
from styleclip_core.derivatives import embedding_basis, unit_derivatives
from styleclip_core.relevance import RelevanceSettings, measure_channels
from styleclip_core.settings.relevance import Precision
from styleclip_core.style_space import StyleLayer

CODES = 100
# fast mode as the pipeline has it by default
DIRECTIONS, TOLERANCE, MINIMUM = 64, 0.15, 4
# codes that fast mode moved of a hundred on the embedded world: docs/measured.md
MOVED_ON_WORLD = 10.8
_EXACT, _FAST, _RATIO = Goal(15.0), Goal(3.0), Goal(50.0, at_most=False)


def exact(bench: Bench) -> Iterator[Row]:
    """Yield the minutes of an exact table, the largest generator first."""
    for resolution, moves in reversed(list(zip(bench.sizes.resolutions, bench.sizes.moves, strict=True))):
        case = bench.case(resolution)
        precisions: tuple[Precision, ...] = ("bfloat16", "float32")
        for precision in precisions:
            settings = RelevanceSettings(batch_size=moves, precision=precision)

            # the first round warms up: kernels are chosen for every shape
            _code(bench, case, settings, 0)
            rounds = [_code(bench, case, settings, number) for number in range(bench.sizes.rounds)]
            found = mean_of(rounds)
            table = Timing(found.seconds * CODES, found.error * CODES)
            bench.tables[resolution, precision] = table

            measured = sum(_sample(layer, moves)[1] for layer in case.generator.layout.editable)
            channels = case.generator.layout.num_editable
            how = (
                f"{channels:,} channels x {CODES} codes, from {measured:,} channels x 1 code in "
                f"{bench.sizes.rounds} rounds, {moves} images at once"
            )
            yield _minutes(
                bench, f"exact table, {resolution} px, {precision}", table, resolution, _EXACT, how
            )
            yield Row(
                f"exact table, {resolution} px, {precision}: images", *table.rate(2 * channels * CODES)[:1],
                "images/s", table.rate(2 * channels * CODES)[1],
            )  # fmt: skip


def _sample(layer: StyleLayer, moves: int) -> tuple[int, int]:
    """Return two numbers of channels to measure: of one batch, and of two if the layer has as many."""
    one = min(layer.channels, moves // 2)
    return one, min(layer.channels, 2 * one)


def _code(bench: Bench, case: Case, settings: RelevanceSettings, number: int) -> float:
    """Return the seconds of one code's moves of all channels.

    What all channels of a code share is paid once. So seconds are a line over the channels of a layer,
    through those of one batch and of two.
    """
    total, codes = 0.0, case.sampled.select(slice(number, number + 1))
    for layer in case.generator.layout.editable:
        few, more = _sample(layer, settings.batch_size)

        def of(channels: int, name: str = layer.name) -> float:
            some = case.middle(name, channels)
            return seconds(bench.device, lambda: case.measure(name, some, settings, codes))

        least = of(few)
        slope = (of(more) - least) / (more - few) if more > few else 0.0
        total += least + slope * (layer.channels - few)
    return total


def loop(bench: Bench) -> Iterator[Row]:
    """Yield the minutes of the published loop, and how many times as fast the exact table was."""
    for resolution in reversed(bench.sizes.resolutions):
        case, sizes = bench.case(resolution), bench.sizes
        layers = case.generator.layout.editable
        chosen = layers[:: max(1, len(layers) // sizes.loop_layers)][: sizes.loop_layers]
        codes = case.sampled.select(slice(0, sizes.loop_codes))

        # an image costs the same whichever channel moves: it is drawn whole, alone, and taken through PIL
        reference_directions(case, codes, chosen[0].name, [0])
        runs = [
            seconds(bench.device, partial(reference_directions, case, codes, layer.name, [0]))
            for layer in chosen
            for _ in range(sizes.rounds)
        ]
        found = mean_of(runs).per(2 * sizes.loop_codes)
        images = 2 * case.generator.layout.num_editable * CODES
        table = Timing(found.seconds * images, found.error * images)

        how = (
            f"{case.generator.layout.num_editable:,} channels x {CODES} codes, from 1 channel of "
            f"{len(chosen)} layers x {sizes.loop_codes} codes in {sizes.rounds} rounds"
        )
        yield _minutes(bench, f"published loop, {resolution} px", table, resolution, None, how)
        yield from _ratios(bench, resolution, table)


def _ratios(bench: Bench, resolution: int, table: Timing) -> Iterator[Row]:
    for (side, precision), ours in bench.tables.items():
        if side != resolution:
            continue
        ratio = table.seconds / ours.seconds
        error = ratio * ((table.error / table.seconds) ** 2 + (ours.error / ours.seconds) ** 2) ** 0.5
        yield Row(
            f"published loop over exact table, {resolution} px, {precision}", ratio, "times", error,
            _goal(bench, resolution, _RATIO),
        )  # fmt: skip


def fast(bench: Bench) -> Iterator[Row]:
    """Yield the minutes of a fast table: of its derivatives, of the moves of a code, of both together."""
    for resolution, moves in reversed(list(zip(bench.sizes.resolutions, bench.sizes.moves, strict=True))):
        case, sizes = bench.case(resolution), bench.sizes
        codes = case.sampled.select(slice(0, sizes.fast_codes))
        embed = case.clip.embed_whole
        basis = embedding_basis(case.generator, embed, case.sampled, DIRECTIONS)

        # a batch to warm up, then the codes whose moves are measured too
        list(unit_derivatives(case.generator, embed, codes, basis))
        along = list[Tensor]()

        def differentiate(case: Case = case, basis: Tensor = basis, along: list[Tensor] = along) -> None:
            along += unit_derivatives(case.generator, case.clip.embed_whole, codes, basis)  # noqa: B023

        runs = [seconds(bench.device, differentiate) for _ in range(sizes.rounds)]
        expected = torch.cat(along)[: sizes.fast_codes]
        each = mean_of(runs).per(sizes.fast_codes)
        first = Timing(each.seconds * CODES, each.error * CODES)
        how = (
            f"{CODES} codes x {len(basis)} directions, from {sizes.fast_codes} codes in {sizes.rounds} rounds"
        )
        yield _minutes(bench, f"derivatives, {resolution} px", first, resolution, None, how)

        settings = RelevanceSettings(batch_size=moves, tolerance=TOLERANCE, minimum=MINIMUM)
        rounds = [_moves(bench, case, settings, expected, basis) for _ in range(sizes.rounds + 1)][1:]
        code = mean_of([spent / shown for spent, shown in rounds])
        shown = statistics.fmean(shown for _, shown in rounds)
        how = (
            f"{sizes.fast_channels} channels of every layer, weighted, in {sizes.rounds} rounds; {shown:.1f} "
            f"codes were drawn for each of {sizes.fast_codes}, with those that fill batches up"
        )
        yield _minutes(
            bench, f"moves of all channels of a code, {resolution} px", code, resolution, None, how
        )

        whole = Timing(
            first.seconds + code.seconds * MOVED_ON_WORLD,
            (first.error**2 + (code.error * MOVED_ON_WORLD) ** 2) ** 0.5,
        )
        how = f"both together if {MOVED_ON_WORLD:g} codes are moved, as on the embedded world"
        yield _minutes(bench, f"fast table, {resolution} px", whole, resolution, _FAST, how)


def _moves(
    bench: Bench, case: Case, settings: RelevanceSettings, expected: Tensor, basis: Tensor
) -> tuple[float, float]:
    """Return the seconds for all channels, and the codes moved for each, from some of every layer."""
    total, pairs, shown = 0.0, 0.0, [0]
    codes = case.sampled.select(slice(0, len(expected)))

    def embed(images: Tensor) -> Tensor:
        shown[0] += len(images)
        return case.clip.embed_whole(images)

    for layer in case.generator.layout.editable:
        part = case.middle(layer.name, bench.sizes.fast_channels)
        start = case.generator.layout.editable_slices[layer.name].start
        along = expected[:, start + part.start : start + part.stop] @ basis

        def measure(layer: StyleLayer = layer, part: range = part, along: Tensor = along) -> None:
            measure_channels(
                case.generator, embed, codes, layer=layer.name, channels=part,
                mean=case.mean[layer.name][0], std=case.std[layer.name][0], settings=settings, expected=along,
            )  # fmt: skip

        shown[0] = 0
        share = layer.channels / len(part)
        total += seconds(bench.device, measure) * share
        pairs += shown[0] / 2 * share
    return total, pairs / case.generator.layout.num_editable


def _minutes(bench: Bench, what: str, found: Timing, resolution: int, goal: Goal | None, how: str) -> Row:
    return Row(what, found.seconds / 60, "min", found.error / 60, _goal(bench, resolution, goal), how)


def _goal(bench: Bench, resolution: int, goal: Goal | None) -> Goal | None:
    """Return a goal where it holds: for the largest generator, and not in a rehearsal."""
    return goal if resolution == bench.sizes.resolutions[-1] and not bench.small else None
