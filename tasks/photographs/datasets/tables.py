"""Parquet files with bytes: a row is an image, its other columns travel.

As Hugging Face's datasets write them (``image: struct<bytes, path>``), and with a plain column of bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from styleclip.tasks.photographs.datasets.cells import opened
from styleclip.tasks.photographs.datasets.places import Place
from styleclip.tasks.photographs.datasets.samples import Sample
from styleclip.tasks.settings import SettingsError
from styleclip.tasks.storage import ObjectInfo, join

ENDING = ".parquet"
_USUAL = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "content")
_ROWS = 4096


def image_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that can hold images: ``image`` of bytes, ``image.bytes`` of a struct with some."""
    found = []
    for each in schema:
        if _is_bytes(each.type):
            found.append(each.name)
        elif pa.types.is_struct(each.type):
            at = each.type.get_field_index("bytes")
            if at >= 0 and _is_bytes(each.type.field(at).type):
                found.append(f"{each.name}.bytes")
    return found


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _chosen(uri: str, schema: pa.Schema, wanted: str) -> str:
    """Return the column of images.

    Raises:
        SettingsError: If there is none, or more than one and none of a usual name.
    """
    there = image_columns(schema)
    if wanted:
        named = [name for name in there if wanted in (name, name.removesuffix(".bytes"))]
        if not named:
            known = ", ".join(there) or "none"
            raise SettingsError(f"{uri} has no column {wanted!r} of bytes; of bytes there are: {known}")
        return named[0]

    usual = [name for name in there if name.removesuffix(".bytes").lower() in _USUAL]
    found = there if len(there) == 1 else usual
    if len(found) != 1:
        known = f"several ({', '.join(there)})" if there else f"none of bytes, only {', '.join(schema.names)}"
        raise SettingsError(
            f"which column of {uri} holds the images is not known: there are {known}; name it"
        )
    return found[0]


def table_samples(prefix: str, table: ObjectInfo, column: str) -> Iterator[Sample]:
    """Yield the rows of a Parquet file as samples; a row without an image is found out when it is read.

    Args:
        prefix: URI of the data set.
        table: The file, as it was listed.
        column: Of the images; found by its type and name if empty.

    Raises:
        SettingsError: If it cannot be told which column holds the images.
        UnreadableTableError: If the file is damaged.
    """
    uri = join(prefix, table.key)
    with opened(uri, table.etag) as file:
        schema = file.schema_arrow
        chosen = _chosen(uri, schema, column)
        others = [name for name in _leaves(file, schema) if name != chosen]

        stem, number = table.key.removesuffix(ENDING), 0
        for batch in file.iter_batches(_ROWS, columns=others):
            # without columns there are no batches to count rows by
            for row in batch.to_pylist():
                yield _sample(stem, table, number, chosen, row)
                number += 1
        for rest in range(number, file.metadata.num_rows):
            yield _sample(stem, table, rest, chosen, {})


def _leaves(file: pq.ParquetFile, schema: pa.Schema) -> list[str]:
    """Return the columns that travel: all but bytes, those in structs too."""
    images = set(image_columns(schema))
    names = []
    for each in schema:
        if _is_bytes(each.type):
            continue
        if f"{each.name}.bytes" in images:
            names += [f"{each.name}.{field.name}" for field in each.type if not _is_bytes(field.type)]
        else:
            names.append(each.name)
    return names


def _sample(stem: str, table: ObjectInfo, number: int, column: str, row: dict[str, Any]) -> Sample:
    # a struct's path is the image's name, where it came from
    name = column.partition(".")[0]
    inner = row.pop(name, None) if "." in column else None
    extra = {f"{name}_{key}": value for key, value in (inner or {}).items()}
    place = str(Place(table.key, row=number, column=column))
    return Sample(f"{stem}/{number:08d}", table.etag, 0, place=place, columns=row | extra)


def is_table_of_images(uri: str, found: ObjectInfo) -> bool:
    """Return whether a Parquet file holds images, and is no list of where they are.

    Raises:
        UnreadableTableError: If it is damaged.
    """
    with opened(uri, found.etag) as file:
        return bool(image_columns(file.schema_arrow))
