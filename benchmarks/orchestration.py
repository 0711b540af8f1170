"""Prefect's overhead: the flow that builds a relevance table against a plain loop of the same core calls.

Both measure the same shards of the same codes on every core, a thread each; the loop writes nothing. One
half of its shards, every second one, runs before the flow and the other after it, so that a machine that
slows down slows down both. Wall time; the Prefect server shares the cores, as it does on one machine.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator

from benchmarks.networks import PSI, SEED, STATISTICS, Case, cases, keep_tables, loop, shards
from benchmarks.report import Options, Section
from styleclip_core.relevance import RelevanceTable
from styleclip_core.sampling import measure_statistics, sample_styles

_SHARD, _LONG = 12, 300.0


def measure(options: Options) -> Iterator[Section]:
    """Yield one row: the build, seconds of the loop, seconds of the flow, overhead, largest difference."""
    if options.networks != "world":
        return
    from styleclip.tasks.settings import Relevance

    (case,) = cases(options)
    settings = Relevance(samples=options.codes, channels_per_shard=_SHARD)
    wanted = shards(case, settings.channels_per_shard)
    parts, seconds = [], list[float]()

    def half(first: int) -> None:
        started = time.perf_counter()
        parts.extend(loop(case, wanted[first::2], settings))
        seconds.append(time.perf_counter() - started)

    started = time.perf_counter()
    for _ in [measure_statistics(s for _, _, s in _samples(case))]:
        pass
    sampling = time.perf_counter() - started
    half(0)
    flow, table = _flow(case, settings, options)
    half(1)
    plain = sampling + sum(seconds)
    exact = keep_tables(case, parts)
    difference = (table.direction - exact.direction).abs().max().item()
    overhead = (flow - plain) / plain
    longer = "" if plain >= _LONG else f" (shorter than {_LONG:.0f} s: ask for more --codes)"
    yield Section(
        f"relevance table, {case.generator.layout.num_editable} channels x {options.codes} codes in "
        f"{len(wanted)} shards, {os.cpu_count()} workers of one thread, "
        f"with {STATISTICS:,} codes of statistics{longer}",
        ("loop of core calls", "its halves", "flow", "overhead", "largest difference"),
        [(
            f"{plain:.1f} s", " + ".join(f"{each:.1f}" for each in (sampling, *seconds)), f"{flow:.1f} s",
            f"{overhead:+.1%}", f"{difference:.0e}",
        )],
        {"loop": plain, "flow": flow, "overhead": overhead, "difference": difference},
    )  # fmt: skip


def _samples(case: Case) -> Iterator[tuple]:  # type: ignore[type-arg]
    return sample_styles(case.generator, seed=SEED, sample_ids=range(STATISTICS), truncation_psi=PSI)


def _flow(case: Case, settings: object, options: Options) -> tuple[float, RelevanceTable]:
    os.environ.update(
        STYLECLIP_WORKERS=str(os.cpu_count()), PREFECT_LOGGING_LEVEL="CRITICAL",
        PREFECT_SERVER_ANALYTICS_ENABLED="false", DO_NOT_TRACK="1",
    )  # fmt: skip
    from prefect.testing.utilities import prefect_test_harness

    from styleclip import data
    from styleclip.flows.build_relevance import build_relevance
    from styleclip.tasks.directions.relevance import read_relevance
    from styleclip.tasks.running.run import run_here
    from styleclip.tasks.settings import Execution, Models, Relevance, Sampling

    if not isinstance(settings, Relevance):
        raise TypeError("settings of a relevance table are wanted")
    sampling = Sampling(seed=SEED, truncation_psi=PSI, statistics=STATISTICS, codes=options.codes)
    models = Models(generator=str(data.GENERATOR), clip=str(data.CLIP))
    with prefect_test_harness(server_startup_timeout=180), tempfile.TemporaryDirectory() as workspace:
        started = time.perf_counter()
        built = build_relevance(models, workspace, sampling, settings, Execution(device="cpu"))
        seconds = time.perf_counter() - started
        if built.table is None:
            raise RuntimeError("the relevance flow returned no table")
        return seconds, read_relevance(run_here(models), built.table.relevance)
