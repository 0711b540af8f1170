#!/usr/bin/env bash
# s3fs 2026.9.0 (and fsspec's memory file system): fs.rm(key) takes the key for a pattern. "a[1].png" is a valid key, such as
# browsers give to second downloads; deleting it deletes "a1.png" and leaves "a[1].png", without an error. rm_file(key) deletes
# what it is told. Copying and fetching by the same names behave alike: get("a[1].png") fetches "a1.png".
#
# Seen, with a bucket of both objects: as said.
set -euo pipefail
work=$(mktemp -d)
trap 'kill "${server:-0}" 2>/dev/null || true; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q s3fs==2026.9.0 'moto[server]==5.2.3'
export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_DEFAULT_REGION=us-east-1
port=$("$work/venv/bin/python" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$work/venv/bin/moto_server" -H 127.0.0.1 -p "$port" >"$work/log" 2>&1 &
server=$!
ENDPOINT="http://127.0.0.1:$port" FOLDER="$work" "$work/venv/bin/python" - <<'PY'
import os
import time
from pathlib import Path

import fsspec

s3 = fsspec.filesystem("s3", endpoint_url=os.environ["ENDPOINT"], use_listings_cache=False)
for attempt in range(60):
    try:
        s3.mkdir("photos")
        break
    except OSError:
        time.sleep(0.5)


def filled(fs, folder):
    for name in ("a1.png", "a[1].png"):
        fs.pipe_file(f"{folder}/{name}", name.encode())
    return f"{folder}/a[1].png"


def left(fs, folder):
    return sorted(path.rpartition("/")[2] for path in fs.ls(folder, detail=False))


for fs, folder in ((s3, "photos"), (fsspec.filesystem("memory"), "/photos")):
    asked = filled(fs, folder)
    fs.rm(asked)
    print(type(fs).__name__, "after rm of a[1].png:", left(fs, folder))
    assert left(fs, folder) == ["a[1].png"]

    filled(fs, folder)
    fs.rm_file(asked)
    assert left(fs, folder) == ["a1.png"]

target = Path(os.environ["FOLDER"]) / "fetched"
s3.get(filled(s3, "photos"), f"{target}/")
names = [path.name for path in target.iterdir()]
print("fetched by get of a[1].png:", names)
assert names == ["a1.png"]
PY
echo "as described"
