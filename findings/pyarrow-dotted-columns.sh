#!/usr/bin/env bash
# pyarrow 26.0.1: a name with a dot, as json_normalize of pandas writes them, beside a struct. ParquetFile.read and iter_batches
# take columns=["image.bytes"] for both, the column of that name and the field of the struct; read_table and datasets take
# the column alone. Where there is no such column, ParquetFile returns a struct of one field, read_table the field under its
# own name, which may be that of another column.
#
# Seen: as said.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q pyarrow==26.0.1
cd "$work"
"$work/venv/bin/python" - <<'PY'
import pyarrow as pa
import pyarrow.parquet as pq

table = pa.table({"image.bytes": ["flat"], "image": [{"bytes": "nested", "path": "a.png"}], "path": ["other"]})
pq.write_table(table, "t.parquet")
file = pq.ParquetFile("t.parquet")

both = {"image.bytes": "flat", "image": {"bytes": "nested"}}
print("ParquetFile:", file.read(columns=["image.bytes"]).to_pylist())
print("read_table:", pq.read_table("t.parquet", columns=["image.bytes"]).to_pylist())
assert file.read(columns=["image.bytes"]).to_pylist() == [both]
assert [row for batch in file.iter_batches(columns=["image.bytes"]) for row in batch.to_pylist()] == [both]
assert pq.read_table("t.parquet", columns=["image.bytes"]).to_pylist() == [{"image.bytes": "flat"}]

print("a field:", file.read(columns=["image.path"]).to_pylist(), pq.read_table("t.parquet", columns=["image.path"]).to_pylist())
assert file.read(columns=["image.path"]).to_pylist() == [{"image": {"path": "a.png"}}]
assert pq.read_table("t.parquet", columns=["image.path"]).to_pylist() == [{"path": "a.png"}]
PY
echo "as described"
