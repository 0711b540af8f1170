"""Lists of images: a table of keys or URIs, a row for each image, whose other columns travel."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb

from styleclip.tasks.photographs.datasets.database import connected
from styleclip.tasks.photographs.datasets.places import Place, parse_place
from styleclip.tasks.photographs.datasets.samples import Sample, in_order, of_object
from styleclip.tasks.running.overlap import read_ahead
from styleclip.tasks.storage import (
    MissingObjectError,
    ObjectInfo,
    PlaceError,
    canonical,
    copy_to_local,
    is_local,
    join,
    lies_in,
    local_path,
    sorted_objects,
    stat,
)
from styleclip.tasks.storage.places import has_scheme, scheme_of
from styleclip_core.errors import StyleCLIPError

_READERS = {
    ".csv": "read_csv(?, header = true, sample_size = -1, null_padding = true)",
    ".tsv": "read_csv(?, header = true, delim = '\t', sample_size = -1, null_padding = true)",
    ".jsonl": "read_json(?, format = 'newline_delimited', sample_size = -1)",
    ".ndjson": "read_json(?, format = 'newline_delimited', sample_size = -1)",
    ".parquet": "read_parquet(?)",
    ".txt": "read_csv(?, header = false, columns = {'key': 'VARCHAR'}, delim = '\t', quote = '', "
    "escape = '')",
}  # fmt: skip
LIST_ENDINGS = tuple(_READERS)
_USUAL = ("image_key", "key", "file_name", "image", "image_path", "path", "file", "filename", "uri", "url")
_FEW = 1000  # objects that are asked for one by one, where a prefix would have to be listed
_ROWS = 2048
_AHEAD = 64


class BrokenListError(StyleCLIPError):
    """A list of images is no table, or does not say which column names them."""


@contextmanager
def rows_of(uri: str) -> Iterator[Iterator[dict[str, Any]]]:
    """Read a table of any of the forms that a list may have, some rows in memory at a time.

    Raises:
        BrokenListError: If it is none.
        StorageError: If it cannot be read.
    """
    ending = posixpath.splitext(uri.lower())[1]
    with TemporaryDirectory(prefix="styleclip-list-") as folder:
        path = local_path(uri) if is_local(uri) else Path(folder) / f"list{ending}"
        if not is_local(uri):
            copy_to_local(uri, path)
        with closing(connected(folder)) as connection:
            yield _rows(connection, uri, path, ending)


def _rows(
    connection: duckdb.DuckDBPyConnection, uri: str, path: Path, ending: str
) -> Iterator[dict[str, Any]]:
    try:
        found = connection.execute(f"SELECT * FROM {_READERS[ending]}", [str(path)])
        names = [each[0] for each in found.description or ()]
        while rows := found.fetchmany(_ROWS):
            yield from (dict(zip(names, row, strict=True)) for row in rows)
    except duckdb.Error as error:
        reason = " ".join(str(error).split())[:300]
        raise BrokenListError(f"{uri} is no table that can be read: {reason}") from error


def list_samples(uri: str, prefix: str, column: str) -> Iterator[Sample]:
    """Yield the images that a list names, in no order; one that is not there is a sample with its problem.

    Args:
        uri: Of the list.
        prefix: What its keys are relative to; URIs below it count as keys.
        column: That names the images; found by its name if empty.

    Raises:
        BrokenListError: If it is no table, or it cannot be told which column names the images.
        StorageError: If the list, or what it names, cannot be looked at.
    """
    with rows_of(uri) as rows, in_order(map(partial(_wanted, uri, prefix, column), rows), _twice) as wanted:
        # few are asked for one by one, of many it is cheaper to list what they lie under
        few = sum(1 for _, _ in zip(wanted, range(_FEW + 1), strict=False)) <= _FEW
        if few:
            yield from read_ahead(wanted, partial(_looked_up, prefix), ahead=_AHEAD)
            return

        with sorted_objects(prefix) as objects:
            yield from _merged(wanted, objects, prefix)


def _wanted(uri: str, prefix: str, column: str, row: Mapping[str, Any]) -> Sample:
    """Return a row as a sample of which nothing is known but where it should lie."""
    name = _named(uri, row, column)
    columns = {each: value for each, value in row.items() if each != name}
    given = str(row[name] if row[name] is not None else "").strip()
    try:
        key, place = _located(given, prefix, uri)
    except PlaceError as error:
        return Sample(_refused(given), "", 0, problem=str(error), columns=columns)
    return Sample(key, "", 0, place=place, columns=columns)


def _named(uri: str, row: Mapping[str, Any], column: str) -> str:
    if column:
        if column not in row:
            raise BrokenListError(f"{uri} has no column {column!r}, only {', '.join(row)}; name one of these")
        return column
    found = [name for name in _USUAL if name in row]
    # one column alone can only be this one
    if not found and len(row) == 1:
        return next(iter(row))
    if not found:
        raise BrokenListError(
            f"which column of {uri} names the images is not known: there are {', '.join(row)}; name it"
        )
    return found[0]


def _located(given: str, prefix: str, uri: str) -> tuple[str, str]:
    """Return the key of an image, and where it lies if that is not below the prefix.

    Raises:
        PlaceError: If it names no place, or one that a list of its kind may not name.
    """
    if not given:
        raise PlaceError(f"a row of {uri} names no image; give its key or URI")
    if not has_scheme(given) and not given.startswith("/"):
        parts = given.removeprefix("./").split("/")
        if ".." in parts or "\0" in given:
            raise PlaceError(f"{given!r} leads out of {prefix}, which a key in {uri} may not; give its URI")
        return "/".join(parts), ""

    place = canonical(given)
    if lies_in(place, prefix) and place != prefix:
        return place[len(prefix) :].lstrip("/"), ""
    # whoever writes into a bucket must not choose what is read of a worker's disk
    if is_local(place) and not is_local(uri):
        raise PlaceError(
            f"{given} lies on this machine's disk, which a list on {scheme_of(uri)}:// may not name"
        )
    return place.partition("://")[2].strip("/") or place.strip("/"), str(Place(place))


def _refused(given: str) -> str:
    """Return a key for what names no image, which tells no secret."""
    digest = hashlib.sha256(given.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"~refused-{digest}"


def _twice(sample: Sample) -> Sample:
    # an image may be listed with several captions, say: each row is an item of its own
    return sample if sample.place or sample.problem else replace(sample, place=str(Place(sample.key)))


def _looked_up(prefix: str, wanted: Sample) -> Sample:
    """Return a sample with what its store says of it."""
    if wanted.problem:
        return wanted
    uri = parse_place(wanted.place).uri(prefix) if wanted.place else join(prefix, wanted.key)
    try:
        found = stat(uri)
    except MissingObjectError as error:
        return replace(wanted, problem=str(error))
    return replace(wanted, etag=found.etag, size=found.size)


def _merged(wanted: Iterable[Sample], objects: Iterable[ObjectInfo], prefix: str) -> Iterator[Sample]:
    """Yield samples with what a listing says of them; both are sorted."""
    listed = iter(objects)
    here = next(listed, None)
    for sample in wanted:
        if sample.place or sample.problem:
            yield _looked_up(prefix, sample)
            continue
        while here and here.key < sample.key:
            here = next(listed, None)
        if here and here.key == sample.key:
            yield replace(of_object(here, sample.columns), place=sample.place)
        else:
            yield replace(sample, problem=f"there is no {join(prefix, sample.key)}; correct the list")
