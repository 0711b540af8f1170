"""Artifacts: Parquet tables that say what made them, named by a hash of it, written once.

A fingerprint is a hash over a step's name and version, its parameters and the fingerprints of its
inputs. It names the artifact's folder: same inputs, same place. What lies there is complete, and is
never replaced by other content.

Another processor rounds differently, and the same step then writes other bytes. So where a second writer
comes to a table that is there, the first one stays, if both agree in all but their figures, and in those
within what rounding can do; see ``docs/reproducibility.md``.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from prefect.logging import get_logger

import styleclip_core
from styleclip_core.errors import ArtifactConflictError, StyleCLIPError
from tasks.distances import farthest
from tasks.outages import explained
from tasks.storage import (
    copy_from_local,
    copy_to_local,
    exists,
    is_local,
    join,
    local_path,
    open_binary,
    read_bytes,
    write_bytes_atomic,
)

_METADATA = b"styleclip.provenance"
_ROW_GROUP = 16_384
_ROUNDING = 1e-3  # of a column's size; plain forward passes differ by less between processors
_NO_ROUNDING = 0.5  # of a column's size; no descent that began alike ends so far apart
_log = get_logger("artifacts")


class ChangedInputError(StyleCLIPError):
    """What a run reads has been replaced since it began, so its results would lie under a wrong name."""


class DamagedArtifactError(StyleCLIPError):
    """A file is no artifact of this project, or its bytes are damaged."""


@dataclass(frozen=True)
class Provenance:
    """What made a table; stored in the file's metadata.

    Attributes:
        kind: What a row is about, e.g. ``"relevance"``.
        fingerprint: Name of the inputs and settings.
        step: Step that made it.
        version: Version of the step's meaning.
        parameters: Settings, as JSON values.
        inputs: Fingerprints or URIs of what went in.
        generator: Content hash of the generator, if one took part.
        clip: Content hash of the CLIP, if one took part.
        code_version: Version of this package.
    """

    kind: str
    fingerprint: str
    step: str
    version: str
    parameters: Mapping[str, Any]
    inputs: Mapping[str, str]
    generator: str
    clip: str
    code_version: str


@dataclass(frozen=True)
class Recipe:
    """What decides an artifact; it names the artifact's folder and is written into its files.

    Attributes:
        step: Step that makes it.
        version: Version of the step's meaning.
        parameters: Settings that decide the content, as JSON values.
        inputs: Fingerprints of what goes in.
        generator: Content hash of the generator, if one takes part.
        clip: Content hash of the CLIP, if one takes part.
    """

    step: str
    version: str
    parameters: Mapping[str, Any]
    inputs: Mapping[str, str]
    generator: str = ""
    clip: str = ""

    @property
    def fingerprint(self) -> str:
        """Return the artifact's name, 32 hex digits.

        Raises:
            ValueError: If a parameter is no JSON value, or not a finite number.
        """
        return fingerprint(self.step, self.version, self.parameters, self.inputs)

    def folder(self, workspace: str, kind: str) -> str:
        """Return where the artifact lies: ``<workspace>/<kind>/<fingerprint>``."""
        return join(workspace, kind, self.fingerprint)

    def made(self, kind: str, inputs: Mapping[str, str] | None = None, /, **about: object) -> Provenance:
        """Return what a table says about itself.

        Args:
            kind: What a row is about.
            inputs: URIs to name beside the fingerprints, or in their place.
            about: What was found while it was made, beside the parameters.
        """
        return Provenance(
            kind=kind,
            fingerprint=self.fingerprint,
            step=self.step,
            version=self.version,
            parameters={**self.parameters, **about},
            inputs=self.inputs if inputs is None else inputs,
            generator=self.generator,
            clip=self.clip,
            code_version=styleclip_core.__version__,
        )


def fingerprint(step: str, version: str, parameters: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Return the name of a step's result, 32 hex digits.

    Raises:
        ValueError: If a parameter is no JSON value, or not a finite number.
    """
    content = {"step": step, "version": version, "parameters": parameters, "inputs": inputs}
    return hashlib.sha256(_canonical(content).encode()).hexdigest()[:32]


