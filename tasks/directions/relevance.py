"""The relevance table, measured in shards of channels and merged."""

from __future__ import annotations

import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict

from styleclip.tasks.artifacts import (
    Provenance,
    Recipe,
    is_complete,
    part_name,
    read_provenance,
    read_table,
    to_matrix,
    vector_column,
    write_table,
)
from styleclip.tasks.directions.sampling import SampledStyles, read_codes, read_statistics
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.overlap import accounting, computing
from styleclip.tasks.running.progress import ShardResult
from styleclip.tasks.running.rates import Spent, device_name
from styleclip.tasks.running.run import Run
from styleclip.tasks.settings import Relevance
from styleclip.tasks.storage import join
from styleclip_core.derivatives import embedding_basis, unit_derivatives
from styleclip_core.errors import ArtifactConflictError
from styleclip_core.moves import products_per_move
from styleclip_core.reference_compat import measure_as_published, published_layers
from styleclip_core.relevance import ChannelDirections, RelevanceTable, measure_channels
from styleclip_core.style_space import StyleCode, StyleLayer, StyleLayout

STEP, VERSION = "build-relevance", "2"
_DERIVATIVE_SHARD = 16  # style codes
# operations of one shard on a CPU, about a minute of a core, and the fewest channels: what a layer's channels
# share is computed for every shard, and convolutions want batches
_WORK, _FEWEST = 4e12, 16


class ChannelShard(BaseModel):
    """Some channels of one layer, the unit of work."""

    model_config = ConfigDict(frozen=True)

    number: int
    total: int
    layer: str
    first: int
    last: int


class DerivativesRef(BaseModel):
    """Along what the derivatives of a fast table were taken, and at which ranges of style codes."""

    model_config = ConfigDict(frozen=True)

    basis: str
    ranges: list[tuple[int, int]]


class RelevancePlan(BaseModel):
    """Everything a shard needs to know beside the run, and where its table will lie."""

    model_config = ConfigDict(frozen=True)

    folder: str
    recipe: Recipe
    styles: SampledStyles
    settings: Relevance

    @property
    def fingerprint(self) -> str:
        """Return the name of the table."""
        return self.recipe.fingerprint

    @property
    def table(self) -> str:
        """Return where the table lies."""
        return join(self.folder, "relevance.parquet")

    def made(self, kind: str) -> Provenance:
        """Return what the metadata of the table and its parts says."""
        styles, (first, last) = self.styles, sample_range(self.settings)
        inputs = {"styles": styles.fingerprint, "statistics": styles.statistics, "codes": styles.codes}
        return self.recipe.made(kind, inputs, sample_ranges=[[first, last]])


def plan(run: Run, styles: SampledStyles, settings: Relevance) -> RelevancePlan:
    """Return where the table of these settings lies; nothing is computed."""
    parameters = {"samples": settings.samples, "first_sample": settings.first_sample, **settings.parameters()}
    if settings.precision != "float32":  # what is below the moved layer, and CLIP, used to be rounded too
        parameters["rounded"] = "layers above the moved one"

    hashes = run.hashes
    inputs = {"generator": hashes.generator, "clip": hashes.clip, "styles": styles.fingerprint}
    recipe = Recipe(STEP, VERSION, parameters, inputs, hashes.generator, hashes.clip)
    folder = recipe.folder(run.workspace, "relevance")
    return RelevancePlan(folder=folder, recipe=recipe, styles=styles, settings=settings)


def shards(layout: StyleLayout, settings: Relevance, device: torch.device | str) -> list[ChannelShard]:
    """Cut the editable channels into shards that never cross a layer.

    Args:
        layout: Of the generator.
        settings: Where they say no size, work decides it: by the layout, the number of codes and the kind of
            device, never by how many cores or machines there are, so that others go on with what is done.
        device: What measures them.
    """
    ranges = [
        (layer.name, first, min(first + size, layer.channels))
        for layer in (published_layers(layout) if settings.reference_compat else layout.editable)
        for size in [settings.channels_per_shard or _size(layout, layer, settings, torch.device(device))]
        for first in range(0, layer.channels, size)
    ]

    return [
        ChannelShard(number=number, total=len(ranges), layer=layer, first=first, last=last)
        for number, (layer, first, last) in enumerate(ranges)
    ]


