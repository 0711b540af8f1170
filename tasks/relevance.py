"""The relevance table, measured in shards of channels and merged."""

from __future__ import annotations

import pyarrow as pa
import torch
from prefect import task
from pydantic import BaseModel, ConfigDict

import styleclip_core
from styleclip_core.errors import ArtifactConflictError
from styleclip_core.relevance import ChannelDirections, RelevanceTable, measure_channels
from styleclip_core.style_space import StyleLayout
from tasks import models
from tasks.artifacts import (
    Provenance,
    artifact_uri,
    fingerprint,
    is_complete,
    part_name,
    read_provenance,
    read_table,
    to_matrix,
    vector_column,
    write_table,
)
from tasks.caching import PER_RUN
from tasks.identity import ModelHashes
from tasks.progress import ShardResult
from tasks.sampling import SampledStyles, read_codes, read_statistics
from tasks.settings import Models, Relevance
from tasks.storage import join

STEP, VERSION = "build-relevance", "2"


class ChannelShard(BaseModel):
    """Some channels of one layer, the unit of work."""

    model_config = ConfigDict(frozen=True)

    number: int
    total: int
    layer: str
    first: int
    last: int


class RelevancePlan(BaseModel):
    """Everything a shard needs to know, and where its table will lie."""

    model_config = ConfigDict(frozen=True)

    folder: str
    table: str
    fingerprint: str
    models: Models
    hashes: ModelHashes
    styles: SampledStyles
    settings: Relevance


def plan(
    workspace: str, chosen: Models, hashes: ModelHashes, styles: SampledStyles, settings: Relevance
) -> RelevancePlan:
    """Return where the table of these settings lies; nothing is computed."""
    parameters = settings.model_dump(include={"samples", "strength", "centre", "precision"})
    inputs = {"generator": hashes.generator, "clip": hashes.clip, "styles": styles.fingerprint}
    print_ = fingerprint(STEP, VERSION, parameters, inputs)
    folder = artifact_uri(workspace, "relevance", print_)
    return RelevancePlan(
        folder=folder,
        table=join(folder, "relevance.parquet"),
        fingerprint=print_,
        models=chosen,
        hashes=hashes,
        styles=styles,
        settings=settings,
    )


def shards(layout: StyleLayout, settings: Relevance) -> list[ChannelShard]:
    """Cut the editable channels into shards that never cross a layer."""
    size = settings.channels_per_shard
    ranges = [
        (layer.name, first, min(first + size, layer.channels))
        for layer in layout.editable
        for first in range(0, layer.channels, size)
    ]
    return [
        ChannelShard(number=number, total=len(ranges), layer=layer, first=first, last=last)
        for number, (layer, first, last) in enumerate(ranges)
    ]


@task(
    name="measure-channels",
    task_run_name="measure-{shard.layer}-{shard.first}-{shard.last}",
    cache_policy=PER_RUN,
    persist_result=True,
)
def measure_shard(planned: RelevancePlan, shard: ChannelShard, device: str) -> ShardResult:
    """Measure the CLIP directions of one shard of channels."""
    name = f"{planned.settings.channels_per_shard}-{part_name(shard.number, shard.total)}"
    uri, rows = join(planned.folder, "parts", name), shard.last - shard.first
    if is_complete(uri):
        return ShardResult(uri=uri, rows=rows, reused=True)
    generator = models.generator(planned.models.generator, device)
    clip = models.clip(planned.models.clip, device)
    layout = generator.layout
    statistics = read_statistics(planned.styles.statistics)
    offset = sum(layer.channels for layer in layout.layers[: list(layout.by_name).index(shard.layer)])
    part = slice(offset, offset + layout.layer(shard.layer).channels)
    measured = measure_channels(
        generator,
        clip.embed_whole,
        read_codes(planned.styles.codes, layout, planned.settings.samples).to(device),
        layer=shard.layer,
        channels=range(shard.first, shard.last),
        mean=statistics.mean[part].float().to(device),
        std=statistics.std[part].float().to(device),
        settings=planned.settings.settings(),
    )
    write_table(uri, _part_table(measured), provenance(planned, "relevance-part"))
    return ShardResult(uri=uri, rows=rows)


@task(name="merge-relevance", cache_policy=PER_RUN, persist_result=True)
def merge_relevance(planned: RelevancePlan, parts: list[str], device: str) -> ShardResult:
    """Merge the shards into the relevance table."""
    layout = models.generator(planned.models.generator, device).layout
    if not is_complete(planned.table):
        table = RelevanceTable.from_parts(layout, (_read_part(uri) for uri in parts))
        write_table(planned.table, relevance_table(table), provenance(planned, "relevance"))
    return ShardResult(uri=planned.table, rows=layout.num_editable)


def provenance(planned: RelevancePlan, kind: str) -> Provenance:
    """Return what the Parquet metadata of the table and its parts says."""
    settings, styles = planned.settings, planned.styles
    return Provenance(
        kind=kind,
        fingerprint=planned.fingerprint,
        step=STEP,
        version=VERSION,
        parameters={
            **settings.model_dump(include={"samples", "strength", "centre", "precision"}),
            "sample_ranges": [[0, settings.samples]],
        },
        inputs={"styles": styles.fingerprint, "statistics": styles.statistics, "codes": styles.codes},
        generator=planned.hashes.generator,
        clip=planned.hashes.clip,
        code_version=styleclip_core.__version__,
    )


def relevance_table(table: RelevanceTable) -> pa.Table:
    """Return the table as Parquet columns: a row per editable style channel, by flat index."""
    layers = table.layout.editable
    return pa.table({
        "layer": [layer.name for layer in layers for _ in range(layer.channels)],
        "channel": pa.array([c for layer in layers for c in range(layer.channels)], pa.int32()),
        "flat_index": pa.array(range(table.layout.num_editable), pa.int32()),
        "n": table.n.numpy(),
        "direction": vector_column(table.direction.numpy()),
        "consistency": table.consistency.numpy(),
        "standard_error": table.standard_error.numpy(),
    })  # fmt: skip


def read_relevance(uri: str, layout: StyleLayout, hashes: ModelHashes) -> RelevanceTable:
    """Read a table, refusing one that was built with other networks.

    Raises:
        ArtifactConflictError: If generator or CLIP differ; the message names both.
    """
    made = read_provenance(uri)
    for what, theirs, ours in (
        ("generator", made.generator, hashes.generator),
        ("CLIP", made.clip, hashes.clip),
    ):
        if theirs != ours:
            raise ArtifactConflictError(
                f"{uri} was built with {what} {theirs[:16]}, this run uses {what} {ours[:16]}; "
                "build a table for these networks or use those"
            )
    table = read_table(uri, columns=["n", "direction"])
    n = torch.from_numpy(table["n"].to_numpy().copy())
    return RelevanceTable(layout, n, torch.from_numpy(to_matrix(table, "direction").copy()))


def _part_table(measured: ChannelDirections) -> pa.Table:
    return pa.table({
        "layer": [measured.layer] * len(measured.channels),
        "channel": measured.channels.to(torch.int32).numpy(),
        "n": measured.n.numpy(),
        "direction": vector_column(measured.direction.numpy()),
    })  # fmt: skip


def _read_part(uri: str) -> ChannelDirections:
    table = read_table(uri)
    return ChannelDirections(
        layer=table["layer"][0].as_py(),
        channels=torch.from_numpy(table["channel"].to_numpy().astype("int64")),
        n=torch.from_numpy(table["n"].to_numpy().copy()),
        direction=torch.from_numpy(to_matrix(table, "direction").copy()),
    )
