"""Edited faces -> full photographs, a shard of photographs at a time.

The table of faces says which face belongs where. A photograph is written when all its faces are
there; one that lacks a face is a row that names it, and is tried again when the face has come. One
that has no face, or one that could not be aligned, is skipped.

Of a batch's manifest every variant has shards of its own, so that another one leaves their work as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
from PIL import Image
from pydantic import BaseModel, ConfigDict

from styleclip.tasks.artifacts import (
    Provenance,
    Recipe,
    count,
    fingerprint,
    is_complete,
    read_identified,
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
from styleclip.tasks.photographs.edited_faces import (
    EditedFaces,
    FailedEditError,
    Pictures,
    pictures,
    versions,
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
    ObjectInfo,
    canonical,
    join,
    output_key,
    write_bytes_atomic,
)
from styleclip_core.colours import from_srgb, rgb_profile
from styleclip_core.errors import ArtifactConflictError, FaceError, NoFaceError, StyleCLIPError
from styleclip_core.faces import FaceQuad, paste_faces
from styleclip_core.images import decode_image, encode_photograph

STEP, VERSION = "paste-faces", "3"
_KIND = "pasted-photographs"

PASTED_SCHEMA = pa.schema([
    ("image_key", pa.string()), *STATUS_FIELDS, ("faces", pa.int32()), ("output_key", pa.string()),
    ("etag", pa.string()),
])  # fmt: skip


class NotEditedError(FaceError):
    """No face of a photograph was to be edited."""


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
    edited: EditedFaces
    out: str
    folder: str
    recipe: Recipe
    settings: Pasting

    @property
    def photographs(self) -> str:
        """Return the prefix of the photographs with their edited faces."""
        return join(self.out, f"photographs_{self.recipe.fingerprint[:8]}")

    @property
    def schema(self) -> pa.Schema:
        """Return the columns of rows; of a manifest, they say of which edit a row is."""
        return pa.schema([*PASTED_SCHEMA, *([("variant", pa.string())] if self.edited.variant else [])])

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


def plan(run: Run, table: FaceTable, edited: EditedFaces, settings: Pasting) -> PastingPlan:
    """Return where the photographs of these settings lie; nothing is computed."""
    parameters = {
        "photos": table.photos, "edited": edited.prefix, "out": run.out,
        **settings.model_dump(exclude={"variant"}), **({"by": "manifest"} if edited.manifest else {}),
    }  # fmt: skip
    # not named by either table: what they say of a photograph is a part of that photograph's version
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
    content, digest = read_identified(uri)
    made = read_provenance(uri, content=content)
    if made.kind != "faces":
        raise SettingsError(f"{uri} is a table of {made.kind}, not of faces; give the one align-faces wrote")

    return FaceTable(uri=uri, digest=digest, photos=photos or canonical(str(made.parameters["photos"])))


@unit_of_work("index-edited-faces")
def index_edited(run: Run, table: FaceTable, edited: EditedFaces, shard_size: int) -> ImageIndex:
    """Cut the photographs of a table into shards; a photograph's version is that of its edited faces.

    Raises:
        MissingObjectError: If there is no edited face at all.
        SettingsError: If the manifest is of other images, or the faces are packed and there is none.
    """
    by_image = read_faces(table.uri, table.digest)
    found = versions(edited, [row for rows in by_image.values() for row in rows if row["status"] == OK])

    objects = [
        ObjectInfo(key, _version(edited, rows, found), len(rows)) for key, rows in sorted(by_image.items())
    ]
    about = {"edited": edited.prefix} | ({"variant": edited.variant} if edited.variant else {})
    return write_index(objects, table.photos, run.workspace, shard_size, about)


def _version(edited: EditedFaces, rows: Sequence[Row], found: Mapping[str, str]) -> str:
    """Return the version of a photograph, by those of its edited faces that are there."""
    parts = [edited.variant] if edited.variant else []  # no two variants share shards
    for row in rows:
        # with its place in the photograph, since alignment may have found it elsewhere
        place = f"{row['face_index']}\0{row['content_hash']}\0{row['quad']}"
        parts.append(f"{place}\0{found.get(row['output_key'], '')}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


@unit_of_work("paste-shard", "paste-shard-{planned.edited.folder}{shard.number}")
def paste_shard(planned: PastingPlan, shard: ImageShard) -> ShardResult:
    """Put the faces of one shard of photographs back, where that has not been done yet."""
    images = read_shard(shard)

    def to_do(known: Outcomes) -> list[tuple[str, str]]:
        done = {row["image_key"] for row in known.values() if row["status"] != FAILED}
        return [(key, etag) for key, etag in images if key not in done]

    def paste(photographs: Iterable[tuple[str, str]]) -> Iterable[Row]:
        by_image, todo = read_faces(planned.table.uri, planned.table.digest), list(photographs)
        aligned = [face for key, _ in todo for face in by_image[key] if face["status"] == OK]
        edited = pictures(planned.edited, aligned)
        return (_paste(planned, edited, key, etag, by_image[key]) for key, etag in todo)

    return finish_shard(
        planned.log(shard), to_do, paste, planned.made(), lambda: planned.schema, versions=dict(images),
        files=[Files(planned.photographs, lambda row: row["output_key"])], failing={FAILED},
    )  # fmt: skip


def _paste(planned: PastingPlan, edited: Pictures, key: str, etag: str, faces: list[Row]) -> Row:
    row = dict.fromkeys(planned.schema.names) | {"image_key": key, "etag": etag}
    if planned.edited.variant:
        row["variant"] = planned.edited.variant
    try:
        photograph = _photograph(planned, key, faces)
        # others are left as they are
        mine = [face for face in faces if face["status"] == OK and edited.concern(face)]
        if not mine:
            raise NotEditedError(
                f"no face of {key} is among the images that {planned.edited.manifest} has of "
                f"{planned.edited.variant}"
            )
        found = _edited_faces(planned, edited, key, etag, faces, mine)
        quads = [FaceQuad.from_list(face["quad"]) for face in mine]
        found = [from_srgb(face, rgb_profile(photograph)) for face in found]
        pasted = paste_faces(
            photograph, list(zip(found, quads, strict=True)), feather=planned.settings.feather
        )
        content = encode_photograph(pasted, colours_of=photograph)
    except (NoFaceError, NotAlignedError) as error:
        causes = [face["error_type"] for face in faces if face["status"] == FAILED]
        return row | failure(error, status=SKIPPED) | {"error_type": (causes or [faces[0]["error_type"]])[0]}
    except NotEditedError as error:
        return row | failure(error, status=SKIPPED)
    except FailedEditError as error:
        return row | failure(error) | {"error_type": error.error_type}
    except (StyleCLIPError, OSError) as error:
        return row | failure(error)

    # outside of the block above: if this cannot be written, no photograph is to blame
    name = f"{planned.edited.folder}{output_key(key, suffix='.png', version=etag)}"
    write_bytes_atomic(join(planned.photographs, name), content)
    return row | {"faces": len(mine), "output_key": name} | success()


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
    return decode_image(data, own_colours=True)


def _edited_faces(
    planned: PastingPlan, edited: Pictures, key: str, etag: str, faces: list[Row], mine: list[Row]
) -> list[Image.Image]:
    """Read those faces of a photograph that are edited, as they were listed.

    Raises:
        FailedEditError: If one could not be edited.
        MissingFaceError: If one is not there.
        ChangedObjectError: If one is another version by now.
    """
    read = {face["output_key"]: edited.read(face) for face in mine}

    # the index has one version for all faces of a photograph, so it is asked of all together
    if _version(planned.edited, faces, {name: version for name, (version, _) in read.items()}) != etag:
        raise ChangedObjectError(
            f"an edited face of {key} has changed since it was listed; a new run takes the new version"
        )
    return [picture for _, picture in read.values()]


@unit_of_work("write-pasted")
def write_pasted(planned: list[PastingPlan], indexes: list[ImageIndex]) -> PastedRef:
    """Gather the rows of all shards into one table; of a manifest, those of one variant after the other's."""
    first, shards = planned[0], shards_of(planned, indexes)
    # a table is named after the attempts in it, so that one more of them makes another table
    attempts = [uri for each, shard in shards for uri in each.log(shard).attempts()]
    inputs = {
        f"index/{each.edited.variant}".rstrip("/"): index.fingerprint
        for each, index in zip(planned, indexes, strict=True)
    }
    name = fingerprint(STEP, VERSION, {"attempts": attempts}, inputs)[:16]
    uri = join(first.out, "batches", name, "pasted.parquet")
    if not is_complete(uri):
        tables = (each.log(shard).table(each.schema) for each, shard in shards)
        write_tables(uri, first.schema, tables, first.made())
    supersede(first.out, {STEP: first.recipe.fingerprint}, by=uri)

    found = read_table(uri, columns=["status"])
    counts = {status: count(found, "status", status) for status in (OK, SKIPPED, FAILED)}
    return PastedRef(
        table=uri, photographs=first.photographs, pasted=counts[OK], skipped=counts[SKIPPED],
        failed=counts[FAILED],
    )  # fmt: skip


def shards_of(
    planned: Sequence[PastingPlan], indexes: Sequence[ImageIndex]
) -> list[tuple[PastingPlan, ImageShard]]:
    """Return every shard of every plan."""
    return [(each, shard) for each, index in zip(planned, indexes, strict=True) for shard in index.shards]


def write_partial_pasted(planned: list[PastingPlan], indexes: list[ImageIndex], why: str) -> str:
    """Write the table of the photographs of the shards that are done; see ``write_partial_table``."""
    first, shards = planned[0], shards_of(planned, indexes)
    made = first.recipe.made(_KIND)
    return write_partial_table(
        "pasted.parquet", first.out, first.schema, made, shards, lambda each: each[0].log(each[1]), why
    )
