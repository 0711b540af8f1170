"""Style codes and the statistics of style space, in shards of seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict

from styleclip.tasks.artifacts import (
    Recipe,
    is_complete,
    part_name,
    read_table,
    to_matrix,
    vector_column,
    write_table,
)
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.overlap import accounting, computing
from styleclip.tasks.running.progress import ShardResult
from styleclip.tasks.running.rates import Spent, device_name
from styleclip.tasks.running.run import Run
from styleclip.tasks.settings import Sampling
from styleclip.tasks.storage import join
from styleclip_core.errors import ArtifactConflictError
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.sampling import ChannelStatistics, measure_statistics, sample_styles
from styleclip_core.style_space import StyleCode, StyleLayout

STEP, VERSION = "sample-styles", "1"
_SHARD = 10_000  # codes per shard of statistics
_BATCH = 500


class SampledStyles(BaseModel):
    """Where the codes and statistics of one generator lie.

    Attributes:
        codes: Style codes that relevance is measured on.
        statistics: Mean and deviation of every style channel.
        recipe: What decides them.
        settings: How they are sampled.
    """

    model_config = ConfigDict(frozen=True)

    codes: str
    statistics: str
    recipe: Recipe
    settings: Sampling

    @property
    def fingerprint(self) -> str:
        """Return the name of codes and statistics."""
        return self.recipe.fingerprint

    @property
    def folder(self) -> str:
        """Return where both lie."""
        return self.statistics.rsplit("/", 1)[0]


def plan(run: Run, sampling: Sampling) -> SampledStyles:
    """Return where the artifacts of these settings lie; nothing is computed."""
    # without a label, artifacts keep the names they had before there were labels; what CLIP looks at is not
    # among the codes that are stored here
    left_out = {"looked_at"} | ({"label"} if sampling.label is None else set())
    parameters = sampling.model_dump(exclude=left_out)
    recipe = Recipe(STEP, VERSION, parameters, {"generator": run.hashes.generator}, run.hashes.generator)

    folder = recipe.folder(run.workspace, "styles")
    return SampledStyles(
        codes=join(folder, "codes.parquet"),
        statistics=join(folder, "statistics.parquet"),
        recipe=recipe,
        settings=sampling,
    )


def shard_count(sampling: Sampling) -> int:
    """Return the number of shards that the statistics are cut into."""
    return math.ceil(sampling.statistics / _SHARD)


@unit_of_work("sample-codes")
def sample_codes(run: Run, planned: SampledStyles) -> ShardResult:
    """Sample and store the style codes that relevance is measured on."""
    return _write_codes(run, planned, planned.codes, range(planned.settings.codes))


@unit_of_work("sample-more-codes")
def sample_more_codes(run: Run, planned: SampledStyles, first: int, last: int) -> ShardResult:
    """Sample and store the style codes ``first`` to ``last - 1`` beside those that are there."""
    return _write_codes(run, planned, more_codes_uri(planned, first, last), range(first, last))


def shard_of(planned: SampledStyles, shard: int) -> tuple[str, range]:
    """Return where the statistics of a shard of seeds lie, and its seeds."""
    sampling = planned.settings
    ids = range(shard * _SHARD, min((shard + 1) * _SHARD, sampling.statistics))
    return join(planned.folder, "parts", part_name(shard, shard_count(sampling))), ids


def more_codes_uri(planned: SampledStyles, first: int, last: int) -> str:
    """Return where the style codes ``first`` to ``last - 1`` lie that are sampled for a larger table."""
    return join(planned.folder, f"codes-{first:06d}-{last:06d}.parquet")


def work(run: Run, codes: int, seconds: float = 0.0) -> Spent:
    """Return the sampling of style codes as it is measured and estimated."""
    side = run.generator.image_size[0]
    return Spent(kind="sample", device=device_name(run.device), resolution=side, units=codes, seconds=seconds)


def _write_codes(run: Run, planned: SampledStyles, uri: str, ids: range) -> ShardResult:
    if is_complete(uri):
        return ShardResult(uri=uri, rows=len(ids), reused=True)

    with accounting() as account, computing(run.device), torch.no_grad():
        batches = list(_batches(run.generator, planned.settings, ids))
    w = np.concatenate([latent.cpu().numpy() for _, latent, _ in batches])
    flat = np.concatenate([styles.flat().cpu().numpy() for _, _, styles in batches])

    table = pa.table({
        "sample_id": pa.array(ids, pa.int64()), "w": vector_column(w), "s": vector_column(flat),
    })  # fmt: skip
    write_table(uri, table, planned.recipe.made("style-samples"))
    spent = work(run, len(ids), account.seconds)
    return ShardResult(uri=uri, rows=len(ids), tried=len(ids), spent=(spent,))


@unit_of_work("sample-shard", "sample-shard-{shard}")
def sample_shard(run: Run, planned: SampledStyles, shard: int) -> ShardResult:
    """Sample one shard of seeds and keep the statistics of their style codes."""
    sampling, (uri, ids) = planned.settings, shard_of(planned, shard)
    if is_complete(uri):
        return ShardResult(uri=uri, rows=len(ids), reused=True)

    generator = run.generator
    with accounting() as account, computing(run.device), torch.no_grad():
        statistics = measure_statistics(styles for _, _, styles in _batches(generator, sampling, ids))

    table = statistics_table(generator.layout, statistics)
    write_table(uri, table, planned.recipe.made("style-statistics-part"))
    spent = work(run, len(ids), account.seconds)
    return ShardResult(uri=uri, rows=len(ids), tried=len(ids), spent=(spent,))


@unit_of_work("merge-statistics")
def merge_statistics(run: Run, planned: SampledStyles, parts: list[str]) -> ShardResult:
    """Merge the shards' statistics into one table, a row per style channel."""
    layout = run.generator.layout

    if not is_complete(planned.statistics):
        # always in the order of the parts, so that sums round alike
        merged = reduce(ChannelStatistics.merge, (read_statistics(uri) for uri in parts))
        table = statistics_table(layout, merged)
        write_table(planned.statistics, table, planned.recipe.made("style-statistics"))
    return ShardResult(uri=planned.statistics, rows=layout.num_channels)


