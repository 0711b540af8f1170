"""What is found by descent: optimized codes, a mapper, tuned generators; seconds of a step, times the steps.

The networks compute as by default: float32, where torch's own default lets convolutions use TF32. The latent
mapper is also trained in bfloat16, which it has an option for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice

import torch

from benchmarks.gpu.networks import Bench
from benchmarks.gpu.parts import Goal, Row
from benchmarks.gpu.timing import Timing, mean_of, seconds, timed
from styleclip_core.mapper_training import PRESETS as MAPPER_PRESETS
from styleclip_core.mapper_training import MapperTraining
from styleclip_core.optimization import (
    PRESETS,
    OptimizationSettings,
    fitting_chunk,
    optimize,
    published_embedding,
)
from styleclip_core.pivotal import PivotalSettings, tune

_PER_EDIT, _MAPPER = Goal(2.0), Goal(15.0)
_NOTEBOOK = 40  # steps of the published notebook, where its code has 300
_MOST_STEPS = 1_000_000  # more than are timed, so that nothing is validated


def optimization(bench: Bench) -> Iterator[Row]:
    """Yield the seconds of an optimized edit, many at once, by how many are drawn at once."""
    side, count = bench.sizes.resolutions[-1], bench.sizes.pairs
    case, published = bench.case(side), PRESETS["published"]
    codes, texts = bench.codes(count, side), bench.texts(count, case.clip.embedding_dim)

    for chunk in sorted({min(fitting_chunk(count), count), count}):
        settings = replace(published, steps=bench.sizes.steps, chunk=chunk)
        work = partial(_optimize, bench, settings, codes, texts)
        step = timed(bench.device, work, rounds=bench.sizes.rounds).per(bench.sizes.steps * count)
        how = f"{count} pairs of {side} px, {chunk} drawn at once, CLIP and L2 terms"
        yield _row(f"step of a pair, chunks of {chunk}", step, 1e3, "ms", how)
        for steps in (_NOTEBOOK, published.steps):
            goal = None if bench.small else _PER_EDIT
            yield _row(f"an edit of {steps} steps, chunks of {chunk}", step.per(1 / steps), 1, "s", how, goal)


def _optimize(bench: Bench, settings: OptimizationSettings, codes: torch.Tensor, texts: torch.Tensor) -> None:
    case = bench.case(bench.sizes.resolutions[-1])
    deque(optimize(case.generator, case.clip.embed_whole, codes, texts, settings), maxlen=0)


def mapper(bench: Bench) -> Iterator[Row]:
    """Yield the milliseconds of a step of the published training, and the minutes of all its steps."""
    side, published = bench.sizes.resolutions[-1], MAPPER_PRESETS["published"]
    case = bench.case(side)
    identity = bench.identity() if bench.sizes.identity else None
    codes, text = bench.codes(8, side), bench.texts(1, case.clip.embedding_dim)[0]

    for precision in ("float32", "bfloat16"):
        settings = replace(published, steps=_MOST_STEPS, validate_every=_MOST_STEPS, precision=precision)
        if identity is None:
            settings = replace(settings, identity_weight=0.0)
        training = MapperTraining(
            case.generator, published_embedding(case.clip), text, codes, codes[:1], settings,
            embed_identity=None if identity is None else identity.embed,
        )  # fmt: skip
        steps = training.run()

        # the first steps choose kernels and make the moments
        _step(steps, 2)
        count = 5 * bench.sizes.steps
        runs = [seconds(bench.device, partial(_step, steps, count)) for _ in range(bench.sizes.rounds)]
        found = mean_of(runs).per(count)
        terms = "CLIP and L2 terms" if identity is None else "CLIP, L2 and identity terms"
        how = f"codes of {side} px, {settings.batch_size} a step, {terms}"
        yield _row(f"step, {precision}", found, 1e3, "ms", how)

        whole, goal = found.per(1 / published.steps), None if bench.small else _MAPPER
        yield _row(f"training of {published.steps:,} steps, {precision}", whole, 1 / 60, "min", how, goal)


def _step(steps: Iterator[object], count: int) -> None:
    deque(islice(steps, count), maxlen=0)


def pivotal(bench: Bench) -> Iterator[Row]:
    """Yield the milliseconds of a step of pivotal tuning, and the seconds of an image."""
    side, usual = bench.sizes.resolutions[-1], PivotalSettings()
    count = min(usual.chunk, bench.sizes.pairs)
    settings = replace(usual, steps=bench.sizes.steps - 1, chunk=count)
    codes, target = bench.codes(count, side), bench.images(count, side).clamp(-1, 1)

    def work() -> None:
        deque(tune(bench.case(side).generator, target, codes, settings), maxlen=0)

    step = timed(bench.device, work, rounds=bench.sizes.rounds).per(bench.sizes.steps * count)
    how = f"{count} images of {side} px at once, pixels and locality, rank {usual.rank}"
    yield _row("step of an image", step, 1e3, "ms", how)
    yield _row(f"an image, {usual.steps} steps", step.per(1 / usual.steps), 1, "s", how)


def _row(what: str, found: Timing, factor: float, unit: str, how: str, goal: Goal | None = None) -> Row:
    return Row(what, found.seconds * factor, unit, found.error * factor, goal, how)
