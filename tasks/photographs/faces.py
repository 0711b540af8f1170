"""Photographs -> aligned faces, a shard of photographs at a time, and the table that says whose is whose.

A photograph has a row for each of its faces; one without a face, or one that cannot be read, has a
single row that says so. A face keeps its number and its name whatever happens to the others.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import cast

import pyarrow as pa
from PIL import Image
from prefect.logging import get_run_logger
from pydantic import BaseModel, ConfigDict

from styleclip.tasks.artifacts import (
    Recipe,
    count,
    fingerprint,
    is_complete,
    read_expected,
    read_identified,
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
from styleclip.tasks.photographs.images import ImageIndex, ImageShard, read_shard
from styleclip.tasks.photographs.landmarks import read_landmarks
from styleclip.tasks.photographs.reading import ShardReader
from styleclip.tasks.running import networks as models
from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.overlap import computing
from styleclip.tasks.running.partial import supersede, write_partial_table
from styleclip.tasks.running.progress import ShardResult
from styleclip.tasks.running.run import Run
from styleclip.tasks.running.shards import Files, Outcomes, finish_shard
from styleclip.tasks.settings import Alignment, FaceSource
from styleclip.tasks.storage import (
    MissingObjectError,
    StorageError,
    join,
    list_objects,
    output_key,
    version,
    write_bytes_atomic,
)
from styleclip_core.errors import FaceError, NoFaceError, StyleCLIPError
from styleclip_core.faces import Face, align_face, quad_from_landmarks
from styleclip_core.images import decode_image, encode_photograph
from styleclip_core.models.mtcnn import Mtcnn

STEP, VERSION = "align-faces", "3"
_NAMED = 20  # faces that a message names

FACES_SCHEMA = pa.schema([
    ("image_key", pa.string()), ("face_index", pa.int32()), *STATUS_FIELDS, ("score", pa.float32()),
    ("landmarks", pa.list_(pa.float64())), ("quad", pa.list_(pa.float64(), 8)), ("padded", pa.bool_()),
    ("output_key", pa.string()), ("output_etag", pa.string()), ("etag", pa.string()),
    ("content_hash", pa.string()), ("face_hash", pa.string()), ("width", pa.int32()), ("height", pa.int32()),
    ("place", pa.string()),
])  # fmt: skip


class SmallFaceError(FaceError):
    """A face is so small that it is left as it is."""


class AlignmentPlan(BaseModel):
    """Everything a shard needs to know, and where its rows and its faces will lie."""

    model_config = ConfigDict(frozen=True)

    photos: str
    out: str
    folder: str
    recipe: Recipe
    source: FaceSource
    source_hash: str
    settings: Alignment

    @property
    def faces(self) -> str:
        """Return the prefix of the aligned faces; nothing else lies under it."""
        return join(self.out, f"faces_{self.recipe.fingerprint[:8]}")

    def log(self, shard: ImageShard) -> OutcomeLog:
        """Return the attempts at a shard."""
        return OutcomeLog(self.folder, shard.digest, ("image_key", "face_index"), shard.before)


class FacesRef(BaseModel):
    """Where the aligned faces of a batch lie, and how many there are.

    Attributes:
        table: URI of the table of faces.
        faces: Prefix of the aligned faces.
        photographs: Photographs there were.
        aligned: Faces that were aligned.
        without: Photographs without any face.
        skipped: Faces that were too small.
        failed: Rows with an error: of a photograph that cannot be read, or of one face.
        left_over: Objects among the faces that are in no row, as their photograph has gone or changed.
    """

    model_config = ConfigDict(frozen=True)

    table: str
    faces: str
    photographs: int
    aligned: int
    without: int
    skipped: int
    failed: int
    left_over: int = 0


def plan(run: Run, photos: str, source: FaceSource, source_hash: str, settings: Alignment) -> AlignmentPlan:
    """Return where the faces of these settings lie; nothing is computed."""
    found = {"found_by": "landmarks"} if source.landmarks else {"min_score": source.min_score}
    parameters = {"photos": photos, "out": run.out, **found, **settings.model_dump()}
    recipe = Recipe(STEP, VERSION, parameters, {"source": source_hash})

    return AlignmentPlan(
        photos=photos, out=run.out, folder=recipe.folder(run.workspace, "faces"), recipe=recipe,
        source=source, source_hash=source_hash, settings=settings,
    )  # fmt: skip


def face_key(image_key: str, face_index: int) -> str:
    """Return the key of an aligned face, e.g. ``p1.jpg.face0.png``; no two faces share one."""
    return output_key(f"{image_key}.face{face_index}.png", suffix=".png")


@unit_of_work("identify-face-source")
def identify_source(run: Run, source: FaceSource) -> str:
    """Return the hash of what finds the faces: the detector's weights, or the table of landmarks."""
    if source.detector is not None:
        wanted = models.Wanted("detector", source.detector, run.device, min_score=source.min_score)
        return models.current(wanted).fingerprint

    _, digest = read_identified(str(source.landmarks))
    read_landmarks(str(source.landmarks), digest)  # a table of another form must stop the run here
    return digest


