"""Colour profiles: the same colours in sRGB, which is what networks are trained on, and back.

Phones store Display P3, cameras Adobe RGB, printers CMYK: taken for sRGB, their numbers are other colours. A
profile that cannot be read, or that is of another kind of pixels than the image has, is passed over, as web
browsers do.
"""

from __future__ import annotations

import io
from functools import lru_cache
from itertools import product

import numpy as np
from PIL import Image, ImageCms

_PROFILE = "icc_profile"  # Pillow's name for it, of images of every format
_SPACES = {"RGB": b"RGB ", "RGBA": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK"}  # of the pixels of a mode
_ROUNDING = 1  # levels of 255 by which a profile may differ from sRGB and still be called so
_TRIED = np.array([list(product(range(0, 256, 51), repeat=3))], np.uint8)

# as web browsers have it: colours that both spaces have stay what they are. Threads share a transform.
_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOCACHE


def rgb_profile(image: Image.Image) -> bytes:
    """Return the profile of an image that says what its red, green and blue are; empty if it has none."""
    profile: bytes = image.info.get(_PROFILE) or b""
    return profile if _space(profile) == b"RGB " else b""


def to_srgb(image: Image.Image) -> Image.Image:
    """Return an image in sRGB, without a profile; grey and CMYK become RGB, transparency stays.

    Where the profile is sRGB, or is passed over, the pixels are the image's own.

    Args:
        image: RGB, RGBA, L or CMYK; of other modes the profile is passed over.
    """
    profile = image.info.get(_PROFILE) or b""
    if not profile:
        return image

    transform = _into_srgb(profile, image.mode)
    converted = _applied(image, transform) if transform else image.copy()
    converted.info.pop(_PROFILE, None)
    return converted


def from_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Return an sRGB image ``RGB`` with the numbers that its colours have in the space of a profile.

    Colours that the space does not have become the nearest that it has.

    Args:
        image: The image.
        profile: Of an RGB photograph, see ``rgb_profile``; empty for sRGB.
    """
    transform = _out_of_srgb(profile) if profile else None
    return _applied(image, transform) if transform else image


def _applied(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # it is where the image itself is to be changed
    return converted


def _space(profile: bytes) -> bytes:
    """Return what a profile calls the space of its pixels (ICC.1, 7.2: bytes 16 to 19 of the header)."""
    return profile[16:20]


@lru_cache(maxsize=8)
def _into_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the way into sRGB, or None where pixels are to stay."""
    if _space(profile) != _SPACES.get(mode):
        return None
    try:
        transform = ImageCms.buildTransform(
            io.BytesIO(profile), ImageCms.createProfile("sRGB"), mode, "RGBA" if mode == "RGBA" else "RGB",
            _INTENT, _FLAGS,
        )  # fmt: skip
    except ImageCms.PyCMSError:  # damaged: what the numbers mean is not known better than without it
        return None

    # most photographs say that they are sRGB, each in a profile of its own
    return None if mode in ("RGB", "RGBA") and _leaves(transform, mode) else transform


def _leaves(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Return whether colours stay what they are, but for rounding."""
    tried = Image.fromarray(_TRIED).convert(mode)
    moved = np.asarray(_applied(tried, transform), np.int16)
    return bool(np.abs(moved - np.asarray(tried)).max() <= _ROUNDING)


@lru_cache(maxsize=8)
def _out_of_srgb(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """Return the way out of sRGB, or None where the way in leaves pixels as they are."""
    if not _into_srgb(profile, "RGB"):
        return None
    return ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), io.BytesIO(profile), "RGB", "RGB", _INTENT, _FLAGS
    )
