"""Parquet tables that say what made them, written once and whole, and read with their checksums."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from prefect.logging import get_logger

from styleclip.tasks.artifacts.distances import farthest
from styleclip.tasks.artifacts.recipe import ChangedInputError, Provenance
from styleclip.tasks.storage import (
    copy_from_local,
    copy_to_local,
    exists,
    is_local,
    local_path,
    open_binary,
    read_bytes,
    write_bytes_atomic,
)
from styleclip.tasks.storage.outages import explained
from styleclip_core.errors import ArtifactConflictError, StyleCLIPError

_METADATA = b"styleclip.provenance"
_ROW_GROUP = 16_384
_ROUNDING = 1e-3  # of a column's size; plain forward passes differ by less between processors
_NO_ROUNDING = 0.5  # of a column's size; no descent that began alike ends so far apart
_log = get_logger("artifacts")


class DamagedArtifactError(StyleCLIPError):
    """A file is no artifact of this project, or its bytes are damaged."""


def is_complete(uri: str) -> bool:
    """Return whether an artifact is there; it is complete or absent."""
    return exists(uri)


def write_table(uri: str, table: pa.Table, provenance: Provenance, *, decided: Sequence[str] = ()) -> None:
    """Write a table once.

    Args:
        uri: Where to.
        table: Typed columns, rows sorted by their key.
        provenance: What made it.
        decided: Columns of whole numbers that an early stop decides, and another processor otherwise.

    Raises:
        ArtifactConflictError: If a table lies there that the same step on another processor cannot have made.
        StorageError: If it cannot be written.
    """
    buffer = io.BytesIO()
    with _writer(buffer, table.schema, provenance) as writer:
        writer.write_table(table, row_group_size=_ROW_GROUP)

    data = buffer.getvalue()

    # a retry on one machine writes the same bytes again
    if not exists(uri):
        write_bytes_atomic(uri, data)
    elif (first := read_bytes(uri)) != data:
        _keep_first(uri, io.BytesIO(first), buffer, decided)


def write_tables(uri: str, schema: pa.Schema, tables: Iterable[pa.Table], provenance: Provenance) -> None:
    """Write many tables as one, once, a few rows in memory at a time; the bytes are ``write_table``'s.

    Args:
        uri: Where to.
        schema: Columns of every table.
        tables: Rows, in their order.
        provenance: What made it.

    Raises:
        ArtifactConflictError: If a table lies there that the same step on another processor cannot have made.
        StorageError: If it cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="styleclip-table-") as folder:
        path = Path(folder) / "table.parquet"
        with explained(str(path), "write"), _writer(path, schema, provenance) as writer:
            # cut where write_table cuts, so that the bytes are the same
            for group in portions(schema, tables, _ROW_GROUP):
                writer.write_table(group, row_group_size=_ROW_GROUP)

        if not exists(uri):
            copy_from_local(path, uri)
            return

        first = local_path(uri) if is_local(uri) else Path(folder) / "first"
        if not is_local(uri):
            copy_to_local(uri, first)
        if _digest(first) != _digest(path):
            _keep_first(uri, first, path)


