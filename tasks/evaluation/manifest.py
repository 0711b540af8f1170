"""An edits manifest -> shards of images with all their edits, for whatever looks at them next.

Several strengths of one edit share its name, so a row is named by image and *variant*: the folder of the
variant's images below ``images/``, or that of the images it would have where its edit failed. Manifests
written before there was a column for it get one while they are read, see ``iter_rows``.

A *sweep* is what several variants have in common that differ in strength alone; a variant's *position* is
its alpha, or its mapper's strength.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, count, islice
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from styleclip.tasks.artifacts import (
    Provenance,
    Recipe,
    artifact_uri,
    column_names,
    fingerprint,
    is_complete,
    iter_batches,
    read_provenance,
    read_table,
    write_table,
)
from styleclip.tasks.artifacts.lineage import Span, follow
from styleclip.tasks.artifacts.outcomes import OK, STATUS_FIELDS, Row
from styleclip.tasks.photographs.images import cut, digest
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.partial import FOLDER
from styleclip.tasks.running.run import Run
from styleclip.tasks.settings import SettingsError
from styleclip.tasks.storage import MissingObjectError, ObjectInfo, canonical, join, list_objects
from styleclip_core.errors import ArtifactConflictError

STEP, VERSION = "index-edits", "2"
EDIT_FIELDS = [
    ("edit", pa.string()), ("variant", pa.string()), ("method", pa.string()), ("neutral", pa.string()),
    ("target", pa.string()), ("alpha", pa.float64()), ("beta", pa.float64()), ("top_k", pa.int32()),
    ("strength", pa.float64()),
]  # fmt: skip
_PROMPTS = pa.list_(pa.struct([("neutral", pa.string()), ("target", pa.string())]))
ITEM_SCHEMA = pa.schema([
    ("image_key", pa.string()), ("version", pa.string()), ("content_hash", pa.string()), *EDIT_FIELDS,
    ("output_key", pa.string()), ("place", pa.string()), ("prompts", _PROMPTS),
    ("sweep", pa.string()), ("position", pa.float64()), *STATUS_FIELDS,
])  # fmt: skip
_READ = [
    "image_key", "content_hash", "edit", "method", "neutral", "target", "alpha", "beta", "top_k", "strength",
    "settings", "output_key", "steps", "place", *(name for name, _ in STATUS_FIELDS),
]  # fmt: skip
_LATER = ("variant", "content_hash", "place", "width", "height")  # columns that not every manifest has
_NULL = {"content_hash": pa.string(), "width": pa.int32(), "height": pa.int32()}  # where it lacks them
_SAME = ("edit", "method", "neutral", "target", "alpha", "beta", "top_k", "strength", "settings")


class EditsShard(BaseModel):
    """Some images of a manifest, with all their edits.

    Attributes:
        uri: Its rows (``ITEM_SCHEMA``).
        number: Its place among the shards.
        digest: Name of its rows.
        images: How many images it has.
        rows: How many rows.
        before: Digests of older shards that hold images of it, the newest first.
    """

    model_config = ConfigDict(frozen=True)

    uri: str
    number: int
    digest: str
    images: int
    rows: int
    before: tuple[str, ...] = ()


class EditsIndex(BaseModel):
    """A manifest, cut into shards of images.

    Attributes:
        manifest: Its URI.
        out: What its output keys are relative to.
        fingerprint: Its own.
        photographs: URI of the folder of the photographs.
        clip: Content hash of the CLIP that made the edits.
        shards: Its images.
    """

    model_config = ConfigDict(frozen=True)

    manifest: str
    out: str
    fingerprint: str
    photographs: str
    clip: str
    shards: list[EditsShard]


def place_of(manifest: str) -> str:
    """Return the prefix that a manifest's output keys are relative to: ``OUT/batches/<batch>/<manifest>``.

    A partial manifest lies in ``OUT/partial/<batch>-<content>/``.

    Raises:
        SettingsError: If the manifest does not lie where a batch's does.
    """
    parts = manifest.split("/")
    if len(parts) < 4 or parts[-3] not in ("batches", FOLDER):
        raise SettingsError(
            f"{manifest} does not lie in OUT/batches/<batch>/, so where its images are is not known; give out"
        )
    return "/".join(parts[:-3])


@unit_of_work("index-edits")
def index_edits(run: Run, manifest: str, out: str, shard_size: int) -> EditsIndex:
    """Cut a manifest into shards of images; equal rows make equal shards, whatever manifest lists them.

    Raises:
        ArtifactConflictError: If it is no manifest of edits.
        DamagedArtifactError: If it lacks a column, or is no readable table.
    """
    made = read_provenance(manifest)
    if made.kind != "edits-manifest":
        raise ArtifactConflictError(f"{manifest} is a table of {made.kind}; give a manifest of edits")

    rows = items([row for part in iter_rows(manifest, _READ) for row in part.to_pylist()])
    folder = artifact_uri(run.workspace, "edits-index", made.fingerprint)
    parts = list(cut(_versions(rows), shard_size))

    # batches of one place share most of their rows
    place = out or place_of(manifest)
    name = fingerprint(STEP, VERSION, {"out": place, "shard_size": shard_size}, {})
    spans = follow(run.workspace, name, [Span(digest(part), part[0].key, part[-1].key) for part in parts])
    shards = [
        _write_shard(folder, number, part, rows, made).model_copy(update={"before": span.before})
        for number, (part, span) in enumerate(zip(parts, spans, strict=True))
    ]
    photos = str(made.parameters.get("photos", ""))
    return EditsIndex(
        manifest=manifest, out=place, fingerprint=made.fingerprint,
        photographs=canonical(photos) if photos else "", clip=made.clip, shards=shards,
    )  # fmt: skip


def iter_rows(manifest: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield some columns of a manifest and ``variant``, a row group at a time.

    ``content_hash``, ``width`` and ``height`` are null in manifests that were written before they were there.

    Raises:
        DamagedArtifactError: If it lacks a column, or is no readable table.
        StorageError: If it cannot be read.
    """
    there = column_names(manifest)
    wanted = [name for name in (*columns, "variant") if name in there or name not in _LATER]
    names = iter(_derived(manifest)) if "variant" not in there else iter(())

    for part in iter_batches(manifest, wanted):
        if "variant" not in there:
            mine = list(islice(names, part.num_rows))
            part = part.append_column("variant", pa.array(mine, pa.string()))
        for name, kind in _NULL.items():
            if name in columns and name not in there:
                part = part.append_column(name, pa.nulls(part.num_rows, kind))
        yield part


