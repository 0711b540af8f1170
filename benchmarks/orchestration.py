"""Prefect's overhead: the flow that builds a relevance table against a plain loop of the same core calls.

Both use one thread and one worker, the same codes, statistics and shards; the loop writes nothing.
Wall time, as Prefect's server runs in a process of its own.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator

import torch

import data
from styleclip_core import load_clip, load_generator
from styleclip_core.relevance import measure_channels
from styleclip_core.sampling import measure_statistics, sample_styles
from styleclip_core.style_space import StyleCode

SAMPLES, STATISTICS = 16, 5000


def measure_orchestration() -> Iterator[tuple[str, ...]]:
    """Yield one row: the build, seconds of the loop, seconds of the flow, overhead, largest difference."""
    os.environ.update(STYLECLIP_WORKERS="1", PREFECT_LOGGING_LEVEL="CRITICAL")
    from prefect.testing.utilities import prefect_test_harness

    from flows.build_relevance import build_relevance
    from tasks.relevance import read_relevance
    from tasks.settings import Execution, Models, Relevance, Sampling

    generator, clip = load_generator(data.GENERATOR), load_clip(data.CLIP)
    settings, sampling = Relevance(samples=SAMPLES), Sampling(truncation_psi=1.0, statistics=STATISTICS)
    started = time.perf_counter()
    expected = _loop(settings.channels_per_shard)
    loop = time.perf_counter() - started
    with prefect_test_harness(server_startup_timeout=180), tempfile.TemporaryDirectory() as workspace:
        models = Models(generator=str(data.GENERATOR), clip=str(data.CLIP))
        started = time.perf_counter()
        built = build_relevance(models, workspace, sampling, settings, Execution(device="cpu"))
        flow = time.perf_counter() - started
        if built.table is None:
            raise RuntimeError("the relevance flow returned no table")
        from tasks.identity import ModelHashes

        hashes = ModelHashes(generator=generator.fingerprint, clip=clip.fingerprint)
        table = read_relevance(built.table.relevance, generator.layout, hashes)
    difference = (table.direction - expected).abs().max().item()
    name = f"relevance table, {SAMPLES} codes"
    yield name, f"{loop:.0f} s", f"{flow:.0f} s", f"{(flow - loop) / loop:+.1%}", f"{difference:.0e}"


def _loop(size: int) -> torch.Tensor:
    from tasks.settings import Relevance

    settings = Relevance().settings()
    generator, clip = load_generator(data.GENERATOR), load_clip(data.CLIP)
    drawn = {"seed": 5, "truncation_psi": 1.0}
    measured = measure_statistics(
        styles
        for _, _, styles in sample_styles(generator, sample_ids=range(STATISTICS), **drawn)  # type: ignore[arg-type]
    )
    mean, std = (
        StyleCode.from_flat(generator.layout, each[None].float()) for each in (measured.mean, measured.std)
    )
    ((_, _, codes),) = sample_styles(generator, sample_ids=range(SAMPLES), **drawn)  # type: ignore[arg-type]
    rows = [
        measure_channels(
            generator, clip.embed_whole, codes, layer=layer.name,
            channels=range(first, min(first + size, layer.channels)),
            mean=mean[layer.name][0], std=std[layer.name][0], settings=settings,
        ).direction
        for layer in generator.layout.editable
        for first in range(0, layer.channels, size)
    ]  # fmt: skip
    return torch.cat(rows)
