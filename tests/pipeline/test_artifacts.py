"""Artifacts: fingerprints, provenance, written once, never half."""

import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from styleclip.tasks.artifacts import (
    DamagedArtifactError,
    Provenance,
    fingerprint,
    is_complete,
    read_provenance,
    read_table,
    to_matrix,
    vector_column,
    write_table,
    write_tables,
)
from styleclip_core.errors import ArtifactConflictError

PROVENANCE = Provenance("test", "f" * 32, "step", "1", {"beta": 0.15}, {"w": "abc"}, "gen", "clip", "0.1")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


def _table(values):
    return pa.table({"id": pa.array(range(len(values)), pa.int64()), "v": vector_column(values)})


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_a_fingerprint_does_not_depend_on_order(parameters):
    shuffled = dict(reversed(parameters.items()))
    assert fingerprint("s", "1", parameters, {}) == fingerprint("s", "1", shuffled, {})


def test_anything_that_differs_changes_the_fingerprint():
    base = ("step", "1", {"a": 1}, {"x": "y"})
    others = [
        ("other", *base[1:]),
        ("step", "2", *base[2:]),
        ("step", "1", {"a": 2}, base[3]),
        (*base[:3], {}),
    ]
    assert len({fingerprint(*each) for each in [base, *others]}) == 5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, object(), b"x"])
def test_values_that_have_no_canonical_form_are_refused(value):
    with pytest.raises(ValueError, match=r"parameters\.parameters\.a|parameters.a"):
        fingerprint("s", "1", {"a": value}, {})


def test_tables_and_provenance_come_back(tmp_path):
    values = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    uri = str(tmp_path / "t.parquet")
    write_table(uri, _table(values), PROVENANCE)
    assert is_complete(uri)
    assert np.array_equal(to_matrix(read_table(uri), "v"), values)
    assert read_table(uri, columns=["id"]).column_names == ["id"]
    assert read_provenance(uri) == PROVENANCE


def test_the_same_content_gives_the_same_bytes_and_other_content_a_conflict(tmp_path):
    first, second = str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")
    for uri in (first, second):
        write_table(uri, _table(np.ones((2, 2))), PROVENANCE)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    write_table(first, _table(np.ones((2, 2))), PROVENANCE)
    with pytest.raises(ArtifactConflictError, match=r"a.parquet exists with other content in v"):
        write_table(first, _table(np.zeros((2, 2))), PROVENANCE)


def _records(figure, text="ok", count=3, listed=(1.0, 2.0)):
    return pa.table({
        "key": ["a", "b"], "score": pa.array([figure, None], pa.float32()), "status": [text, "ok"],
        "n": pa.array([count, 2], pa.int64()),
        "steps": [[{"alpha": listed[0], "name": "x"}], [{"alpha": value, "name": "y"} for value in listed]],
    })  # fmt: skip


def _write_second(uri, table, provenance=PROVENANCE, *, streamed, decided=()):
    if streamed:
        write_tables(uri, table.schema, [table], provenance)
    else:
        write_table(uri, table, provenance, decided=decided)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_second_writer_that_rounds_otherwise_leaves_the_first_table(tmp_path, caplog, streamed):
    uri = str(tmp_path / "t.parquet")
    write_table(uri, _records(0.5), PROVENANCE)
    before = (tmp_path / "t.parquet").read_bytes()
    rounded = replace(PROVENANCE, parameters={"beta": 0.1500001})
    _write_second(uri, _records(0.50001, listed=(1.00001, 2.0)), rounded, streamed=streamed)
    assert not caplog.records
    # root mean square of (0.02) over that of (0.5): 4 %, as a descent's results differ
    _write_second(uri, _records(0.52), streamed=streamed)
    assert re.search(r"t.parquet: score differs by 4.0e-02 of its size .* is kept", caplog.text)
    assert (tmp_path / "t.parquet").read_bytes() == before


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("other", "where"),
    [
        ({"figure": 0.9}, "score"),
        ({"figure": float("nan")}, "score"),
        ({"figure": None}, "score"),
        ({"text": "failed"}, "status"),
        ({"count": 4}, "n"),
        ({"listed": (1.0, 9.0)}, "steps.alpha"),
        ({"listed": (1.0, 2.0, 3.0)}, "steps"),
    ],
)
def test_a_second_writer_that_differs_in_kind_is_refused(tmp_path, streamed, other, where):
    uri = str(tmp_path / "t.parquet")
    write_table(uri, _records(0.5), PROVENANCE)
    with pytest.raises(ArtifactConflictError, match=rf"other content in {where}, though"):
        _write_second(uri, _records(**{"figure": 0.5, **other}), streamed=streamed)