def statistics_table(layout: StyleLayout, statistics: ChannelStatistics) -> pa.Table:
    """Return statistics as a table: a row per style channel in the layout's order, toRGB too."""
    return pa.table({
        "layer": [layer.name for layer in layout.layers for _ in range(layer.channels)],
        "channel": pa.array([c for layer in layout.layers for c in range(layer.channels)], pa.int32()),
        "is_torgb": [layer.is_torgb for layer in layout.layers for _ in range(layer.channels)],
        "mean": statistics.mean.numpy(),
        "std": statistics.std.numpy(),
        "min": statistics.min.numpy(),
        "max": statistics.max.numpy(),
        "m2": statistics.m2.numpy(),
        "n": pa.array([statistics.n] * layout.num_channels, pa.int64()),
    })  # fmt: skip


def read_statistics(uri: str) -> ChannelStatistics:
    """Read what ``statistics_table`` wrote."""
    table = read_table(uri, columns=["mean", "m2", "min", "max", "n"])
    # copied, as Arrow's memory is read-only and torch knows no such tensors
    columns = {name: torch.from_numpy(table[name].to_numpy().copy()) for name in ("mean", "m2", "min", "max")}
    return ChannelStatistics(n=int(table["n"][0].as_py()), **columns)


def read_codes(uri: str, layout: StyleLayout, first: int, count: int) -> StyleCode:
    """Read the stored style codes of the samples ``first`` to ``first + count - 1``.

    Raises:
        ArtifactConflictError: If some of them are not stored.
    """
    table = read_table(uri, columns=["sample_id", "s"])
    ids = table["sample_id"].to_numpy()
    kept = (ids >= first) & (ids < first + count)
    if kept.sum() != count:
        raise ArtifactConflictError(
            f"{uri} holds {len(table)} style codes, {kept.sum()} of the {count} from {first} that are asked "
            "for; sample more codes"
        )

    return StyleCode.from_flat(layout, torch.from_numpy(to_matrix(table, "s")[kept].copy()))


def _batches(
    network: Generator, sampling: Sampling, ids: range
) -> Iterator[tuple[list[int], torch.Tensor, StyleCode]]:
    return sample_styles(
        network,
        seed=sampling.seed,
        sample_ids=ids,
        truncation_psi=sampling.truncation_psi,
        truncation_cutoff=sampling.truncation_cutoff,
        label=sampling.label,
        batch_size=_BATCH,
    )