def _size(layout: StyleLayout, layer: StyleLayer, settings: Relevance, device: torch.device) -> int:
    """Return how many channels of a layer one shard measures, in equal parts."""
    if device.type != "cpu":
        return layer.channels

    pair = 2 * products_per_move(layout, layer.name)  # each channel is moved both ways
    wanted = max(_FEWEST, int(_WORK / (settings.samples * max(pair, 1))))
    return -(-layer.channels // -(-layer.channels // wanted))


def part_uri(planned: RelevancePlan, shard: ChannelShard) -> str:
    """Return where the table of a shard lies."""
    size = planned.settings.channels_per_shard
    if size:  # another size cuts other parts, so it is part of their name
        return join(planned.folder, "parts", f"{size}-{part_name(shard.number, shard.total)}")
    return join(planned.folder, "parts", f"{shard.layer}-{shard.first:05d}-{shard.last:05d}.parquet")


def work(run: Run, settings: Relevance, layer: str, channels: int, seconds: float = 0.0) -> Spent:
    """Return the measuring of channels of a layer as it is measured and estimated: per channel and code."""
    ways = {
        "tolerance": settings.tolerance, "derivatives": settings.derivatives, "8 bit": settings.eight_bit,
        "as published": settings.reference_compat,
    }  # fmt: skip
    about = [layer, settings.precision, *(f"{name} {value:g}" for name, value in ways.items() if value)]
    return _spent(run, "measure", " ".join(about), channels * settings.samples, seconds)


def derivatives_work(run: Run, settings: Relevance, codes: int, seconds: float = 0.0) -> Spent:
    """Return the taking of derivatives as it is measured and estimated: per style code."""
    return _spent(run, "derivatives", str(settings.derivatives), codes, seconds)


def _spent(run: Run, kind: str, about: str, units: int, seconds: float) -> Spent:
    return Spent(
        kind=kind, about=about, device=device_name(run.device), resolution=run.generator.image_size[0],
        units=units, seconds=seconds,
    )  # fmt: skip


@unit_of_work("measure-channels", "measure-{shard.layer}-{shard.first}-{shard.last}")
def measure_shard(
    run: Run, planned: RelevancePlan, shard: ChannelShard, derivatives: DerivativesRef | None
) -> ShardResult:
    """Measure the CLIP directions of one shard of channels, with what derivatives expect of them."""
    uri, rows = part_uri(planned, shard), shard.last - shard.first
    if is_complete(uri):
        return ShardResult(uri=uri, rows=rows, reused=True)

    # everything is read before a place on the device is taken
    generator, clip, layout = run.generator, run.clip, run.generator.layout
    statistics = read_statistics(planned.styles.statistics)
    mean, std = (
        StyleCode.from_flat(layout, each[None].float()).to(run.device)
        for each in (statistics.mean, statistics.std)
    )
    codes = _codes(run, planned, *sample_range(planned.settings))
    channels, settings = range(shard.first, shard.last), planned.settings
    expected = _expected(planned, derivatives, shard) if derivatives else None

    with accounting() as account, computing(run.device):
        if planned.settings.reference_compat:
            measured = measure_as_published(
                generator, clip.embed_whole, codes, layer=shard.layer, channels=channels, mean=mean, std=std,
                settings=settings,
            )  # fmt: skip
        else:
            measured = measure_channels(
                generator, clip.embed_whole, codes, layer=shard.layer, channels=channels,
                mean=mean[shard.layer][0], std=std[shard.layer][0], settings=settings, expected=expected,
            )  # fmt: skip

    write_table(uri, _part_table(measured), planned.made("relevance-part"), decided=["n"])
    spent = work(run, settings, shard.layer, rows, account.seconds)
    return ShardResult(uri=uri, rows=rows, tried=rows, spent=(spent,))


def _codes(run: Run, planned: RelevancePlan, first: int, last: int) -> StyleCode:
    layout = run.generator.layout
    return read_codes(planned.styles.codes, layout, first, last - first).to(run.device)


@unit_of_work("embedding-basis")
def measure_basis(run: Run, planned: RelevancePlan) -> str:
    """Find the directions in the embedding that derivatives are taken along."""
    uri = join(planned.folder, "parts", "basis.parquet")
    if not is_complete(uri):
        codes = _codes(run, planned, *sample_range(planned.settings))
        with computing(run.device):
            basis = embedding_basis(run.generator, run.clip.embed_whole, codes, planned.settings.derivatives)

        table = pa.table({"direction": vector_column(basis.numpy())})
        write_table(uri, table, planned.made("embedding-basis"))
    return uri


def derivative_shards(settings: Relevance) -> list[tuple[int, int]]:
    """Cut the style codes into ranges whose derivatives one task takes; none without derivatives."""
    first, last = sample_range(settings)
    starts = range(first, last, _DERIVATIVE_SHARD) if settings.derivatives else ()
    return [(begin, min(begin + _DERIVATIVE_SHARD, last)) for begin in starts]


def derivatives_uri(planned: RelevancePlan, layer: str, first: int, last: int) -> str:
    """Return where the derivatives by the channels of one layer at some style codes lie.

    A shard of channels reads those of its own layer alone: at 1024 pixels all are 1.5 MB a code. Those of the
    last layer are written last.
    """
    return join(planned.folder, "parts", f"derivatives-{first:06d}-{last:06d}-{layer}.parquet")


@unit_of_work("measure-derivatives", "derivatives-{first}-{last}")
def measure_derivatives(run: Run, planned: RelevancePlan, basis: str, first: int, last: int) -> ShardResult:
    """Take the derivatives of CLIP's embedding by all channels at some style codes."""
    layers = run.generator.layout.editable_slices
    uris = [derivatives_uri(planned, layer, first, last) for layer in layers]
    if is_complete(uris[-1]):
        return ShardResult(uri=uris[-1], rows=last - first, reused=True)

    codes = _codes(run, planned, first, last)
    along = torch.from_numpy(to_matrix(read_table(basis), "direction").copy())
    with accounting() as account, computing(run.device):
        found = torch.cat(list(unit_derivatives(run.generator, run.clip.embed_whole, codes, along)))

    ids, made = pa.array(range(first, last), pa.int64()), planned.made("relevance-derivatives")
    for uri, part in zip(uris, layers.values(), strict=True):
        rows = vector_column(found[:, part].flatten(1).numpy())
        write_table(uri, pa.table({"sample_id": ids, "derivatives": rows}), made)
    spent = derivatives_work(run, planned.settings, last - first, account.seconds)
    return ShardResult(uri=uris[-1], rows=last - first, tried=last - first, spent=(spent,))


def _expected(planned: RelevancePlan, derivatives: DerivativesRef, shard: ChannelShard) -> torch.Tensor:
    """Return the unit derivatives by the channels of a shard, ``[B, C, D]``."""
    basis = torch.from_numpy(to_matrix(read_table(derivatives.basis), "direction").copy())

    # those of a layer lie flat, by channel and then by direction of the basis
    part = slice(shard.first * len(basis), shard.last * len(basis))
    uris = [derivatives_uri(planned, shard.layer, *each) for each in derivatives.ranges]
    rows = [torch.from_numpy(to_matrix(read_table(uri), "derivatives")[:, part].copy()) for uri in uris]
    along: torch.Tensor = torch.cat(rows).unflatten(1, (-1, len(basis)))
    return along @ basis


@unit_of_work("merge-relevance")
def merge_relevance(run: Run, planned: RelevancePlan, parts: list[str]) -> ShardResult:
    """Merge the shards into the relevance table."""
    layout = run.generator.layout

    if not is_complete(planned.table):
        table = RelevanceTable.from_parts(layout, (_read_part(uri) for uri in parts))
        write_table(planned.table, relevance_table(table), planned.made("relevance"), decided=["n"])
    return ShardResult(uri=planned.table, rows=layout.num_editable)


def sample_range(settings: Relevance) -> tuple[int, int]:
    """Return the numbers of the first style code that is measured, and of the first after all that are."""
    return settings.first_sample, settings.first_sample + settings.samples


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


def read_relevance(run: Run, uri: str) -> RelevanceTable:
    """Read a table, refusing one that was built with other networks.

    Raises:
        ArtifactConflictError: If generator or CLIP differ; the message names both.
    """
    made, hashes = read_provenance(uri), run.hashes
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
    return RelevanceTable(run.generator.layout, n, torch.from_numpy(to_matrix(table, "direction").copy()))


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
