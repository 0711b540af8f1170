"""Style codes and the statistics of style space, in shards of seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce

import numpy as np
import pyarrow as pa
import torch
from prefect import task
from pydantic import BaseModel, ConfigDict

import styleclip_core
from styleclip_core.errors import ArtifactConflictError
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.sampling import ChannelStatistics, measure_statistics, sample_styles
from styleclip_core.style_space import StyleCode, StyleLayout
from tasks import models
from tasks.artifacts import (
    Provenance,
    artifact_uri,
    fingerprint,
    is_complete,
    part_name,
    read_table,
    to_matrix,
    vector_column,
    write_table,
)
from tasks.caching import PER_RUN
from tasks.overlap import computing
from tasks.progress import ShardResult
from tasks.settings import Sampling
from tasks.storage import join

STEP, VERSION = "sample-styles", "1"
_SHARD = 10_000  # codes per shard of statistics
_BATCH = 500


class SampledStyles(BaseModel):
    """Where the codes and statistics of one generator lie."""

    model_config = ConfigDict(frozen=True)

    codes: str
    statistics: str
    fingerprint: str
    generator: str


def plan(generator_hash: str, sampling: Sampling, workspace: str) -> SampledStyles:
    """Return where the artifacts of these settings lie; nothing is computed."""
    print_ = fingerprint(STEP, VERSION, _parameters(sampling), {"generator": generator_hash})
    folder = artifact_uri(workspace, "styles", print_)
    return SampledStyles(
        codes=join(folder, "codes.parquet"),
        statistics=join(folder, "statistics.parquet"),
        fingerprint=print_,
        generator=generator_hash,
    )


def _parameters(sampling: Sampling) -> dict[str, int | float | None]:
    """Return what decides the samples; a label that there is not names no other artifact."""
    return sampling.model_dump(exclude=None if sampling.label is not None else {"label"})


def shard_count(sampling: Sampling) -> int:
    """Return the number of shards that the statistics are cut into."""
    return math.ceil(sampling.statistics / _SHARD)


def provenance(planned: SampledStyles, sampling: Sampling, kind: str) -> Provenance:
    """Return what the Parquet metadata of these artifacts says."""
    return Provenance(
        kind=kind,
        fingerprint=planned.fingerprint,
        step=STEP,
        version=VERSION,
        parameters=_parameters(sampling),
        inputs={"generator": planned.generator},
        generator=planned.generator,
        clip="",
        code_version=styleclip_core.__version__,
    )


@task(name="sample-codes", cache_policy=PER_RUN, persist_result=True)
def sample_codes(planned: SampledStyles, generator: str, sampling: Sampling, device: str) -> ShardResult:
    """Sample and store the style codes that relevance is measured on."""
    if is_complete(planned.codes):
        return ShardResult(uri=planned.codes, rows=sampling.codes, reused=True)
    _write_codes(planned.codes, planned, generator, sampling, range(sampling.codes), device)
    return ShardResult(uri=planned.codes, rows=sampling.codes)


@task(name="sample-more-codes", cache_policy=PER_RUN, persist_result=True)
def sample_more_codes(
    planned: SampledStyles, generator: str, sampling: Sampling, first: int, last: int, device: str
) -> ShardResult:
    """Sample and store the style codes ``first`` to ``last - 1`` beside those that are there."""
    uri = join(artifact_folder(planned), f"codes-{first:06d}-{last:06d}.parquet")
    if is_complete(uri):
        return ShardResult(uri=uri, rows=last - first, reused=True)
    _write_codes(uri, planned, generator, sampling, range(first, last), device)
    return ShardResult(uri=uri, rows=last - first)


def _write_codes(
    uri: str, planned: SampledStyles, generator: str, sampling: Sampling, ids: range, device: str
) -> None:
    network = models.generator(generator, device)
    with computing(device), torch.no_grad():
        batches = list(_batches(network, sampling, ids))
    w = np.concatenate([latent.cpu().numpy() for _, latent, _ in batches])
    flat = np.concatenate([styles.flat().cpu().numpy() for _, _, styles in batches])
    table = pa.table({
        "sample_id": pa.array(ids, pa.int64()), "w": vector_column(w), "s": vector_column(flat),
    })  # fmt: skip
    write_table(uri, table, provenance(planned, sampling, "style-samples"))


@task(name="sample-shard", task_run_name="sample-shard-{shard}", cache_policy=PER_RUN, persist_result=True)
def sample_shard(
    planned: SampledStyles, generator: str, sampling: Sampling, shard: int, device: str
) -> ShardResult:
    """Sample one shard of seeds and keep the statistics of their style codes."""
    first, last = shard * _SHARD, min((shard + 1) * _SHARD, sampling.statistics)
    uri = join(artifact_folder(planned), "parts", part_name(shard, shard_count(sampling)))
    if is_complete(uri):
        return ShardResult(uri=uri, rows=last - first, reused=True)
    network = models.generator(generator, device)
    with computing(device), torch.no_grad():
        statistics = measure_statistics(
            styles for _, _, styles in _batches(network, sampling, range(first, last))
        )
    table = statistics_table(network.layout, statistics)
    write_table(uri, table, provenance(planned, sampling, "style-statistics-part"))
    return ShardResult(uri=uri, rows=last - first)


@task(name="merge-statistics", cache_policy=PER_RUN, persist_result=True)
def merge_statistics(
    planned: SampledStyles, generator: str, sampling: Sampling, parts: list[str], device: str
) -> ShardResult:
    """Merge the shards' statistics into one table, a row per style channel."""
    layout = models.generator(generator, device).layout
    if not is_complete(planned.statistics):
        merged = reduce(ChannelStatistics.merge, (read_statistics(uri) for uri in parts))
        table = statistics_table(layout, merged)
        write_table(planned.statistics, table, provenance(planned, sampling, "style-statistics"))
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


def artifact_folder(planned: SampledStyles) -> str:
    """Return the folder of one set of samples."""
    return planned.statistics.rsplit("/", 1)[0]


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
