"""The manifest of a batch and its timings, gathered from the rows of all edits, a shard at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import pyarrow as pa

from styleclip.tasks.artifacts import is_complete, read_table
from styleclip.tasks.artifacts.outcomes import OK, Row
from styleclip.tasks.editing.plans import EditPlan
from styleclip.tasks.editing.schemas import MANIFEST_SCHEMA, TIMING_SCHEMA, manifest_row
from styleclip.tasks.photographs.images import (
    ImageIndex,
    ImageShard,
    column_fields,
    placed_fields,
    read_items,
)
from styleclip.tasks.photographs.inversion import InversionPlan

_NO_LATENT = -1


def manifest_schema(index: ImageIndex) -> pa.Schema:
    """Return the columns of the manifest of a data set: ours, and those that it has of its own."""
    return pa.schema([*MANIFEST_SCHEMA, *placed_fields(index), *column_fields(index.shards[0])])


def manifest_tables(
    plans: Sequence[EditPlan], shards: list[ImageShard], schema: pa.Schema
) -> Iterator[pa.Table]:
    """Yield the rows of all edits, each edit's by shard and key."""
    more = schema.names[len(MANIFEST_SCHEMA.names) :]
    latents = {shard.digest: _attempts_of(plans[0].inversion, shard) for shard in shards}
    for plan in plans:
        for shard in filter(plan.touches, shards):
            log = plan.log(shard)
            wanted = plan.wanted_in(shard)
            latest = [row for row in log.latest() if wanted is None or row["image_key"] in wanted]
            rows = [manifest_row(row) for row in sorted(latest, key=log.item)]

            # attempts that were written before there was the column do not say the variant
            found = [
                {**row, "variant": plan.variant, **_latent(plan.inversion, shard, row, latents[shard.digest])}
                for row in rows
            ]

            # what the data set says of an image stands in the index alone until here
            if more:
                items = read_items(shard, [row["image_key"] for row in found])
                said = {item.key: {"place": item.place, **(item.columns or {})} for item in items}
                for row in found:
                    row |= {name: said[row["image_key"]][name] for name in more}
            yield pa.Table.from_pylist(found, schema=schema)


def _attempts_of(inversion: InversionPlan, shard: ImageShard) -> dict[str, int]:
    """Return the attempt that holds the latent of an image, but for images whose first one does."""
    found = dict[str, int]()
    for number, uri in enumerate(inversion.log(shard).attempts()):
        table = read_table(uri, columns=["image_key", "status"])
        pairs = zip(table["image_key"].to_pylist(), table["status"].to_pylist(), strict=True)
        found |= {key: number if status == OK else _NO_LATENT for key, status in pairs}
    # most have been inverted at once, and there may be a million of them
    return {key: number for key, number in found.items() if number}


def _latent(inversion: InversionPlan, shard: ImageShard, row: Row, attempts: Mapping[str, int]) -> Row:
    """Return where an image's latent and the generator's version of it lie, below the folder of latents."""
    number = attempts.get(row["image_key"], 0)
    if number == _NO_LATENT or not row["content_hash"]:
        return {"inversion_key": None, "latent": None}
    table = inversion.log(shard).uri(number).rpartition("/")[2]
    return {
        "inversion_key": f"{inversion.fingerprint}/reconstructions/{inversion.reconstruction_key(row)}",
        "latent": f"{inversion.fingerprint}/{table}",
    }


def timing_tables(plans: Sequence[EditPlan], attempts: Sequence[str]) -> Iterator[pa.Table]:
    """Yield how long the edits took, one row for each row of the manifest that was computed.

    Args:
        plans: The edits.
        attempts: URIs of all attempts at their shards.
    """
    by_folder = {plan.folder: plan for plan in plans}
    for name, uris in groupby(attempts, key=lambda uri: uri.rpartition(".attempt-")[0]):
        plan, last = by_folder[name.rpartition("/")[0]], dict[str, Row]()
        for uri in (uri.replace(".attempt-", ".timings-") for uri in uris):
            if is_complete(uri):
                last |= {row["image_key"]: row for row in read_table(uri).to_pylist()}

        # tables that were written before there was a variant name the edit otherwise
        names = {"edit": plan.prepared.variant.name, "variant": plan.variant}
        if last:
            yield pa.Table.from_pylist([row | names for _, row in sorted(last.items())], schema=TIMING_SCHEMA)