@unit_of_work("align-shard", "align-shard-{shard.number}")
def align_shard(run: Run, planned: AlignmentPlan, shard: ImageShard) -> ShardResult:
    """Align the faces of the photographs of one shard that are not done yet."""
    images, reader = read_shard(shard), ShardReader(planned.photos, shard)

    def to_do(known: Outcomes) -> list[tuple[str, str]]:
        states = defaultdict(set)
        for row in known.values():
            states[row["image_key"]].add(row["status"])

        # nobody in a photograph is an answer, and stays one
        return [(key, etag) for key, etag in images if not states[key] or FAILED in states[key]]

    def align(photographs: Iterable[tuple[str, str]]) -> Iterable[Row]:
        # loaded before the first photograph: that the source was replaced is no photograph's fault
        find = _finder(run, planned)
        for key, etag in photographs:
            yield from _align_photograph(planned, reader, find, key, etag)

    # a face lies under a name of its photograph alone, as its prefix is a data set for the next flow
    files = [Files(planned.faces, lambda row: row["output_key"], version="output_etag")]
    return finish_shard(
        planned.log(shard), to_do, align, planned.recipe.made("faces"), lambda: FACES_SCHEMA,
        versions=dict(images), files=files, failing={FAILED},
    )  # fmt: skip


_Finder = Callable[[str, Image.Image], list[Face]]


def _finder(run: Run, planned: AlignmentPlan) -> _Finder:
    """Return what finds the faces of a photograph, the largest first.

    Raises:
        ChangedInputError: If it is no longer what the faces are named after.
    """
    source = planned.source
    if source.detector is not None:
        expected, score = planned.source_hash, source.min_score
        wanted = models.Wanted("detector", source.detector, run.device, expected, min_score=score)
        detector = cast(Mtcnn, models.load(wanted))

        def detect(key: str, image: Image.Image) -> list[Face]:
            with computing(run.device):
                return detector.detect(image)

        return detect

    table = read_landmarks(str(source.landmarks), planned.source_hash)
    return lambda key, image: sorted(table.get(key, []), key=_size, reverse=True)


def _align_photograph(
    planned: AlignmentPlan, reader: ShardReader, find: _Finder, key: str, etag: str
) -> list[Row]:
    row = dict.fromkeys(FACES_SCHEMA.names) | {"image_key": key, "face_index": 0, "etag": etag}
    row["place"] = reader.place(key)
    try:
        data = reader.read(key, etag)
        row["content_hash"] = hashlib.sha256(data).hexdigest()
        image = decode_image(data, own_colours=True)
        row |= {"width": image.width, "height": image.height}
        faces = find(key, image)[: planned.settings.max_faces]
        if not faces:
            raise NoFaceError(_nobody(planned, key))
    except NoFaceError as error:
        return [row | failure(error, status=SKIPPED)]
    except (StyleCLIPError, OSError) as error:
        return [row | failure(error)]

    # a face is numbered here, by its place among all, and keeps that number if others cannot be aligned
    return [_align(planned, row | {"face_index": index}, image, face) for index, face in enumerate(faces)]


def _nobody(planned: AlignmentPlan, key: str) -> str:
    source = planned.source
    if source.landmarks:
        return f"{source.landmarks} has no face of {key}; its keys must be relative to {planned.photos}"
    return (
        f"no face with a score above {source.min_score:g} in {key}; lower min_score, or give its "
        "landmarks in a table"
    )


def _size(face: Face) -> float:
    try:
        return quad_from_landmarks(face.landmarks).size
    except FaceError:
        return 0.0  # last; the error is raised again, and written down, where the face is aligned


