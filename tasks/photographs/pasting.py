"""Edited faces -> full photographs, a shard of photographs at a time.

The table of faces says which face belongs where. A photograph is written when all its faces are
there; one that lacks a face is a row that names it, and is tried again when the face has come. One
that has no face, or one that could not be aligned, is skipped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress

import pyarrow as pa
from PIL import Image
from pydantic import BaseModel, ConfigDict

from styleclip.tasks.artifacts import (
    Provenance,
    Recipe,
    count,
    fingerprint,
    is_complete,
    read_provenance,
    read_table,
    write_tables,
)
from styleclip.tasks.artifacts.outcomes import (
    FAILED,
    OK,
    SKIPPED,
    STATUS_FIELDS,
    OutcomeLog,
    Row,
    failure,
    success,
)
from styleclip.tasks.photographs.faces import read_faces
from styleclip.tasks.photographs.images import ImageIndex, ImageShard, read_shard, write_index
from styleclip.tasks.photographs.reading import read_image
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.partial import supersede, write_partial_table
from styleclip.tasks.running.progress import ShardResult
from styleclip.tasks.running.run import Run
from styleclip.tasks.running.shards import Files, Outcomes, finish_shard
from styleclip.tasks.settings import Pasting, SettingsError
from styleclip.tasks.storage import (
    ChangedObjectError,
    MissingObjectError,
    ObjectInfo,
    canonical,
    item_under,
    join,
    list_objects,
    output_key,
    read_bytes,
    read_version,
    readable_key,
    version,
    write_bytes_atomic,
)
from styleclip_core.errors import ArtifactConflictError, FaceError, NoFaceError, StyleCLIPError
from styleclip_core.faces import FaceQuad, paste_faces
from styleclip_core.images import decode_image, encode_photograph
from styleclip_core.settings.saving import ENDINGS

STEP, VERSION = "paste-faces", "2"
_KIND = "pasted-photographs"

PASTED_SCHEMA = pa.schema([
    ("image_key", pa.string()), *STATUS_FIELDS, ("faces", pa.int32()), ("output_key", pa.string()),
    ("etag", pa.string()),
])  # fmt: skip


class MissingFaceError(FaceError):
    """A face of a photograph has not been edited, so the photograph cannot be put together."""


class NotAlignedError(FaceError):
    """A face of a photograph could not be aligned, so the photograph cannot be put together."""


class FaceTable(BaseModel):
    """A table of faces and the photographs that it is about."""

    model_config = ConfigDict(frozen=True)

    uri: str
    digest: str
    photos: str


class PastingPlan(BaseModel):
    """Everything a shard needs to know, and where its rows and its photographs will lie."""

    model_config = ConfigDict(frozen=True)

    table: FaceTable
    edited: str
    out: str
    folder: str
    recipe: Recipe
    settings: Pasting

    @property
    def photographs(self) -> str:
        """Return the prefix of the photographs with their edited faces."""
        return join(self.out, f"photographs_{self.recipe.fingerprint[:8]}")

    def made(self) -> Provenance:
        """Return what the metadata of rows says."""
        return self.recipe.made(_KIND, {"faces": self.table.digest})

    def log(self, shard: ImageShard) -> OutcomeLog:
        """Return the attempts at a shard."""
        return OutcomeLog(self.folder, shard.digest, ("image_key",), shard.before)


class PastedRef(BaseModel):
    """Where the photographs of a batch lie, and how many there are."""

    model_config = ConfigDict(frozen=True)

    table: str
    photographs: str
    pasted: int
    skipped: int
    failed: int


def plan(run: Run, table: FaceTable, edited: str, settings: Pasting) -> PastingPlan:
    """Return where the photographs of these settings lie; nothing is computed."""
    parameters = {"photos": table.photos, "edited": edited, "out": run.out, **settings.model_dump()}
    # not named by the table: what it says of a photograph is a part of that photograph's version
    recipe = Recipe(STEP, VERSION, parameters, {})
    folder = recipe.folder(run.workspace, "pasted")
    return PastingPlan(
        table=table, edited=edited, out=run.out, folder=folder, recipe=recipe, settings=settings
    )


@unit_of_work("identify-faces")
def identify_faces(uri: str, photos: str) -> FaceTable:
    """Read which photographs a table of faces is about; ``photos`` says where they have moved to.

    Raises:
        SettingsError: If it is a table of something else.
    """
    made = read_provenance(uri)
    if made.kind != "faces":
        raise SettingsError(f"{uri} is a table of {made.kind}, not of faces; give the one align-faces wrote")

    digest = hashlib.sha256(read_bytes(uri)).hexdigest()
    return FaceTable(uri=uri, digest=digest, photos=photos or canonical(str(made.parameters["photos"])))


@unit_of_work("index-edited-faces")
def index_edited(run: Run, table: FaceTable, edited: str, shard_size: int) -> ImageIndex:
    """Cut the photographs of a table into shards; a photograph's version is that of its edited faces.

    Raises:
        MissingObjectError: If there is no edited face at all.
        SettingsError: If the edited faces are packed.
    """
    versions = {item.key: item.etag for item in list_objects(edited)}
    by_image = read_faces(table.uri, table.digest)

    # that every single face is missing is a wrong prefix, which should not become a row for each photograph
    expected = [row for rows in by_image.values() for row in rows if row["status"] == OK]
    if expected and not any(_edited_key(row, versions) for row in expected):
        if packed := next((key for key in versions if key.endswith((".tar", ".parquet"))), ""):
            raise SettingsError(
                f"the images under {edited} lie in tars or tables ({packed}), where no face is pasted from; "
                "edit the faces into files (to: images)"
            )
        raise MissingObjectError(
            f"none of the {len(expected)} faces of {table.uri} lies under {edited} (looked for "
            f"{expected[0]['output_key']} and the others); give the prefix of one edit, not of all"
        )

    objects = [ObjectInfo(key, _version(rows, versions), len(rows)) for key, rows in sorted(by_image.items())]
    return write_index(objects, table.photos, run.workspace, shard_size, {"edited": edited})


def _version(rows: list[Row], versions: Mapping[str, str]) -> str:
    parts = []
    for row in rows:
        key = _edited_key(row, versions) if row["status"] == OK else None
        # with its place in the photograph, since alignment may have found it elsewhere
        place = f"{row['face_index']}\0{row['content_hash']}\0{row['quad']}"
        parts.append(f"{place}\0{versions[key] if key else ''}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _edited_key(face: Row, there: Container[str]) -> str | None:
    """Return the key of an edited face, if it is there."""
    return next((name for name in _names(face) if name in there), None)


def _names(face: Row) -> list[str]:
    """Return what an edited face may be called: as edit-images names it, as the face, or as it once was."""
    key, version = face["output_key"], face["face_hash"]
    # of whichever format the edit was written in
    named = [
        name(key, suffix=ending, version=version)
        for ending in dict.fromkeys(ENDINGS.values())
        for name in (readable_key, output_key)
    ]
    return [*dict.fromkeys([*named, key, output_key(key, suffix=".png")])]


@unit_of_work("paste-shard", "paste-shard-{shard.number}")
def paste_shard(planned: PastingPlan, shard: ImageShard) -> ShardResult:
    """Put the faces of one shard of photographs back, where that has not been done yet."""
    images = read_shard(shard)

    def to_do(known: Outcomes) -> list[tuple[str, str]]:
        done = {row["image_key"] for row in known.values() if row["status"] != FAILED}
        return [(key, etag) for key, etag in images if key not in done]

    def paste(photographs: Iterable[tuple[str, str]]) -> Iterable[Row]:
        faces = read_faces(planned.table.uri, planned.table.digest)
        return (_paste(planned, key, etag, faces[key]) for key, etag in photographs)

    return finish_shard(
        planned.log(shard), to_do, paste, planned.made(), lambda: PASTED_SCHEMA, versions=dict(images),
        files=[Files(planned.photographs, lambda row: row["output_key"])], failing={FAILED},
    )  # fmt: skip


def _paste(planned: PastingPlan, key: str, etag: str, faces: list[Row]) -> Row:
    row = dict.fromkeys(PASTED_SCHEMA.names) | {"image_key": key, "etag": etag}
    try:
        photograph = _photograph(planned, key, faces)
        aligned = [face for face in faces if face["status"] == OK]  # others are left as they are
        edited = _edited_faces(planned, key, etag, faces)
        quads = [FaceQuad.from_list(face["quad"]) for face in aligned]
        pasted = paste_faces(
            photograph, list(zip(edited, quads, strict=True)), feather=planned.settings.feather
        )
        content = encode_photograph(pasted, colours_of=photograph)
    except (NoFaceError, NotAlignedError) as error:
        causes = [face["error_type"] for face in faces if face["status"] == FAILED]
        return row | failure(error, status=SKIPPED) | {"error_type": (causes or [faces[0]["error_type"]])[0]}
    except (StyleCLIPError, OSError) as error:
        return row | failure(error)

    # outside of the block above: if this cannot be written, no photograph is to blame
    name = output_key(key, suffix=".png", version=etag)
    write_bytes_atomic(join(planned.photographs, name), content)
    return row | {"faces": len(aligned), "output_key": name} | success()


def _photograph(planned: PastingPlan, key: str, faces: list[Row]) -> Image.Image:
    """Read the photograph that the faces were cut out of.

    Raises:
        NoFaceError: If there is nobody in it, or nobody large enough.
        NotAlignedError: If aligning one of its faces failed.
        ArtifactConflictError: If it is another one by now.
    """
    if all(face["status"] == SKIPPED for face in faces):
        raise NoFaceError(f"{key} has no face to put back: {faces[0]['error']}")
    for face in faces:
        if face["status"] == FAILED:
            raise NotAlignedError(
                f"face {face['face_index']} of {key} was not aligned: {face['error_type']}, {face['error']}"
            )

    data = read_image(planned.table.photos, key, faces[0].get("place"))
    if hashlib.sha256(data).hexdigest() != faces[0]["content_hash"]:
        raise ArtifactConflictError(
            f"{key} has changed since its faces were found, they would go to the wrong place; run "
            "align-faces again"
        )
    return decode_image(data)


def _edited_faces(planned: PastingPlan, key: str, etag: str, faces: list[Row]) -> list[Image.Image]:
    """Read the edited faces of a photograph, as they were listed.

    Raises:
        MissingFaceError: If one is not there.
        ChangedObjectError: If one is another version by now.
    """
    found = [_edited_face(planned, face) for face in faces if face["status"] == OK]

    # the index has one version for all faces of a photograph, so it is asked of all together
    if _version(faces, {name: version for name, version, _ in found}) != etag:
        raise ChangedObjectError(
            f"an edited face of {key} has changed since it was listed; a new run takes the new version"
        )
    return [decode_image(content) for _, _, content in found]


def _edited_face(planned: PastingPlan, face: Row) -> tuple[str, str, bytes]:
    """Return name, version and content of an edited face.

    Raises:
        MissingFaceError: If it is not there, though others are.
    """
    *others, last = _names(face)
    try:
        with item_under(planned.edited, last):
            for name in others:
                with suppress(MissingObjectError):
                    return _current(planned.edited, name)
            return _current(planned.edited, last)
    except MissingObjectError as error:
        where = join(planned.edited, _names(face)[0])
        raise MissingFaceError(
            f"face {face['face_index']} of {face['image_key']} is not at {where}; edit it, then paste again"
        ) from error


def _current(prefix: str, name: str) -> tuple[str, str, bytes]:
    uri = join(prefix, name)
    now = version(uri)
    return name, now, read_version(uri, now)


@unit_of_work("write-pasted")
def write_pasted(planned: PastingPlan, index: ImageIndex) -> PastedRef:
    """Gather the rows of all shards into one table."""
    # a table is named after the attempts in it, so that one more of them makes another table
    attempts = [uri for shard in index.shards for uri in planned.log(shard).attempts()]
    name = fingerprint(STEP, VERSION, {"attempts": attempts}, {"index": index.fingerprint})[:16]
    uri = join(planned.out, "batches", name, "pasted.parquet")
    if not is_complete(uri):
        tables = (planned.log(shard).table(PASTED_SCHEMA) for shard in index.shards)
        write_tables(uri, PASTED_SCHEMA, tables, planned.made())
    supersede(planned.out, {STEP: planned.recipe.fingerprint}, by=uri)

    found = read_table(uri, columns=["status"])
    counts = {status: count(found, "status", status) for status in (OK, SKIPPED, FAILED)}
    return PastedRef(
        table=uri, photographs=planned.photographs, pasted=counts[OK], skipped=counts[SKIPPED],
        failed=counts[FAILED],
    )  # fmt: skip


def write_partial_pasted(planned: PastingPlan, index: ImageIndex, why: str) -> str:
    """Write the table of the photographs of the shards that are done; see ``write_partial_table``."""
    made = planned.recipe.made(_KIND)
    return write_partial_table(
        "pasted.parquet", planned.out, PASTED_SCHEMA, made, index.shards, planned.log, why
    )
