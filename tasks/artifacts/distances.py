"""How far two tables of one step lie apart: in figures, as processors round differently, or in kind."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_SMALLEST = 1e-3  # size of a column below which its figures may be rounding errors themselves


def farthest(first: pq.ParquetFile, second: pq.ParquetFile, decided: Sequence[str] = ()) -> tuple[str, float]:
    """Return the column in which two tables differ most, and by how much of its size.

    That is the root mean square of the differences, divided by that of the values, or by 0.001 if those are
    smaller. It is infinite where the tables differ in kind: in columns, rows, texts, whole numbers, missing
    values, or in which figures are not finite.

    Args:
        first: A table.
        second: Another.
        decided: Columns of whole numbers that count as figures.
    """
    schemas, rows = (
        (first.schema_arrow, second.schema_arrow),
        (first.metadata.num_rows, second.metadata.num_rows),
    )
    if not schemas[0].equals(schemas[1]) or rows[0] != rows[1]:
        return "its columns or its number of rows", math.inf

    sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(3))
    made = [_described("what made it", _metadata(schema)) for schema in schemas]
    _compare(sums, *made)
    for some, others in zip(first.iter_batches(), second.iter_batches(), strict=True):
        for name in schemas[0].names:
            figures = name in decided
            _compare(sums, _leaves(name, some[name], figures), _leaves(name, others[name], figures))

    distances = {name: _distance(*each) for name, each in sums.items()}
    return max(distances.items(), key=lambda item: item[1], default=("nothing", 0.0))


def _compare(
    sums: dict[str, np.ndarray], first: Iterator[tuple[str, pa.Array]], second: Iterator[tuple[str, pa.Array]]
) -> None:
    """Add to the sums of each leaf: squares of differences, squares of values, number of values."""
    for (name, some), (other, others) in zip(first, second, strict=False):
        if name != other or some.type != others.type or len(some) != len(others):
            sums[name] += math.inf
            return
        if not pa.types.is_floating(some.type):
            sums[name] += 0.0 if some.equals(others) else math.inf
            continue

        values, known = (each.fill_null(math.nan).to_numpy(zero_copy_only=False) for each in (some, others))
        finite = np.isfinite(values)
        if not np.array_equal(values[~finite], known[~np.isfinite(known)], equal_nan=True):
            sums[name] += math.inf
            continue
        values, known = values[finite].astype(np.float64), known[finite].astype(np.float64)
        sums[name] += np.square(values - known).sum(), np.square(values).sum(), len(values)


def _distance(differences: float, values: float, count: float) -> float:
    if not math.isfinite(differences):
        return math.inf
    return math.sqrt(differences / max(values, _SMALLEST**2 * count)) if differences else 0.0


def _leaves(name: str, array: pa.Array, figures: bool) -> Iterator[tuple[str, pa.Array]]:
    """Yield the columns of plain values that a column of lists or records is made of."""
    if pa.types.is_struct(array.type):
        yield name, array.is_valid()
        for field in array.type:
            yield from _leaves(f"{name}.{field.name}", pc.struct_field(array, field.name), figures)
    elif pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type):
        yield name, pc.list_value_length(array)
        yield from _leaves(name, array.flatten(), figures)
    else:
        yield name, array.cast(pa.float64()) if figures and pa.types.is_integer(array.type) else array


def _metadata(schema: pa.Schema) -> object:
    found = {key.decode(): json.loads(value) for key, value in sorted((schema.metadata or {}).items())}
    # another version of the code makes the same table, or the step would have another version
    return {name: _without_code(about) for name, about in found.items()}


def _without_code(about: object) -> object:
    if not isinstance(about, dict):
        return about
    return {name: value for name, value in about.items() if name != "code_version"}


def _described(name: str, value: object) -> Iterator[tuple[str, pa.Array]]:
    """Yield the plain values of what is written about a table."""
    if isinstance(value, dict):
        for key, each in sorted(value.items()):
            yield from _described(f"{name}, {key}", each)
    elif isinstance(value, list):
        yield name, pa.array([len(value)])
        for each in value:
            yield from _described(name, each)
    else:
        yield name, pa.array([value])
