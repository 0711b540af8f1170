#!/usr/bin/env bash
# fsspec 2026.9.0, MemoryFileSystem: `created` of one object is a float of seconds in a listing (`find`, `ls` with
# detail) and a datetime in `info`. Versions that are made of size and time, as is usual where a store has no ETag,
# never match between the two, though nothing has changed.
#
# Seen: find: float, ls: float, info: datetime; equal as moments, unequal as values.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q fsspec==2026.9.0
"$work/venv/bin/python" - <<'PY'
from datetime import datetime

import fsspec

fs = fsspec.filesystem("memory")
fs.pipe_file("/photographs/0001.png", b"the same bytes all along")
found = fs.find("/photographs", detail=True)["/photographs/0001.png"]["created"]
listed = fs.ls("/photographs", detail=True)[0]["created"]
looked_at = fs.info("/photographs/0001.png")["created"]
print(f"find: {found!r}\nls:   {listed!r}\ninfo: {looked_at!r}")
assert isinstance(found, float)
assert isinstance(listed, float)
assert isinstance(looked_at, datetime)
assert abs(looked_at.timestamp() - found) < 1e-3
assert looked_at != found
PY
echo "as described"
