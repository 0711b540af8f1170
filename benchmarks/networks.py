"""The networks that are measured, their style codes, clocks, and the exact table to hold others against."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.report import Options
from styleclip import data
from styleclip_core import load_clip, load_generator
from styleclip_core.models.clip import ClipModel
from styleclip_core.models.clip_openai import OpenAiNetwork
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig
from styleclip_core.relevance import (
    ChannelDirections,
    RelevanceSettings,
    RelevanceTable,
    measure_channels,
)
from styleclip_core.sampling import measure_statistics, sample_styles
from styleclip_core.style_space import StyleCode

_T = TypeVar("_T")
SEED, PSI, STATISTICS = 5, 1.0, 20_000


@dataclass(frozen=True, eq=False)
class Case:
    """Networks with style codes to measure them on.

    Attributes:
        name: What they are.
        generator: Draws the images.
        clip: Embeds them.
        mean: Mean of the style channels, as a code of one.
        std: Their standard deviation, likewise.
        sampled: Style codes.
        tables: Exact tables over two halves of the codes, once they are measured.
    """

    name: str
    generator: Generator
    clip: ClipModel
    mean: StyleCode
    std: StyleCode
    sampled: StyleCode
    tables: list[RelevanceTable] = field(default_factory=list)

    @property
    def deviations(self) -> Tensor:
        """Return the standard deviation of every editable channel, ``[N]``."""
        return torch.cat([self.std[layer.name][0] for layer in self.generator.layout.editable]).cpu()

    def middle(self, layer: str, count: int) -> range:
        """Return some channels from the middle of a layer; all of them for 0."""
        channels = self.generator.layout.layer(layer).channels
        size = min(count or channels, channels)
        return range((channels - size) // 2, (channels - size) // 2 + size)

    def measure(
        self,
        layer: str,
        channels: Iterable[int],
        settings: RelevanceSettings,
        codes: StyleCode | None = None,
        expected: Tensor | None = None,
    ) -> ChannelDirections:
        """Measure channels of a layer with the engine."""
        return measure_channels(
            self.generator, self.clip.embed_whole, self.sampled if codes is None else codes, layer=layer,
            channels=channels, mean=self.mean[layer][0], std=self.std[layer][0], settings=settings,
            expected=expected,
        )  # fmt: skip


@lru_cache(maxsize=4)
def cases(options: Options) -> list[Case]:
    """Return the networks of a run, loaded once."""
    if options.networks == "world":
        generator, clip = load_generator(data.GENERATOR), load_clip(data.CLIP)
        return [case_of("embedded world, 64 px", generator.to(options.device), clip, options.codes)]
    clip = generated_clip(options.device)
    found = []
    for resolution in options.resolutions:
        torch.manual_seed(0)
        config = GeneratorConfig(resolution, channel_max=options.width)
        generator = Generator(config).to(options.device).eval().requires_grad_(False)
        name = (
            f"config-f of at most {options.width} channels, {resolution} px, and ViT-B/32, generated weights"
        )
        found.append(case_of(name, generator, clip, options.codes))
    return found


def generated_clip(device: str) -> ClipModel:
    """Return a CLIP of ViT-B/32's architecture with generated weights, in half precision on a GPU."""
    from clip.model import CLIP, convert_weights

    torch.manual_seed(1)
    model = CLIP(512, 224, 12, 768, 32, 77, 49408, 512, 8, 12).float()
    if device != "cpu":
        convert_weights(model)
    network = OpenAiNetwork(model)
    return ClipModel(network, name="ViT-B/32 generated", fingerprint="", device=torch.device(device))


def case_of(
    name: str, generator: Generator, clip: ClipModel, codes: int, statistics_of: int = STATISTICS
) -> Case:
    """Return networks with ``codes`` style codes, and the statistics of as many as ``statistics_of``."""

    def sample(count: int) -> Iterator[StyleCode]:
        for _, _, styles in sample_styles(generator, seed=SEED, sample_ids=range(count), truncation_psi=PSI):
            yield styles

    statistics = measure_statistics(sample(statistics_of))
    mean, std = (
        StyleCode.from_flat(generator.layout, each[None].float()).to(generator.device)
        for each in (statistics.mean, statistics.std)
    )
    flat = torch.cat([styles.flat() for styles in sample(codes)])
    return Case(name, generator, clip, mean, std, StyleCode.from_flat(generator.layout, flat))


def clock(device: str, work: Callable[[], _T]) -> tuple[float, _T]:
    """Return seconds and result: the process's own time on a CPU, wall time where a GPU computes."""
    if device == "cpu":
        started = time.process_time()
        result = work()
        return time.process_time() - started, result
    torch.cuda.synchronize()
    started = time.perf_counter()
    result = work()
    torch.cuda.synchronize()
    return time.perf_counter() - started, result


Shard = tuple[str, int, int]


def shards(case: Case, size: int) -> list[Shard]:
    """Cut all editable channels into shards: layer, first channel, one after the last."""
    return [
        (layer.name, first, min(first + size, layer.channels))
        for layer in case.generator.layout.editable
        for first in range(0, layer.channels, size)
    ]


def loop(
    case: Case, some: Sequence[Shard], settings: RelevanceSettings
) -> list[tuple[ChannelDirections, ChannelDirections]]:
    """Measure shards with plain calls of the core, a thread per core, each half of the codes by itself."""
    count = case.sampled.batch_size
    halves = [case.sampled.select(slice(*each)) for each in ((0, count // 2), (count // 2, count))]

    def measure(shard: Shard) -> tuple[ChannelDirections, ChannelDirections]:
        layer, first, last = shard
        a, b = (case.measure(layer, range(first, last), settings, codes) for codes in halves)
        return a, b

    workers = 1 if torch.cuda.is_available() else os.cpu_count()
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(measure, some))


def keep_tables(case: Case, parts: Sequence[tuple[ChannelDirections, ChannelDirections]]) -> RelevanceTable:
    """Keep the tables over both halves of the codes and return their union."""
    layout = case.generator.layout
    case.tables[:] = [RelevanceTable.from_parts(layout, (pair[half] for pair in parts)) for half in (0, 1)]
    return exact_table(case)


def exact_table(case: Case) -> RelevanceTable:
    """Return the exact table over all codes; measured now, if no benchmark of this run has before."""
    if not case.tables:
        keep_tables(case, loop(case, shards(case, 24), RelevanceSettings(batch_size=32)))
    return case.tables[0].merge(case.tables[1])