def _derived(manifest: str) -> list[str]:
    columns = [name for name in _READ if name not in _LATER]
    return derive_variants(read_table(manifest, columns=columns).to_pylist())


def derive_variants(manifest: list[Row]) -> list[str]:
    """Return the variant of every row: the folder of its image, or one that its image lacks."""
    folders: dict[tuple[Any, ...], dict[str, None]] = defaultdict(dict)  # of rows with equal columns
    have: dict[str, set[str]] = defaultdict(set)

    for row in manifest:
        if row["status"] == OK:
            folder = row["output_key"].split("/")[1]
            folders[_columns(row)][folder] = None
            have[row["image_key"]].add(folder)

    found = []
    for row in manifest:
        if row["status"] == OK:
            found.append(row["output_key"].split("/")[1])
            continue

        # a failed row is of a variant with equal columns that its image does not have yet
        names = chain(folders[_columns(row)], _unnamed(row))
        found.append(next(name for name in names if name not in have[row["image_key"]]))
        have[row["image_key"]].add(found[-1])
    return found


def _unnamed(row: Row) -> Iterator[str]:
    """Yield names for a variant that has no image to take its name from."""
    for number in count():
        content = repr((*_columns(row), *([number] if number else [])))
        yield f"{row['edit']}_{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def _versions(rows: dict[str, list[Row]]) -> Iterable[ObjectInfo]:
    """Yield every image, with a version that changes with any of its rows."""
    for key in sorted(rows):
        version = hashlib.sha256(json.dumps(rows[key], sort_keys=True).encode()).hexdigest()
        yield ObjectInfo(key, version, len(rows[key]))


