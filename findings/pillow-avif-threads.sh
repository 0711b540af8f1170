#!/usr/bin/env bash
# Pillow 13.0.0, AVIF: the bytes of a picture depend on how many threads may encode it (max_threads), and by default that is
# the number of processors that are there. The same pixels, quality and version give other bytes on one core than on two; from
# two on they stay the same. So hashes of AVIF files written with the defaults do not agree between machines.
#
# Seen, of 900 x 700 px at quality 80: 12,341 bytes with one thread, the same 12,513 bytes with 2, 4 and 8.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q pillow==13.0.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import io

import numpy as np
from PIL import Image

down, across = np.mgrid[0:700, 0:900]
pixels = np.stack([across // 4 % 256, down // 3 % 256, (across + down) % 256], axis=-1)
image = Image.fromarray(pixels.astype(np.uint8))


def encoded(**options):
    buffer = io.BytesIO()
    image.save(buffer, "AVIF", quality=80, **options)
    return buffer.getvalue()


by_threads = {threads: encoded(max_threads=threads) for threads in (1, 2, 4, 8)}
print("bytes by threads:", {threads: len(content) for threads, content in by_threads.items()})
assert by_threads[1] != by_threads[2] == by_threads[4] == by_threads[8]

# it is the threads alone: a rerun with as many gives the same
assert all(encoded(max_threads=threads) == content for threads, content in by_threads.items())
PY
echo "as described"
