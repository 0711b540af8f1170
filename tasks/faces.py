"""Photographs -> aligned faces, a shard of photographs at a time, and the table that says whose is whose.

A photograph has a row for each of its faces; one without a face, or one that cannot be read, has a
single row that says so. A face keeps its number and its name whatever happens to the others.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict

import pyarrow as pa
from PIL import Image
from prefect import task
from pydantic import BaseModel, ConfigDict

import styleclip_core
from styleclip_core.errors import FaceError, NoFaceError, StyleCLIPError
from styleclip_core.faces import Face, align_face, quad_from_landmarks
from styleclip_core.images import decode_image, encode_photograph
from tasks import models
from tasks.artifacts import (
    Provenance,
    artifact_uri,
    count,
    fingerprint,
    is_complete,
    read_table,
    write_tables,
)
from tasks.caching import PER_RUN
from tasks.images import ImageIndex, ImageShard, read_shard
from tasks.landmarks import read_landmarks
from tasks.outcomes import FAILED, OK, SKIPPED, STATUS_FIELDS, OutcomeLog, Row, failure, success
from tasks.overlap import computing
from tasks.progress import ShardResult
from tasks.settings import Alignment, FaceSource
from tasks.storage import StorageError, is_outage, join, output_key, read_bytes, write_bytes_atomic

STEP, VERSION = "align-faces", "1"

FACES_SCHEMA = pa.schema([
    ("image_key", pa.string()), ("face_index", pa.int32()), *STATUS_FIELDS, ("score", pa.float32()),
    ("landmarks", pa.list_(pa.float64())), ("quad", pa.list_(pa.float64(), 8)), ("padded", pa.bool_()),
    ("output_key", pa.string()), ("etag", pa.string()), ("content_hash", pa.string()),
    ("width", pa.int32()), ("height", pa.int32()),
])  # fmt: skip


class SmallFaceError(FaceError):
    """A face is so small that it is left as it is."""


class AlignmentPlan(BaseModel):
    """Everything a shard needs to know, and where its rows and its faces will lie."""

    model_config = ConfigDict(frozen=True)

    photos: str
    out: str
    folder: str
    fingerprint: str
    source: FaceSource
    source_hash: str
    settings: Alignment

    @property
    def faces(self) -> str:
        """Return the prefix of the aligned faces; nothing else lies under it."""
        return join(self.out, f"faces_{self.fingerprint[:8]}")

    def log(self, shard: ImageShard) -> OutcomeLog:
        """Return the attempts at a shard."""
        return OutcomeLog(self.folder, shard.digest, ("image_key", "face_index"))


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
    """

    model_config = ConfigDict(frozen=True)

    table: str
    faces: str
    photographs: int
    aligned: int
    without: int
    skipped: int
    failed: int


def plan(
    photos: str, out: str, workspace: str, source: FaceSource, source_hash: str, settings: Alignment
) -> AlignmentPlan:
    """Return where the faces of these settings lie; nothing is computed."""
    print_ = fingerprint(STEP, VERSION, _parameters(photos, out, source, settings), {"source": source_hash})
    return AlignmentPlan(
        photos=photos,
        out=out,
        folder=artifact_uri(workspace, "faces", print_),
        fingerprint=print_,
        source=source,
        source_hash=source_hash,
        settings=settings,
    )


def face_key(image_key: str, face_index: int) -> str:
    """Return the key of an aligned face, e.g. ``p1.jpg.face0.png``; no two faces share one."""
    return output_key(f"{image_key}.face{face_index}.png", suffix=".png")


@task(name="identify-face-source", cache_policy=PER_RUN, persist_result=True)
def identify_source(source: FaceSource, device: str) -> str:
    """Return the hash of what finds the faces: the detector's weights, or the table of landmarks."""
    if source.detector is not None:
        return models.face_detector(source.detector, device, source.min_score).fingerprint
    digest = hashlib.sha256(read_bytes(str(source.landmarks))).hexdigest()
    read_landmarks(str(source.landmarks), digest)  # a table of another form must stop the run here
    return digest


@task(
    name="align-shard", task_run_name="align-shard-{shard.number}", cache_policy=PER_RUN, persist_result=True
)
def align_shard(planned: AlignmentPlan, shard: ImageShard, device: str) -> ShardResult:
    """Align the faces of the photographs of one shard that are not done yet."""
    started = time.monotonic()
    log = planned.log(shard)
    known = {log.item(row): row for row in log.latest()}
    states = defaultdict(set)
    for row in known.values():
        states[row["image_key"]].add(row["status"])
    # nobody in a photograph is an answer, and stays one
    todo = [(key, etag) for key, etag in read_shard(shard) if not states[key] or FAILED in states[key]]
    if todo:
        rows = [row for key, etag in todo for row in _align_photograph(planned, key, etag, device)]
        log.append(rows, FACES_SCHEMA, provenance(planned))
        known |= {log.item(row): row for row in rows}
    return ShardResult(
        uri=log.uri(0),
        rows=len(known),
        failed=sum(row["status"] == FAILED for row in known.values()),
        reused=not todo,
        seconds=time.monotonic() - started,
    )