def _write_shard(
    folder: str, number: int, part: list[ObjectInfo], rows: dict[str, list[Row]], made: Provenance
) -> EditsShard:
    name = digest(part)
    uri = join(folder, f"{name}.parquet")
    mine = [row | {"version": item.etag} for item in part for row in rows[item.key]]

    # its name is that of its rows, wherever they are listed; its recipe says only where that was
    if not is_complete(uri):
        recipe = Recipe(STEP, VERSION, {}, {"manifest": made.fingerprint}, made.generator, made.clip)
        table = pa.Table.from_pylist(mine, schema=ITEM_SCHEMA)
        write_table(uri, table, replace(recipe.made("edits-index"), fingerprint=name))
    return EditsShard(uri=uri, number=number, digest=name, images=len(part), rows=len(mine))


def items(manifest: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the rows of a manifest as items (``ITEM_SCHEMA``), by image, each image's sorted by variant."""
    rows = sorted(manifest, key=lambda row: str(row["variant"]))
    whole = {row["variant"]: row for row in rows if row["status"] == OK}

    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        # a row whose edit failed does not say its steps, those of other images do
        found[row["image_key"]].append(_item(row, whole.get(row["variant"], row)))
    return dict(found)


def _columns(row: Row) -> tuple[Any, ...]:
    return tuple(json.dumps(value) if isinstance(value := row[name], dict) else value for name in _SAME)


def _item(row: Row, whole: Row) -> Row:
    """Return a row as an item; ``whole`` is a row of the same variant that has its steps."""
    prompts = [{"neutral": step["neutral"], "target": step["target"]} for step in whole["steps"] or []]
    sweep, position = _sweep(row)
    return {
        **{name: row[name] for name in ITEM_SCHEMA.names if name in row},
        "prompts": prompts or [{"neutral": row["neutral"], "target": row["target"]}],
        "sweep": sweep,
        "position": position,
    }


def _sweep(row: Row) -> tuple[str, float | None]:
    """Return what a variant's sweep is called, and its strength; a sequence of steps is its own sweep."""
    position = row["alpha"] if row["alpha"] is not None else row["strength"]
    if position is None or not row["settings"]:
        return row["variant"], None

    # manifests once said settings as JSON; typed ones do not repeat what stands in columns
    said = json.loads(row["settings"]) if isinstance(row["settings"], str) else _said(row["settings"])

    # what is left of a row without its strength is what it shares with its sweep
    settings = {k: v for k, v in said.items() if k not in ("alpha", "strength")}
    rest = [row[name] for name in _SAME if name not in ("alpha", "strength", "settings")]
    name = hashlib.sha256(json.dumps([rest, settings], sort_keys=True).encode()).hexdigest()[:8]
    return f"{row['edit']}_{name}", position


def _said(settings: Row) -> Row:
    """Return typed settings without the fields that are empty, nested ones too."""
    inner = {name: _said(value) if isinstance(value, dict) else value for name, value in settings.items()}
    return {name: value for name, value in inner.items() if value not in (None, {})}


def find_inversions(run: Run, index: EditsIndex) -> str:
    """Return the folder of the unedited images behind a manifest: what the generator drew of each latent.

    Raises:
        MissingObjectError: If the workspace does not hold the edits of this manifest.
    """
    made = read_provenance(index.manifest)
    for print_ in sorted(set(made.inputs.values()) - {made.inputs.get("index", "")}):
        folder = artifact_uri(run.workspace, "edits", print_)
        try:
            part = next(iter(list_objects(folder, suffixes=(".parquet",))), None)
        except MissingObjectError:
            part = None

        # the rows of an edit name their latents, below which what was drawn of them lies
        latents = read_provenance(join(folder, part.key)).inputs.get("latents") if part else None
        if latents:
            return join(artifact_uri(run.workspace, "latents", latents), "reconstructions")

    raise MissingObjectError(
        f"the workspace {run.workspace} holds no edit of {index.manifest}, so its inversions are not known; "
        "give the workspace that the edits were made with, or compare with the photographs"
    )
