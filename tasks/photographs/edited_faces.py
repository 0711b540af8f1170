"""Edited faces: which of them are there, in what version, and their pictures.

They lie under a prefix, where their names follow from those of the faces, or the manifest of a batch says
where each of them is: in a file of its own, in a tar, or in a table.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Protocol

import pyarrow as pa
from PIL import Image
from pydantic import BaseModel, ConfigDict

from styleclip.tasks.artifacts import read_table
from styleclip.tasks.artifacts.outcomes import OK, STATUS_FIELDS, Row
from styleclip.tasks.photographs.reading import StoredReader, object_of
from styleclip.tasks.settings import SettingsError
from styleclip.tasks.storage import (
    ChangedObjectError,
    MissingObjectError,
    is_safe,
    item_under,
    join,
    list_objects,
    mangled,
    output_key,
    read_version,
    readable_key,
    version,
    versions_of,
)
from styleclip_core.errors import ArtifactConflictError, FaceError
from styleclip_core.images import decode_image
from styleclip_core.settings.saving import ENDINGS

EDITED_SCHEMA = pa.schema([
    ("image_key", pa.string()), ("content_hash", pa.string()), ("output_key", pa.string()),
    ("width", pa.int32()), ("height", pa.int32()), *STATUS_FIELDS,
])  # fmt: skip


class MissingFaceError(FaceError):
    """An edited face is not there, so its photograph cannot be put together."""


class FailedEditError(FaceError):
    """A batch could not edit a face, so its photograph cannot be put together."""

    def __init__(self, message: str, error_type: str) -> None:
        """Take down which face it is, and what kind of error its edit ended with."""
        super().__init__(message)
        self.error_type = error_type


class EditedFaces(BaseModel):
    """Where the edited faces lie.

    Attributes:
        prefix: URI that their names are relative to.
        manifest: URI of the manifest that says where each is; empty where their names say it.
        variant: The manifest's edit that made them.
        rows: URI of the table of what the manifest says of that edit (``EDITED_SCHEMA``).
    """

    model_config = ConfigDict(frozen=True)

    prefix: str
    manifest: str = ""
    variant: str = ""
    rows: str = ""

    @property
    def folder(self) -> str:
        """Return the folder of the photographs with these faces, and a slash; empty without a variant."""
        if not self.variant:
            return ""
        # a manifest may be somebody else's
        return f"{self.variant if is_safe(self.variant) else mangled(self.variant)}/"


class Pictures(Protocol):
    """The edited faces of some photographs."""

    def concern(self, face: Row) -> bool:
        """Return whether a face was to be edited; one that was not is left as it is."""

    def read(self, face: Row) -> tuple[str, Image.Image]:
        """Return version and picture of an edited face.

        Raises:
            ChangedObjectError: If it is another one by now.
            FailedEditError: If it could not be edited.
            MissingFaceError: If it is not there.
        """


def versions(edited: EditedFaces, faces: Sequence[Row]) -> dict[str, str]:
    """Return the versions of the edited faces that are there, by the keys of the faces; lists them once.

    Args:
        edited: Where they lie.
        faces: Rows of a table of faces, of all that were aligned.

    Raises:
        MissingObjectError: If none of them is there.
        SettingsError: If the manifest is of other images, or they are packed and no manifest is given.
    """
    return _ByManifest(edited, faces).versions() if edited.manifest else _listed(edited.prefix, faces)


def pictures(edited: EditedFaces, faces: Sequence[Row]) -> Pictures:
    """Return the edited faces of the photographs of a shard; for ``faces`` see ``versions``."""
    return _ByManifest(edited, faces) if edited.manifest else _ByName(edited.prefix)


# ---- under a prefix, by their names --------------------------------------------------------------------


def _listed(prefix: str, faces: Sequence[Row]) -> dict[str, str]:
    there = {item.key: item.etag for item in list_objects(prefix)}
    keys = {face["output_key"]: _edited_key(face, there) for face in faces}
    found = {face: there[key] for face, key in keys.items() if key}

    # that every single face is missing is a wrong prefix, which should not become a row for each photograph
    if faces and not found:
        if packed := next((key for key in there if key.endswith((".tar", ".parquet"))), ""):
            raise SettingsError(
                f"the images under {prefix} lie in tars or tables ({packed}), and the manifest of their "
                "batch says which is whose; give that, OUT/batches/<batch>/manifest.parquet"
            )
        raise MissingObjectError(
            f"none of the {len(faces)} faces lies under {prefix} (looked for {faces[0]['output_key']} and "
            "the others); give the prefix of one edit, not of all, or the manifest of the batch"
        )
    return found


def _edited_key(face: Row, there: Container[str]) -> str | None:
    """Return the key of an edited face, if it is there."""
    return next((name for name in names(face) if name in there), None)


def names(face: Row) -> list[str]:
    """Return what an edited face may be called: as edit-images names it, as the face, or as it once was."""
    key, version = face["output_key"], face["face_hash"]
    # of whichever format the edit was written in
    named = [
        name(key, suffix=ending, version=version)
        for ending in dict.fromkeys(ENDINGS.values())
        for name in (readable_key, output_key)
    ]
    return [*dict.fromkeys([*named, key, output_key(key, suffix=".png")])]


class _ByName:
    """Edited faces that are called as their faces are."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def concern(self, face: Row) -> bool:
        return True

    def read(self, face: Row) -> tuple[str, Image.Image]:
        etag, content = self._content(face)
        return etag, decode_image(content)

    def _content(self, face: Row) -> tuple[str, bytes]:
        *others, last = names(face)
        try:
            with item_under(self._prefix, last):
                for name in others:
                    with suppress(MissingObjectError):
                        return self._current(name)
                return self._current(last)
        except MissingObjectError as error:
            where = join(self._prefix, names(face)[0])
            raise MissingFaceError(f"{_called(face)} is not at {where}; edit it, then paste again") from error

    def _current(self, name: str) -> tuple[str, bytes]:
        uri = join(self._prefix, name)
        now = version(uri)
        return now, read_version(uri, now)