def _align_photograph(planned: AlignmentPlan, key: str, etag: str, device: str) -> list[Row]:
    row = dict.fromkeys(FACES_SCHEMA.names) | {"image_key": key, "face_index": 0, "etag": etag}
    try:
        data = read_bytes(join(planned.photos, key))
        row["content_hash"] = hashlib.sha256(data).hexdigest()
        image = decode_image(data)
        row |= {"width": image.width, "height": image.height}
        faces = _find(planned, key, image, device)
    except NoFaceError as error:
        return [row | failure(error, status=SKIPPED)]
    except (StyleCLIPError, OSError) as error:
        if is_outage(error, planned.photos):
            raise
        return [row | failure(error)]
    return [_align(planned, row | {"face_index": index}, image, face) for index, face in enumerate(faces)]


def _find(planned: AlignmentPlan, key: str, image: Image.Image, device: str) -> list[Face]:
    """Return the faces of a photograph, the largest first.

    Raises:
        NoFaceError: If there is none.
    """
    source = planned.source
    if source.detector is not None:
        with computing(device):
            faces = models.face_detector(source.detector, device, source.min_score).detect(image)
        if not faces:
            raise NoFaceError(
                f"no face with a score above {source.min_score:g} in {key}; lower min_score, or give its "
                "landmarks in a table"
            )
    else:
        faces = read_landmarks(str(source.landmarks), planned.source_hash).get(key, [])
        faces = sorted(faces, key=_size, reverse=True)
        if not faces:
            raise NoFaceError(
                f"{source.landmarks} has no face of {key}; its keys must be relative to {planned.photos}"
            )
    return faces[: planned.settings.max_faces]


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
        write_bytes_atomic(join(planned.faces, key), encode_photograph(aligned.image, colours_of=image))
    except SmallFaceError as error:
        return row | failure(error, status=SKIPPED)
    except StorageError:  # of what is written, no photograph is to blame
        raise
    except (StyleCLIPError, OSError) as error:
        return row | failure(error)
    return row | {"quad": aligned.quad.to_list(), "padded": aligned.padded, "output_key": key} | success()


@task(name="write-faces", cache_policy=PER_RUN, persist_result=True)
def write_faces(planned: AlignmentPlan, index: ImageIndex) -> FacesRef:
    """Gather the rows of all shards into the table of faces."""
    attempts = [uri for shard in index.shards for uri in planned.log(shard).attempts()]
    name = fingerprint(STEP, VERSION, {"attempts": attempts}, {"index": index.fingerprint})[:16]
    uri = join(planned.out, "batches", name, "faces.parquet")
    if not is_complete(uri):
        tables = (planned.log(shard).table(FACES_SCHEMA) for shard in index.shards)
        write_tables(uri, FACES_SCHEMA, tables, provenance(planned))
    found = read_table(uri, columns=["status", "error_type"])
    counts = {status: count(found, "status", status) for status in (OK, SKIPPED, FAILED)}
    nobody = count(found, "error_type", NoFaceError.__name__)
    return FacesRef(
        table=uri,
        faces=planned.faces,
        photographs=index.rows,
        aligned=counts[OK],
        without=nobody,
        skipped=counts[SKIPPED] - nobody,
        failed=counts[FAILED],
    )


def read_faces(uri: str) -> dict[str, list[Row]]:
    """Return the rows of a table of faces by image key.

    Raises:
        DamagedArtifactError: If it is no such table.
    """
    by_image: dict[str, list[Row]] = defaultdict(list)
    for row in read_table(uri, columns=FACES_SCHEMA.names).to_pylist():
        by_image[row["image_key"]].append(row)
    return dict(by_image)


def _parameters(photos: str, out: str, source: FaceSource, settings: Alignment) -> dict[str, object]:
    found = {"found_by": "landmarks"} if source.landmarks else {"min_score": source.min_score}
    return {"photos": photos, "out": out, **found, **settings.model_dump()}


def provenance(planned: AlignmentPlan) -> Provenance:
    """Return what the Parquet metadata of faces says."""
    return Provenance(
        kind="faces",
        fingerprint=planned.fingerprint,
        step=STEP,
        version=VERSION,
        parameters=_parameters(planned.photos, planned.out, planned.source, planned.settings),
        inputs={"source": planned.source_hash},
        generator="",
        clip="",
        code_version=styleclip_core.__version__,
    )
