"""Which samples count: by key, by a condition on columns, by a stable draw, the first so many."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from tempfile import TemporaryDirectory

import duckdb
import pyarrow as pa
from fsspec.utils import glob_translate

from styleclip.tasks.photographs.datasets.columns import Types, types_of
from styleclip.tasks.photographs.datasets.database import connected, keep_where
from styleclip.tasks.photographs.datasets.samples import Sample
from styleclip.tasks.settings import SettingsError
from styleclip.tasks.settings.datasets import DataSet
from styleclip.tasks.storage import copy_to_local, is_local, local_path
from styleclip.tasks.storage.sorting import batched

_ROWS = 8192
_KEYS = ("image_key", "key", "file_name")  # columns that tables of images are joined on


@contextmanager
def chosen(samples: Iterable[Sample], dataset: DataSet) -> Iterator[Iterable[Sample]]:
    """Give the samples that count, in their order, to be gone through any number of times.

    Keys are looked at first, then the draw, then the condition; the limit counts what is left.

    Raises:
        SettingsError: If the condition, or a table that it needs, cannot be used.
        StorageError: If a table cannot be read.
    """
    kept = _Filtered(samples, _by_key(dataset))
    if not dataset.where:
        yield _Filtered(kept, lambda _: True, dataset.limit)
        return

    # the condition is asked once, and what it chose lies beside it, however many those are
    with TemporaryDirectory(prefix="styleclip-where-") as folder, closing(connected(folder)) as database:
        _load(database, kept, types_of(kept))
        tables = [_join(database, folder, number, uri) for number, uri in enumerate(dataset.tables)]
        keep_where(database, f"SELECT samples.key FROM samples {' '.join(tables)}", dataset.where, "matching")
        yield _Matching(kept, database, dataset.limit)


class _Filtered(Iterable[Sample]):
    def __init__(
        self, samples: Iterable[Sample], counts: Callable[[Sample], bool], limit: int | None = None
    ) -> None:
        self._samples, self._counts, self._limit = samples, counts, limit

    def __iter__(self) -> Iterator[Sample]:
        return islice((sample for sample in self._samples if self._counts(sample)), self._limit)


def _by_key(dataset: DataSet) -> Callable[[Sample], bool]:
    include, exclude = matcher(dataset.include), matcher(dataset.exclude)

    def counts(sample: Sample) -> bool:
        wanted = not dataset.include or include(sample.key)
        return wanted and not exclude(sample.key) and is_drawn(sample.key, dataset.sample)

    return counts


def matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Return what says whether a key matches one of some patterns: ``*`` within a folder, ``**`` across."""
    literal = {each for each in patterns if not re.search(r"[*?\[]", each)}
    others = [re.compile(glob_translate(each)) for each in patterns if each not in literal]
    return lambda key: key in literal or any(each.match(key) for each in others)


def is_drawn(key: str, share: float, draw: str = "sample") -> bool:
    """Return whether a key is drawn: the same keys for ever, a smaller share's among a larger one's.

    Args:
        key: The key.
        share: How many are drawn, from 0 to 1.
        draw: Its name; another one draws other keys.
    """
    if share >= 1:
        return True
    return int.from_bytes(hashlib.sha256(f"{draw}:{key}".encode()).digest()[:8], "big") < share * 2**64


def _load(database: duckdb.DuckDBPyConnection, samples: Iterable[Sample], types: Types) -> None:
    """Write keys and columns into the data base."""
    schema = pa.schema([("key", pa.string()), ("size", pa.int64()), *types.schema()])
    database.register("rows", schema.empty_table())
    database.execute("CREATE TABLE samples AS SELECT * FROM rows")
    for batch in batched(samples, _ROWS):
        listed = [{"key": each.key, "size": each.size, **types.row(each.columns)} for each in batch]
        database.register("rows", pa.Table.from_pylist(listed, schema=schema))
        database.execute("INSERT INTO samples SELECT * FROM rows")
    database.unregister("rows")


def _join(database: duckdb.DuckDBPyConnection, folder: str, number: int, uri: str) -> str:
    """Read a table of images into the data base; returns how it is joined.

    Raises:
        SettingsError: If it is no table with a row for each image.
    """
    path = local_path(uri) if is_local(uri) else None
    if path is None:
        copy_to_local(uri, path := local_path(f"{folder}/joined-{number}.parquet"))
    name = f"joined_{number}"
    try:
        database.execute(f"CREATE TABLE {name} AS SELECT * FROM read_parquet(?)", [str(path)])
    except duckdb.Error as error:
        reason = " ".join(str(error).split())[:300]
        raise SettingsError(f"{uri} is no Parquet file that can be joined: {reason}") from error

    names = [row[0] for row in database.execute(f"DESCRIBE {name}").fetchall()]
    key = next((each for each in _KEYS if each in names), None)
    if key is None:
        raise SettingsError(f"{uri} has no column {' or '.join(_KEYS)} to join on, only {', '.join(names)}")

    twice = database.execute(f'SELECT "{key}" FROM {name} GROUP BY 1 HAVING count(*) > 1 LIMIT 1').fetchone()
    if twice:
        raise SettingsError(f"{uri} has several rows of {twice[0]}; give a table with one for each image")

    # scores of labels are asked for by name: score['glasses'] < 0.5
    if "scores" in names:
        entries = "list_transform(scores, lambda each: {'k': each.label, 'v': each.probability})"
        database.execute(f"ALTER TABLE {name} ADD COLUMN score MAP(VARCHAR, DOUBLE)")
        database.execute(f"UPDATE {name} SET score = map_from_entries({entries}) WHERE scores IS NOT NULL")
    return f'LEFT JOIN {name} ON samples.key = {name}."{key}"'


def matching_rows(table: pa.Table, where: str) -> frozenset[int]:
    """Return the numbers of the rows of a table for which a condition is true.

    Raises:
        SettingsError: If it is none, or names a column that there is not.
    """
    with TemporaryDirectory(prefix="styleclip-where-") as folder, closing(connected(folder)) as database:
        numbered = table.append_column("__row", pa.array(range(len(table)), pa.int64()))
        database.register("rows", numbered)
        database.execute("CREATE TABLE samples AS SELECT * FROM rows")
        database.unregister("rows")
        keep_where(database, "SELECT samples.__row FROM samples", where, "matching")
        return frozenset(row[0] for row in database.execute("SELECT __row FROM matching").fetchall())


class _Matching(Iterable[Sample]):
    def __init__(
        self, samples: Iterable[Sample], database: duckdb.DuckDBPyConnection, limit: int | None
    ) -> None:
        self._samples, self._database, self._limit = samples, database, limit

    def __iter__(self) -> Iterator[Sample]:
        return islice(self._matching(), self._limit)

    def _matching(self) -> Iterator[Sample]:
        keys = self._keys()
        key = next(keys, None)
        # both are in the order of their keys
        for sample in self._samples:
            if sample.key == key:
                yield sample
                key = next(keys, None)

    def _keys(self) -> Iterator[str]:
        cursor = self._database.cursor()
        found = cursor.execute("SELECT key FROM matching ORDER BY encode(key)")
        while rows := found.fetchmany(_ROWS):
            yield from (row[0] for row in rows)