def test_what_made_a_table_must_agree_and_counts_only_where_no_stop_decides_them(tmp_path):
    uri = str(tmp_path / "t.parquet")
    write_table(uri, _records(0.5), PROVENANCE)
    write_table(uri, _records(0.5, count=4), PROVENANCE, decided=["n"])
    other = replace(PROVENANCE, parameters={"beta": 0.15, "layers": ["b4"]})
    with pytest.raises(ArtifactConflictError, match="what made it"):
        write_table(uri, _records(0.5), other)
    with pytest.raises(ArtifactConflictError, match="its columns or its number of rows"):
        write_table(uri, _records(0.5)[:1], PROVENANCE)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_table_of_other_inputs_is_refused_by_what_differs_however_near_its_numbers_are(tmp_path, streamed):
    uri = str(tmp_path / "t.parquet")
    write_table(uri, _records(0.5), PROVENANCE)
    other = replace(PROVENANCE, fingerprint="e" * 32, inputs={"file": "5f" * 16}, parameters={"beta": 0.15})
    with pytest.raises(
        ArtifactConflictError,
        match=r"t\.parquet was made of something else: (.*, )?file is None there and (5f){8} here.*; give an",
    ):
        _write_second(uri, _records(0.500001), other, streamed=streamed)


@pytest.mark.parametrize("damage", [b"", b"text", None])
def test_damaged_files_say_what_to_do(tmp_path, damage):
    path = tmp_path / "t.parquet"
    write_table(str(path), _table(np.ones((2, 2))), PROVENANCE)
    path.write_bytes(path.read_bytes()[:-20] if damage is None else damage)
    with pytest.raises(DamagedArtifactError, match=r"t.parquet is no readable Parquet.*delete it"):
        read_table(str(path))


def test_a_bit_that_flips_in_a_page_is_seen(tmp_path):
    path = tmp_path / "t.parquet"
    write_table(str(path), _table(np.random.default_rng(0).random((64, 16))), PROVENANCE)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)
    with pytest.raises(DamagedArtifactError, match=r"t.parquet is no readable Parquet"):
        read_table(str(path))


def test_a_column_that_is_missing_is_named(tmp_path):
    path = str(tmp_path / "t.parquet")
    write_table(path, _table(np.ones((2, 2))), PROVENANCE)
    with pytest.raises(DamagedArtifactError, match="has no column sigma, only id, v"):
        read_table(path, ["v", "sigma"])


def test_a_foreign_table_has_no_provenance(tmp_path):
    import pyarrow.parquet as pq

    pq.write_table(_table(np.ones((2, 2))), tmp_path / "foreign.parquet")
    with pytest.raises(DamagedArtifactError, match="does not say what made it"):
        read_provenance(str(tmp_path / "foreign.parquet"))


@pytest.mark.parametrize("streamed", [False, True])
def test_other_code_of_the_same_version_keeps_the_table_that_is_there(tmp_path, streamed):
    uri, table = str(tmp_path / "t.parquet"), _table(np.ones((3, 2)))
    write_table(uri, table, PROVENANCE)
    _write_second(uri, table, replace(PROVENANCE, code_version="0.1+other"), streamed=streamed)
    assert read_provenance(uri) == PROVENANCE
