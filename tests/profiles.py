"""Small colour profiles (ICC.1:2010), written by hand: those of phones and cameras are not ours to copy."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from PIL import ImageCms

_Point = tuple[float, float, float]
_D50 = (0.9642, 1.0, 0.8249)
# red, green and blue in CIE XYZ, adapted to D50
_P3 = ((0.515102, 0.241182, -0.001050), (0.291965, 0.692236, 0.041881), (0.157153, 0.066582, 0.784378))
_ADOBE = ((0.609756, 0.311124, 0.019481), (0.205240, 0.625656, 0.060890), (0.149224, 0.063220, 0.744839))
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def _fixed(values: Sequence[float]) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def _xyz(point: _Point) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(point)


def _curve(*numbers: float) -> bytes:
    """Return a curve: a power, or a power with a straight beginning."""
    kind = {1: 0, 5: 3}[len(numbers)]
    return b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + _fixed(numbers)


def _profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    start, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content.ljust(-(-len(content) // 4) * 4, b"\0")
    size = start + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"\0" * 4, 0x04200000, b"mntr", space, b"XYZ ")
    header += b"\0" * 12 + b"acsp" + b"\0" * 28 + _fixed(_D50)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def _rgb(primaries: Sequence[_Point], curve: bytes) -> bytes:
    colours = {name: _xyz(point) for name, point in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    return _profile(b"RGB ", {b"wtpt": _xyz(_D50), **colours, b"rTRC": curve, b"gTRC": curve, b"bTRC": curve})


def grey_profile(power: float) -> bytes:
    """Return the profile of grey values that are a power of light."""
    return _profile(b"GRAY", {b"wtpt": _xyz(_D50), b"kTRC": _curve(power)})


DISPLAY_P3 = _rgb(_P3, _curve(*_SRGB_CURVE))
ADOBE = _rgb(_ADOBE, _curve(2.19921875))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
