"""Edited faces -> full photographs, a shard of photographs at a time.

The table of faces says which face belongs where. A photograph is written when all its faces are
there; one that lacks a face is a row that names it, and is tried again when the face has come. One
that has no face, or one that could not be aligned, is skipped.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from functools import lru_cache

import pyarrow as pa
from PIL import Image
from prefect import task
from pydantic import BaseModel, ConfigDict

import styleclip_core
from styleclip_core.errors import ArtifactConflictError, FaceError, NoFaceError, StyleCLIPError
from styleclip_core.faces import FaceQuad, paste_faces
from styleclip_core.images import decode_image, encode_photograph
from tasks.artifacts import (
    Provenance,
    artifact_uri,
    count,
    fingerprint,
    is_complete,
    read_provenance,
    read_table,
    write_tables,
)
from tasks.caching import PER_RUN
from tasks.faces import read_faces
from tasks.images import ImageIndex, ImageShard, read_shard, write_index
from tasks.outcomes import FAILED, OK, SKIPPED, STATUS_FIELDS, OutcomeLog, Row, failure, success
from tasks.progress import ShardResult
from tasks.settings import Pasting, SettingsError
from tasks.storage import (
    MissingObjectError,
    ObjectInfo,
    is_outage,
    join,
    list_objects,
    output_key,
    read_bytes,
    write_bytes_atomic,
)

STEP, VERSION = "paste-faces", "1"

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
    fingerprint: str
    settings: Pasting

    @property
    def photographs(self) -> str:
        """Return the prefix of the photographs with their edited faces."""
        return join(self.out, f"photographs_{self.fingerprint[:8]}")

    def log(self, shard: ImageShard) -> OutcomeLog:
        """Return the attempts at a shard."""
        return OutcomeLog(self.folder, shard.digest, ("image_key",))


class PastedRef(BaseModel):
    """Where the photographs of a batch lie, and how many there are."""

    model_config = ConfigDict(frozen=True)

    table: str
    photographs: str
    pasted: int
    skipped: int
    failed: int


def plan(table: FaceTable, edited: str, out: str, workspace: str, settings: Pasting) -> PastingPlan:
    """Return where the photographs of these settings lie; nothing is computed."""
    parameters = {"photos": table.photos, "edited": edited, "out": out, **settings.model_dump()}
    print_ = fingerprint(STEP, VERSION, parameters, {"faces": table.digest})
    return PastingPlan(
        table=table,
        edited=edited,
        out=out,
        folder=artifact_uri(workspace, "pasted", print_),
        fingerprint=print_,
        settings=settings,
    )


@task(name="identify-faces", cache_policy=PER_RUN, persist_result=True)
def identify_faces(uri: str, photos: str) -> FaceTable:
    """Read which photographs a table of faces is about; ``photos`` says where they have moved to.

    Raises:
        SettingsError: If it is a table of something else.
    """
    made = read_provenance(uri)
    if made.kind != "faces":
        raise SettingsError(f"{uri} is a table of {made.kind}, not of faces; give the one align-faces wrote")
    digest = hashlib.sha256(read_bytes(uri)).hexdigest()
    return FaceTable(uri=uri, digest=digest, photos=photos or str(made.parameters["photos"]))


@task(name="index-edited-faces", cache_policy=PER_RUN, persist_result=True)
def index_edited(table: FaceTable, edited: str, workspace: str, shard_size: int) -> ImageIndex:
    """Cut the photographs of a table into shards; a photograph's version is that of its edited faces.

    Raises:
        MissingObjectError: If there is no edited face at all.
    """
    versions = {item.key: item.etag for item in list_objects(edited)}
    by_image = read_faces(table.uri)
    expected = [row["output_key"] for rows in by_image.values() for row in rows if row["status"] == OK]
    if expected and not any(_edited_key(key, versions) for key in expected):
        raise MissingObjectError(
            f"none of the {len(expected)} faces of {table.uri} lies under {edited} (looked for {expected[0]} "
            "and the others); give the prefix of one edit, not of all"
        )
    objects = [ObjectInfo(key, _version(rows, versions), len(rows)) for key, rows in sorted(by_image.items())]
    return write_index(objects, table.photos, workspace, shard_size)


def _version(rows: list[Row], versions: Mapping[str, str]) -> str:
    parts = []
    for row in rows:
        key = _edited_key(row["output_key"], versions) if row["status"] == OK else None
        parts.append(f"{row['face_index']}\0{row['content_hash']}\0{versions[key] if key else ''}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _edited_key(key: str, there: Mapping[str, str]) -> str | None:
    """Return the key of an edited face: the aligned one's own, or what edit-images makes of it."""
    return next((name for name in (key, output_key(key, suffix=".png")) if name in there), None)