def _canonical(value: object) -> str:
    _check_json(value, "parameters")
    # equal values give one text, in whatever order they came: the hash is of its bytes
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _check_json(value: object, where: str) -> None:
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise ValueError(f"{where} has a key that is no text: {name!r}")
            _check_json(item, f"{where}.{name}")
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            _check_json(item, f"{where}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}; a fingerprint needs finite numbers")
    elif not isinstance(value, (str, int, float, bool, type(None))):
        raise ValueError(f"{where} is a {type(value).__name__}; a fingerprint needs JSON values")


def artifact_uri(workspace: str, kind: str, print_: str) -> str:
    """Return the folder of an artifact."""
    return join(workspace, kind, print_)


def part_name(number: int, total: int) -> str:
    """Return the file name of one part, e.g. ``part-00012-of-00096.parquet``."""
    return f"part-{number:05d}-of-{total:05d}.parquet"


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
            for group in _row_groups(schema, tables):
                writer.write_table(group, row_group_size=_ROW_GROUP)

        if not exists(uri):
            copy_from_local(path, uri)
            return

        first = local_path(uri) if is_local(uri) else Path(folder) / "first"
        if not is_local(uri):
            copy_to_local(uri, first)
        if _digest(first) != _digest(path):
            _keep_first(uri, first, path)


def _row_groups(schema: pa.Schema, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows of tables in portions of a row group."""
    waiting = schema.empty_table()
    for table in tables:
        waiting = pa.concat_tables([waiting, table])
        # cut where write_table cuts, so that the bytes are the same
        while len(waiting) >= _ROW_GROUP:
            yield waiting.slice(0, _ROW_GROUP).combine_chunks()
            waiting = waiting.slice(_ROW_GROUP)

    if len(waiting):
        yield waiting.combine_chunks()


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
    with _readable(uri), pq.ParquetFile(first) as theirs, pq.ParquetFile(second) as ours:
        name, distance = farthest(theirs, ours, decided)

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


def read_expected(uri: str, digest: str) -> bytes:
    """Return the content of an object that results are named after.

    Args:
        uri: Where it lies.
        digest: Its SHA-256 when the run began.

    Raises:
        ChangedInputError: If it has been replaced since.
        StorageError: If it cannot be read.
    """
    content = read_bytes(uri)
    # of the bytes that are used: between a look and a read it could change
    found = hashlib.sha256(content).hexdigest()
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
    with _readable(uri):
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
    with _readable(uri), open_binary(uri) as stream:
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
    with _readable(uri), open_binary(uri) as stream:
        return list(pq.read_schema(stream).names)


def read_provenance(uri: str) -> Provenance:
    """Read what made a table.

    Raises:
        DamagedArtifactError: If the file is no artifact of this project.
    """
    with _readable(uri):
        metadata = _parquet(uri).schema_arrow.metadata or {}
    try:
        return Provenance(**json.loads(metadata[_METADATA]))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedArtifactError(
            f"{uri} does not say what made it ({error}); give a table that this project wrote"
        ) from error


def _parquet(uri: str, content: bytes | None = None) -> pq.ParquetFile:
    known = read_bytes(uri) if content is None else content
    return pq.ParquetFile(io.BytesIO(known), page_checksum_verification=True)


@contextmanager
def _readable(uri: str) -> Iterator[None]:
    """Turn what pyarrow raises on damaged bytes, which is many things, into one error."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        # pyarrow's messages run over many lines
        reason = " ".join(str(error).split())[:200]
        raise DamagedArtifactError(
            f"{uri} is no readable Parquet file ({reason}); delete it, and the next run makes it again"
        ) from error


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
