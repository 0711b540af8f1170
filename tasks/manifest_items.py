"""An edits manifest -> shards of images with all their edits, for whatever looks at them next.

The manifest's rows are named by image and edit; several strengths of one edit share its name. Here a row
is named by image and *variant*, the folder of its images below ``images/``. Rows whose edit failed have no
such folder: each gets the variant that its image lacks.

A *sweep* is what several variants have in common that differ in strength alone; a variant's *position* is
its alpha, or its mapper's strength.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
from prefect import task
from pydantic import BaseModel, ConfigDict

import styleclip_core
from styleclip_core.errors import ArtifactConflictError
from tasks.artifacts import Provenance, artifact_uri, is_complete, read_provenance, read_table, write_table
from tasks.caching import PER_RUN
from tasks.images import cut, digest
from tasks.outcomes import OK, STATUS_FIELDS, Row
from tasks.settings import SettingsError
from tasks.storage import MissingObjectError, ObjectInfo, join, list_objects

STEP, VERSION = "index-edits", "1"
EDIT_FIELDS = [
    ("edit", pa.string()), ("variant", pa.string()), ("method", pa.string()), ("neutral", pa.string()),
    ("target", pa.string()), ("alpha", pa.float64()), ("beta", pa.float64()), ("top_k", pa.int32()),
    ("strength", pa.float64()),
]  # fmt: skip
_PROMPTS = pa.list_(pa.struct([("neutral", pa.string()), ("target", pa.string())]))
ITEM_SCHEMA = pa.schema([
    ("image_key", pa.string()), *EDIT_FIELDS, ("output_key", pa.string()), ("prompts", _PROMPTS),
    ("sweep", pa.string()), ("position", pa.float64()), *STATUS_FIELDS,
])  # fmt: skip
_READ = [
    "image_key", "edit", "method", "neutral", "target", "alpha", "beta", "top_k", "strength", "settings",
    "output_key", "steps", *(name for name, _ in STATUS_FIELDS),
]  # fmt: skip
_SAME = ("edit", "method", "neutral", "target", "alpha", "beta", "top_k", "strength", "settings")


class EditsShard(BaseModel):
    """Some images of a manifest, with all their edits."""

    model_config = ConfigDict(frozen=True)

    uri: str
    number: int
    digest: str
    images: int
    rows: int


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

    Raises:
        SettingsError: If the manifest does not lie where a batch's does.
    """
    parts = manifest.split("/")
    if len(parts) < 4 or parts[-3] != "batches":
        raise SettingsError(
            f"{manifest} does not lie in OUT/batches/<batch>/, so where its images are is not known; give out"
        )
    return "/".join(parts[:-3])


@task(name="index-edits", cache_policy=PER_RUN, persist_result=True)
def index_edits(manifest: str, out: str, workspace: str, shard_size: int) -> EditsIndex:
    """Cut a manifest into shards of images; equal rows make equal shards, whatever manifest lists them.

    Raises:
        ArtifactConflictError: If it is no manifest of edits.
        DamagedArtifactError: If it lacks a column, or is no readable table.
    """
    made = read_provenance(manifest)
    if made.kind != "edits-manifest":
        raise ArtifactConflictError(f"{manifest} is a table of {made.kind}; give a manifest of edits")
    rows = items(read_table(manifest, columns=_READ).to_pylist())
    folder = artifact_uri(workspace, "edits-index", made.fingerprint)
    shards = [
        _write_shard(folder, number, part, rows, made)
        for number, part in enumerate(cut(_versions(rows), shard_size))
    ]
    return EditsIndex(
        manifest=manifest, out=out or place_of(manifest), fingerprint=made.fingerprint,
        photographs=str(made.parameters.get("photos", "")), clip=made.clip, shards=shards,
    )  # fmt: skip


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
    mine = [row for item in part for row in rows[item.key]]
    if not is_complete(uri):
        provenance = Provenance(
            kind="edits-index", fingerprint=name, step=STEP, version=VERSION, parameters={},
            inputs={"manifest": made.fingerprint}, generator=made.generator, clip=made.clip,
            code_version=styleclip_core.__version__,
        )  # fmt: skip
        write_table(uri, pa.Table.from_pylist(mine, schema=ITEM_SCHEMA), provenance)
    return EditsShard(uri=uri, number=number, digest=name, images=len(part), rows=len(mine))