@task(
    name="paste-shard", task_run_name="paste-shard-{shard.number}", cache_policy=PER_RUN, persist_result=True
)
def paste_shard(planned: PastingPlan, shard: ImageShard) -> ShardResult:
    """Put the faces of one shard of photographs back, where that has not been done yet."""
    started = time.monotonic()
    log = planned.log(shard)
    known = {row["image_key"]: row for row in log.latest()}
    done = {key for key, row in known.items() if row["status"] != FAILED}
    todo = [item for item in read_shard(shard) if item[0] not in done]
    if todo:
        faces = _faces(planned.table.uri, planned.table.digest)
        rows = [_paste(planned, key, etag, faces[key]) for key, etag in todo]
        log.append(rows, PASTED_SCHEMA, provenance(planned))
        known |= {row["image_key"]: row for row in rows}
    return ShardResult(
        uri=log.uri(0),
        rows=len(known),
        failed=sum(row["status"] == FAILED for row in known.values()),
        reused=not todo,
        seconds=time.monotonic() - started,
    )


@lru_cache(maxsize=2)
def _faces(uri: str, _digest: str) -> dict[str, list[Row]]:
    return read_faces(uri)


def _paste(planned: PastingPlan, key: str, etag: str, faces: list[Row]) -> Row:
    row = dict.fromkeys(PASTED_SCHEMA.names) | {"image_key": key, "etag": etag}
    try:
        photograph = _photograph(planned, key, faces)
        aligned = [face for face in faces if face["status"] == OK]  # others are left as they are
        edited = [(_edited_face(planned, face), FaceQuad.from_list(face["quad"])) for face in aligned]
        pasted = paste_faces(photograph, edited, feather=planned.settings.feather)
        content = encode_photograph(pasted, colours_of=photograph)
    except (NoFaceError, NotAlignedError) as error:
        causes = [face["error_type"] for face in faces if face["status"] == FAILED]
        return row | failure(error, status=SKIPPED) | {"error_type": (causes or [faces[0]["error_type"]])[0]}
    except (StyleCLIPError, OSError) as error:
        if is_outage(error, planned.table.photos):
            raise
        return row | failure(error)
    name = output_key(key, suffix=".png")
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
    data = read_bytes(join(planned.table.photos, key))
    if hashlib.sha256(data).hexdigest() != faces[0]["content_hash"]:
        raise ArtifactConflictError(
            f"{key} has changed since its faces were found, they would go to the wrong place; run "
            "align-faces again"
        )
    return decode_image(data)


def _edited_face(planned: PastingPlan, face: Row) -> Image.Image:
    key = face["output_key"]
    for name in dict.fromkeys((key, output_key(key, suffix=".png"))):
        try:
            return decode_image(read_bytes(join(planned.edited, name)))
        except MissingObjectError:
            continue  # the other name; if that is not there either, it is said below
    raise MissingFaceError(
        f"face {face['face_index']} of {face['image_key']} is not at {join(planned.edited, key)}; edit it, "
        "then paste again"
    )


@task(name="write-pasted", cache_policy=PER_RUN, persist_result=True)
def write_pasted(planned: PastingPlan, index: ImageIndex) -> PastedRef:
    """Gather the rows of all shards into one table."""
    attempts = [uri for shard in index.shards for uri in planned.log(shard).attempts()]
    name = fingerprint(STEP, VERSION, {"attempts": attempts}, {"index": index.fingerprint})[:16]
    uri = join(planned.out, "batches", name, "pasted.parquet")
    if not is_complete(uri):
        tables = (planned.log(shard).table(PASTED_SCHEMA) for shard in index.shards)
        write_tables(uri, PASTED_SCHEMA, tables, provenance(planned))
    found = read_table(uri, columns=["status"])
    counts = {status: count(found, "status", status) for status in (OK, SKIPPED, FAILED)}
    return PastedRef(
        table=uri,
        photographs=planned.photographs,
        pasted=counts[OK],
        skipped=counts[SKIPPED],
        failed=counts[FAILED],
    )


def provenance(planned: PastingPlan) -> Provenance:
    """Return what the Parquet metadata of pasted photographs says."""
    return Provenance(
        kind="pasted-photographs",
        fingerprint=planned.fingerprint,
        step=STEP,
        version=VERSION,
        parameters={
            "photos": planned.table.photos,
            "edited": planned.edited,
            **planned.settings.model_dump(),
        },
        inputs={"faces": planned.table.digest},
        generator="",
        clip="",
        code_version=styleclip_core.__version__,
    )