def _check_size(face: Face, min_size: int) -> None:
    size = quad_from_landmarks(face.landmarks).size
    if size < min_size:
        raise SmallFaceError(
            f"the face is {size:.0f} pixels wide, smaller than {min_size}; lower min_size to edit it"
        )


def _align(planned: AlignmentPlan, row: Row, image: Image.Image, face: Face) -> Row:
    row |= {"score": face.score, "landmarks": face.landmarks.ravel().tolist()}
    settings = planned.settings

    try:
        _check_size(face, settings.min_size)
        aligned = align_face(
            image, face.landmarks, output_size=settings.output_size, transform_size=settings.transform_size
        )
        key = face_key(row["image_key"], row["face_index"])
        content = encode_photograph(aligned.image, colours_of=image)
        write_bytes_atomic(join(planned.faces, key), content)
    except SmallFaceError as error:
        return row | failure(error, status=SKIPPED)
    except StorageError:  # of what is written, no photograph is to blame
        raise
    except (StyleCLIPError, OSError) as error:
        return row | failure(error)

    # the version that lies there now: another photograph's face may take its place
    written = {
        "output_key": key, "output_etag": version(join(planned.faces, key)),
        "face_hash": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip
    return row | {"quad": aligned.quad.to_list(), "padded": aligned.padded} | written | success()


@unit_of_work("write-faces")
def write_faces(planned: AlignmentPlan, index: ImageIndex) -> FacesRef:
    """Gather the rows of all shards into the table of faces."""
    # a table is named after the attempts in it, so that one more of them makes another table
    attempts = [uri for shard in index.shards for uri in planned.log(shard).attempts()]
    name = fingerprint(STEP, VERSION, {"attempts": attempts}, {"index": index.fingerprint})[:16]
    uri = join(planned.out, "batches", name, "faces.parquet")
    if not is_complete(uri):
        tables = (planned.log(shard).table(FACES_SCHEMA) for shard in index.shards)
        write_tables(uri, FACES_SCHEMA, tables, planned.recipe.made("faces"))
    supersede(planned.out, {STEP: planned.recipe.fingerprint}, by=uri)

    found = read_table(uri, columns=["status", "error_type", "output_key"])
    counts = {status: count(found, "status", status) for status in (OK, SKIPPED, FAILED)}
    nobody = count(found, "error_type", NoFaceError.__name__)

    # nothing is deleted here, but whoever edits the prefix next must know
    left = _left_over(planned.faces, found["output_key"].to_pylist())
    if left:
        get_run_logger().warning(
            "%d faces under %s are of no photograph any more and would be edited with the others; delete "
            "them: %s%s", len(left), planned.faces, ", ".join(left[:_NAMED]),
            f" and {len(left) - _NAMED} more, all that are not in {uri}" if len(left) > _NAMED else "",
        )  # fmt: skip
    return FacesRef(
        table=uri, faces=planned.faces, photographs=index.rows, aligned=counts[OK], without=nobody,
        skipped=counts[SKIPPED] - nobody, failed=counts[FAILED], left_over=len(left),
    )  # fmt: skip


def _left_over(prefix: str, current: Iterable[str]) -> list[str]:
    """Return the keys of what lies among the faces and is not current."""
    known = set(current)
    try:
        return [item.key for item in list_objects(prefix) if item.key not in known]
    except MissingObjectError:  # nobody has had a face yet
        return []


def write_partial_faces(planned: AlignmentPlan, index: ImageIndex, why: str) -> str:
    """Write the table of the faces of the shards that are done; see ``write_partial_table``."""
    made = planned.recipe.made("faces")
    return write_partial_table(
        "faces.parquet", planned.out, FACES_SCHEMA, made, index.shards, planned.log, why
    )


@lru_cache(maxsize=2)  # of a process that works on many shards of one table
def read_faces(uri: str, digest: str) -> dict[str, list[Row]]:
    """Return the rows of a table of faces by image key.

    Args:
        uri: Where the table lies.
        digest: Its SHA-256 when it was looked at.

    Raises:
        ChangedInputError: If it has been replaced since.
        DamagedArtifactError: If it is no such table.
    """
    content = read_expected(uri, digest)
    by_image: dict[str, list[Row]] = defaultdict(list)
    for row in read_table(uri, columns=FACES_SCHEMA.names, content=content).to_pylist():
        by_image[row["image_key"]].append(row)
    return dict(by_image)