def items(manifest: list[Row]) -> dict[str, list[Row]]:
    """Return the rows of a manifest as items (``ITEM_SCHEMA``), by image, each image's sorted by variant."""
    folders: dict[tuple[Any, ...], dict[str, Row]] = defaultdict(dict)  # variants with equal columns
    have: dict[str, set[str]] = defaultdict(set)
    for row in manifest:
        if row["status"] == OK:
            folder = row["output_key"].split("/")[1]
            folders[_columns(row)].setdefault(folder, row)
            have[row["image_key"]].add(folder)
    found: dict[str, list[Row]] = defaultdict(list)
    for row in manifest:
        variants = folders.get(_columns(row), {})
        if row["status"] == OK:
            variant = row["output_key"].split("/")[1]
        else:  # the variants of one edit that this image lacks, in their order
            variant = next((each for each in variants if each not in have[row["image_key"]]), "")
            variant = variant or _unnamed(row)
            have[row["image_key"]].add(variant)
        found[row["image_key"]].append(_item(row, variant, variants.get(variant, row)))
    return {key: sorted(rows, key=lambda each: str(each["variant"])) for key, rows in found.items()}


def _columns(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in _SAME)


def _unnamed(row: Row) -> str:
    """Return a variant's name where no image of it is there to tell it."""
    return f"{row['edit']}_{hashlib.sha256(repr(_columns(row)).encode()).hexdigest()[:8]}"


def _item(row: Row, variant: str, whole: Row) -> Row:
    """Return a row as an item; ``whole`` is a row of the same variant that has its steps."""
    prompts = [{"neutral": step["neutral"], "target": step["target"]} for step in whole["steps"] or []]
    sweep, position = _sweep(row, variant)
    return {
        **{name: row[name] for name in ITEM_SCHEMA.names if name in row},
        "variant": variant,
        "prompts": prompts or [{"neutral": row["neutral"], "target": row["target"]}],
        "sweep": sweep,
        "position": position,
    }


def _sweep(row: Row, variant: str) -> tuple[str, float | None]:
    """Return what a variant's sweep is called, and its strength; a sequence of steps is its own sweep."""
    position = row["alpha"] if row["alpha"] is not None else row["strength"]
    if position is None or not row["settings"]:
        return variant, None
    settings = {k: v for k, v in json.loads(row["settings"]).items() if k not in ("alpha", "strength")}
    rest = [row[name] for name in _SAME if name not in ("alpha", "strength", "settings")]
    name = hashlib.sha256(json.dumps([rest, settings], sort_keys=True).encode()).hexdigest()[:8]
    return f"{row['edit']}_{name}", position


def find_inversions(index: EditsIndex, workspace: str) -> str:
    """Return the folder of the unedited images behind a manifest: what the generator drew of each latent.

    Raises:
        MissingObjectError: If the workspace does not hold the edits of this manifest.
    """
    made = read_provenance(index.manifest)
    for print_ in sorted(set(made.inputs.values()) - {made.inputs.get("index", "")}):
        folder = artifact_uri(workspace, "edits", print_)
        try:
            part = next(iter(list_objects(folder, suffixes=(".parquet",))), None)
        except MissingObjectError:
            part = None
        latents = read_provenance(join(folder, part.key)).inputs.get("latents") if part else None
        if latents:
            return join(artifact_uri(workspace, "latents", latents), "reconstructions")
    raise MissingObjectError(
        f"the workspace {workspace} holds no edit of {index.manifest}, so its inversions are not known; give "
        "the workspace that the edits were made with, or compare with the photographs"
    )