# ---- where a manifest says -----------------------------------------------------------------------------


class _ByManifest:
    """Edited faces that a manifest lists: their objects are looked at once, neighbours fetched together."""

    def __init__(self, edited: EditedFaces, faces: Sequence[Row]) -> None:
        self._edited, self._faces = edited, faces
        said = _read_rows(edited.rows)
        self._rows = {key: said[key] for face in faces if (key := face["output_key"]) in said}

        # a row names a file, or a place in an object that holds many images
        self._names = {key: row["output_key"] for key, row in self._rows.items() if row["status"] == OK}
        objects = versions_of(edited.prefix, set(map(object_of, self._names.values())))
        there = {name: objects.get(object_of(name)) for name in self._names.values()}
        self._there = {name: etag for name, etag in there.items() if etag}
        self._reader = StoredReader(edited.prefix, self._there.items())

    def versions(self) -> dict[str, str]:
        whose = f"{self._edited.manifest} has of {self._edited.variant}"
        if self._faces and not self._rows:
            raise SettingsError(
                f"none of the {len(self._faces)} faces is an image that {whose} (looked for "
                f"{self._faces[0]['output_key']} and the others); give the manifest of a batch that edited "
                "the faces of this table, or name another variant"
            )
        if self._names and not self._there:
            first = object_of(next(iter(self._names.values())))
            raise MissingObjectError(
                f"none of the {len(self._names)} edited faces that {whose} is there (looked for "
                f"{join(self._edited.prefix, first)} and the others); edit them again, then paste again"
            )
        return {key: self._version(key) for key, name in self._names.items() if name in self._there}

    def concern(self, face: Row) -> bool:
        return face["output_key"] in self._rows

    def read(self, face: Row) -> tuple[str, Image.Image]:
        key, manifest = face["output_key"], self._edited.manifest
        row, which = self._rows[key], _called(face)
        if row["status"] != OK:
            raise FailedEditError(
                f"{which} was not edited: {row['error_type']}, {row['error']}", row["error_type"]
            )
        # null where a manifest was written before there was the column
        if row["content_hash"] not in (None, face["face_hash"]):
            raise ArtifactConflictError(
                f"{which} was cut out anew after {manifest} was written; edit it again, then paste again"
            )

        picture = decode_image(self._content(which, row["output_key"]))
        known = (row["width"], row["height"])
        if None not in known and picture.size != known:
            raise ChangedObjectError(
                f"{which} is {picture.width} x {picture.height} pixels at {row['output_key']}, and "
                f"{known[0]} x {known[1]} by {manifest}: it has changed since; edit it again, then paste "
                "again"
            )
        return self._version(key), picture

    def _content(self, which: str, name: str) -> bytes:
        gone = MissingFaceError(
            f"{which} is not at {join(self._edited.prefix, name)} any more, where {self._edited.manifest} "
            "has it; edit it again, then paste again"
        )
        if name not in self._there:
            raise gone
        try:
            return self._reader.read(name)
        except MissingObjectError as error:
            raise gone from error

    def _version(self, key: str) -> str:
        name = self._names[key]
        return f"{name}\0{self._there[name]}"


@lru_cache(maxsize=4)  # of a process that works on many shards of some edits
def _read_rows(uri: str) -> Mapping[str, Row]:
    """Return what a manifest says of an edit, by image; the table is named by its content."""
    return {row["image_key"]: row for row in read_table(uri).to_pylist()}


def _called(face: Row) -> str:
    return f"face {face['face_index']} of {face['image_key']}"
