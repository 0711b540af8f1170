"""Landmarks that somebody has already: a table keyed by image key -> faces.

Three forms; a photograph may have several faces, a face has 5 or 68 points, in pixels of the upright
photograph, and keys are relative to the photographs' prefix:

    .parquet  columns image_key, landmarks (x0, y0, x1, y1, ... or a list of pairs), and score if there
              is one; the table that align-faces writes is such a table
    .csv      columns image_key, x0, y0, ..., x4, y4 (or ... x67, y67), and score if there is one
    .json     {image_key: [[x, y], ...]}, or {image_key: [face, face, ...]}
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from styleclip.tasks.artifacts import read_expected, read_table
from styleclip.tasks.settings import SettingsError
from styleclip_core.faces import Face

FaceTable = dict[str, list[Face]]


@lru_cache(maxsize=4)
def read_landmarks(uri: str, digest: str) -> FaceTable:
    """Read a table of landmarks; kept per process, under the table's hash.

    Args:
        uri: Where it lies; its ending says which form it has.
        digest: Its SHA-256 when it was looked at.

    Returns:
        The faces of every image key, in the order of the table. Their landmarks are numbers, but not
        checked any further: a wrong face is the error of its row.

    Raises:
        SettingsError: If the file has another form.
        ChangedInputError: If it has been replaced since.
        StorageError: If it cannot be read.
    """
    faces: FaceTable = {}
    for place, key, landmarks, score in _entries(uri, read_expected(uri, digest)):
        if not isinstance(key, str) or not key:
            raise SettingsError(f"{uri}, {place}: the image key is {key!r}; give the key below the prefix")

        try:
            points = np.array(landmarks, dtype=np.float64)
            sure = 1.0 if score is None else float(score)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"{uri}, {place} ({key}): these are no landmarks: {error}") from error

        # one flat row of numbers, as CSV and Parquet hold it; what has another shape is its face's error
        if points.ndim == 1 and points.size % 2 == 0:
            points = points.reshape(-1, 2)
        faces.setdefault(key, []).append(Face(points, sure))
    return faces


def _entries(uri: str, content: bytes) -> Iterator[tuple[str, Any, Any, Any]]:
    """Yield place, image key, landmarks and score of every face."""
    if uri.endswith(".parquet"):
        return _parquet_entries(uri, content)
    if uri.endswith(".csv"):
        return _csv_entries(uri, content)
    if uri.endswith(".json"):
        return _json_entries(uri, content)
    raise SettingsError(f"{uri} is no table of landmarks by its name; give a .parquet, .csv or .json file")


def _parquet_entries(uri: str, content: bytes) -> Iterator[tuple[str, Any, Any, Any]]:
    table = read_table(uri, content=content)
    missing = {"image_key", "landmarks"} - set(table.column_names)
    if missing:
        raise SettingsError(
            f"{uri} has no column {', '.join(sorted(missing))}; it must have image_key and landmarks"
        )

    names = [name for name in ("image_key", "landmarks", "score") if name in table.column_names]
    for number, row in enumerate(table.select(names).to_pylist()):
        if row["landmarks"] is not None:  # a photograph without a face has a row, too
            yield f"row {number}", row["image_key"], row["landmarks"], row.get("score")


def _csv_entries(uri: str, content: bytes) -> Iterator[tuple[str, Any, Any, Any]]:
    try:
        # spreadsheets write a byte order mark, which would become a part of the first column's name
        rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        columns = [name for name in rows.fieldnames or [] if name not in ("image_key", "score")]
        expected = [f"{axis}{point}" for point in range(len(columns) // 2) for axis in "xy"]
        if columns != expected or "image_key" not in (rows.fieldnames or []):
            raise SettingsError(
                f"{uri} has the columns {', '.join(rows.fieldnames or ['none'])}; they must be image_key, "
                "x0, y0, x1, y1, ... and score if there is one"
            )

        for row in rows:
            values = [row[name] for name in columns]
            while values and not values[-1]:
                values.pop()  # a table of 68 points may hold faces of 5
            yield f"line {rows.line_num}", row["image_key"], values, row.get("score") or None
    except (csv.Error, UnicodeDecodeError) as error:
        raise SettingsError(f"{uri} is no readable CSV file: {error}") from error


def _json_entries(uri: str, content: bytes) -> Iterator[tuple[str, Any, Any, Any]]:
    try:
        faces_of = json.loads(content)
    except ValueError as error:
        raise SettingsError(f"{uri} is no readable JSON file: {error}") from error
    if not isinstance(faces_of, dict):
        raise SettingsError(f"{uri} must map image keys to landmarks, it holds a {type(faces_of).__name__}")

    for key, value in faces_of.items():
        # a face is a list of pairs, so one level deeper there are several faces
        faces = value if _depth(value) == 3 else [value]
        for number, face in enumerate(faces):
            yield f"face {number}", key, face, None


def _depth(value: object) -> int:
    return 1 + _depth(value[0]) if isinstance(value, list) and value else 0
