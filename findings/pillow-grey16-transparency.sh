#!/usr/bin/env bash
# Pillow 13.0.0: a PNG of 16-bit grey may name one grey value as transparent (tRNS). Of 8-bit grey, convert("RGBA") and
# convert("LA") make that value transparent. Of 16-bit grey the values are cut off at 255 first, and the named one is
# compared in its low byte: another value becomes transparent, and the transparent one opaque white. No warning.
#
# Seen, of the values 0, 32768 (transparent), 65535: alpha 0, 255, 255; of 8-bit grey 0, 128 (transparent), 255:
# alpha 255, 0, 255.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q pillow==13.0.0
"$work/venv/bin/python" - <<'PY'
import io
import struct
import zlib

from PIL import Image


def part(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def grey(bits, values, transparent):
    """Return a PNG of one row of grey pixels, of which one value is transparent."""
    row = b"\0" + struct.pack(f">{len(values)}{'H' if bits == 16 else 'B'}", *values)
    header = struct.pack(">IIBBBBB", len(values), 1, bits, 0, 0, 0, 0)
    parts = {b"IHDR": header, b"tRNS": struct.pack(">H", transparent), b"IDAT": zlib.compress(row), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(part(*each) for each in parts.items())


def alphas(bits, mode):
    middle, white = 1 << (bits - 1), (1 << bits) - 1
    image = Image.open(io.BytesIO(grey(bits, (0, middle, white), middle)))
    assert image.info["transparency"] == middle
    converted = image.convert(mode)
    return [converted.getpixel((x, 0))[-1] for x in range(3)]


for mode in ("RGBA", "LA"):
    print(mode, "8 bits:", alphas(8, mode), "16 bits:", alphas(16, mode))
    assert alphas(8, mode) == [255, 0, 255]
    assert alphas(16, mode) == [0, 255, 255]
PY
echo "as described"