def portions(schema: pa.Schema, tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """Yield the rows of tables, so many at a time; the last ones may be fewer."""
    waiting, rows = [schema.empty_table()], 0
    for table in tables:
        waiting.append(table)
        rows += len(table)
        # put together where a portion is full, not with every table: there may be thousands of a row each
        if rows >= size:
            whole = pa.concat_tables(waiting)
            while len(whole) >= size:
                yield whole.slice(0, size).combine_chunks()
                whole = whole.slice(size)
            waiting, rows = [whole], len(whole)

    if rows:
        yield pa.concat_tables(waiting).combine_chunks()


def _writer(where: Path | io.BytesIO, schema: pa.Schema, provenance: Provenance) -> pq.ParquetWriter:
    metadata = {_METADATA: json.dumps(asdict(provenance), sort_keys=True).encode()}
    return pq.ParquetWriter(
        where, schema.with_metadata(metadata), compression="zstd", write_page_checksum=True
    )


def _digest(path: Path) -> bytes:
    # hashed piece by piece: a manifest may be larger than memory
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _keep_first(
    uri: str, first: Path | io.BytesIO, second: Path | io.BytesIO, decided: Sequence[str] = ()
) -> None:
    """Leave the first of two tables of one step where it is; the second may differ as processors do."""
    with readable(uri), pq.ParquetFile(first) as theirs, pq.ParquetFile(second) as ours:
        name, distance = farthest(theirs, ours, decided)
        there, here = (_provenance(uri, each.schema_arrow) for each in (theirs, ours))

    if distance > 0 and there.fingerprint != here.fingerprint:
        raise ArtifactConflictError(
            f"{uri} was made of something else: {_differences(there, here)}; give another place, or delete it"
        )
    if distance > _NO_ROUNDING:
        raise ArtifactConflictError(
            f"{uri} exists with other content in {name}, though the same step with the same inputs made it; "
            "delete it if its code has changed, or raise the version"
        )
    if distance > _ROUNDING:
        _log.warning(
            "%s: %s differs by %.1e of its size from what is computed here, as on another processor or with "
            "other batches; what is there is kept", uri, name, distance,
        )  # fmt: skip


def _differences(there: Provenance, here: Provenance) -> str:
    """Return what made one table and not the other, by name."""
    made = [
        {"step": each.step, "version": each.version, **each.parameters, **each.inputs}
        | {"generator": each.generator, "CLIP": each.clip}
        for each in (there, here)
    ]
    names = [name for name in made[0] | made[1] if made[0].get(name) != made[1].get(name)]
    return ", ".join(
        f"{name} is {_short(made[0].get(name))} there and {_short(made[1].get(name))} here" for name in names
    )


def _short(value: object) -> str:
    # of a hash the beginning is enough
    return re.sub(r"^([0-9a-f]{16})[0-9a-f]{16,}$", r"\1", str(value))


def read_identified(uri: str) -> tuple[bytes, str]:
    """Return the content of an object and its SHA-256, by which ``read_expected`` knows it again.

    Raises:
        StorageError: If it cannot be read.
    """
    content = read_bytes(uri)
    return content, hashlib.sha256(content).hexdigest()


def read_expected(uri: str, digest: str) -> bytes:
    """Return the content of an object that results are named after.

    Args:
        uri: Where it lies.
        digest: Its SHA-256 when the run began.

    Raises:
        ChangedInputError: If it has been replaced since.
        StorageError: If it cannot be read.
    """
    # of the bytes that are used: between a look and a read it could change
    content, found = read_identified(uri)
    if found != digest:
        raise ChangedInputError(
            f"{uri} has changed since this run began: it is {found[:16]}, results are named after "
            f"{digest[:16]}; put the old file back and retry, or start a new run"
        )
    return content


def read_table(uri: str, columns: Sequence[str] | None = None, *, content: bytes | None = None) -> pa.Table:
    """Read a table, or some of its columns.

    Args:
        uri: Where it lies.
        columns: Names of the columns; all if not given.
        content: Its bytes, if they have been read already.

    Raises:
        DamagedArtifactError: If the file is truncated, damaged, or lacks a column.
        StorageError: If it cannot be read.
    """
    with readable(uri):
        file = _parquet(uri, content)
        missing = sorted(set(columns or ()) - set(file.schema_arrow.names))
        if missing:
            raise DamagedArtifactError(
                f"{uri} has no column {', '.join(missing)}, only {', '.join(file.schema_arrow.names)}; "
                "give a table of the kind that this step reads"
            )

        # provenance belongs to the file; what is made of the table has its own
        return file.read(columns=list(columns) if columns else None).replace_schema_metadata(None)


def iter_batches(uri: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield some columns of a table, a row group at a time, so that memory does not grow with the table.

    Raises:
        DamagedArtifactError: If the file is truncated, damaged, or lacks a column.
        StorageError: If it cannot be read.
    """
    with readable(uri), open_binary(uri) as stream:
        file = pq.ParquetFile(stream, page_checksum_verification=True)
        missing = sorted(set(columns) - set(file.schema_arrow.names))
        if missing:
            raise DamagedArtifactError(f"{uri} has no column {', '.join(missing)}; give a table of that kind")

        yield from file.iter_batches(_ROW_GROUP, columns=list(columns))


def column_names(uri: str) -> list[str]:
    """Return the names of a table's columns.

    Raises:
        DamagedArtifactError: If the file is truncated or damaged.
        StorageError: If it cannot be read.
    """
    with readable(uri), open_binary(uri) as stream:
        return list(pq.read_schema(stream).names)


def read_provenance(uri: str, *, large: bool = False, content: bytes | None = None) -> Provenance:
    """Read what made a table.

    Args:
        uri: Where it lies.
        large: Whether it may be larger than memory; a remote one goes through a temporary file then.
        content: Its bytes, if they have been read already.

    Raises:
        DamagedArtifactError: If the file is no artifact of this project.
    """
    with readable(uri), open_binary(uri) if large else nullcontext() as stream:
        schema = pq.read_schema(stream) if stream else _parquet(uri, content).schema_arrow
    return _provenance(uri, schema)


def _provenance(uri: str, schema: pa.Schema) -> Provenance:
    try:
        return Provenance(**json.loads((schema.metadata or {})[_METADATA]))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedArtifactError(
            f"{uri} does not say what made it ({error}); give a table that this project wrote"
        ) from error


def _parquet(uri: str, content: bytes | None = None) -> pq.ParquetFile:
    known = read_bytes(uri) if content is None else content
    return pq.ParquetFile(io.BytesIO(known), page_checksum_verification=True)


@contextmanager
def readable(
    uri: str,
    kind: type[StyleCLIPError] = DamagedArtifactError,
    remedy: str = "delete it, and the next run makes it again",
) -> Iterator[None]:
    """Turn what pyarrow raises on damaged bytes, which is many things, into one error."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        # pyarrow's messages run over many lines
        reason = " ".join(str(error).split())[:200]
        raise kind(f"{uri} is no readable Parquet file ({reason}); {remedy}") from error


def count(table: pa.Table, column: str, value: str) -> int:
    """Return how many rows of a table have a value."""
    # the sum over an empty table is null
    return pc.sum(pc.equal(table[column], value)).as_py() or 0


def vector_column(matrix: np.ndarray) -> pa.FixedSizeListArray:
    """Return rows ``[n, d]`` as a column of d-vectors of float32."""
    flat = np.ascontiguousarray(matrix, dtype=np.float32).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), matrix.shape[1])


def to_matrix(table: pa.Table, name: str) -> np.ndarray:
    """Return a column of vectors as ``[n, d]`` float32; it must have no nulls."""
    column = table[name].combine_chunks()
    width = column.type.list_size
    return np.asarray(column.flatten().to_numpy(), dtype=np.float32).reshape(len(table), width)
