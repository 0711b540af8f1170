#!/usr/bin/env bash
# s3fs 2026.9.0: "?versionId=" is allowed in the key of an S3 object, and s3fs takes what follows it for a version, even
# in a file system that knows no versions. The key is cut there without a word: whoever reads, overwrites or removes the
# object under the name that the listing gave does so to another one, "holiday".
#
# Seen: split_path of "photographs/holiday?versionId=2.png" is ('photographs', 'holiday', None) where version_aware is
# False, ('photographs', 'holiday', '2.png') where it is True; other parameters in a key are left alone.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q s3fs==2026.9.0
"$work/venv/bin/python" - <<'PY'
import s3fs

seen = {}
for aware in (False, True):
    fs = s3fs.S3FileSystem(anon=True, version_aware=aware, skip_instance_cache=True)
    seen[aware] = fs.split_path("s3://photographs/holiday?versionId=2.png")
    assert fs.split_path("s3://photographs/holiday?version=2.png") == ("photographs", "holiday?version=2.png", None)
print(seen)
assert seen == {False: ("photographs", "holiday", None), True: ("photographs", "holiday", "2.png")}
PY
echo "as described"
