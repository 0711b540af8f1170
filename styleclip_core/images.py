"""Image files <-> tensors, safe to use on hostile files.

Inside the project images are ``[B, 3, H, W]`` float32 in -1..1; 8-bit pixels exist only here, at
the boundary. Decoding looks at the declared size before it touches a pixel.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from styleclip_core.errors import ImageDecodeError, ImageSizeError

_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
# what Pillow's parsers and its EXIF reader raise on damaged bytes
_DECODING_ERRORS = (
    OSError, SyntaxError, ValueError, struct.error, zlib.error, EOFError,
    RuntimeError, TypeError, LookupError, AttributeError, ArithmeticError,
)  # fmt: skip


def to_uint8(image: Tensor) -> np.ndarray:
    """Round images in -1..1 to pixels, ``[B, H, W, 3]`` uint8; values outside are clamped."""
    pixels = ((image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()


def from_uint8(pixels: np.ndarray) -> Tensor:
    """Return pixels ``[B, H, W, 3]`` uint8 as images ``[B, 3, H, W]`` in -1..1."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def decode_image(data: bytes, *, min_side: int = 16, max_pixels: int = 64_000_000) -> Image.Image:
    """Decode an image file to upright RGB.

    EXIF orientation is applied, 16-bit grey is scaled to 8 bits, CMYK is converted, transparency
    is laid over white.

    Args:
        data: Content of the file.
        min_side: Smallest side in pixels that makes sense as a photograph.
        max_pixels: Largest width times height to decode; checked on the declared size.

    Raises:
        ImageDecodeError: If the bytes are no image, or are truncated or damaged.
        ImageSizeError: If the image is smaller than ``min_side`` or larger than ``max_pixels``.
    """
    if not data:
        raise ImageDecodeError("the file is empty (0 bytes); upload it again")

    # Pillow reads the size from the header alone; no pixel is decoded before it has been judged
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_size(image.size, min_side, max_pixels)
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageSizeError(f"the image is too large to decode safely: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageDecodeError(
            f"not an image in a known format (the file begins with {data[:8]!r})"
        ) from error
    except _DECODING_ERRORS as error:
        raise ImageDecodeError(f"damaged or truncated image: {error}; upload it again") from error


def _check_size(size: tuple[int, int], min_side: int, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageSizeError(
            f"the image declares {width} x {height} pixels, more than the {max_pixels:,} that are "
            "decoded; scale it down"
        )
    if min(width, height) < min_side:
        raise ImageSizeError(f"the image is {width} x {height} pixels, smaller than {min_side} on a side")


def _to_rgb(image: Image.Image) -> Image.Image:
    # scaled by hand: convert("L") may cut 16 bits off at 255 instead
    if image.mode in _SIXTEEN_BIT:
        levels = np.asarray(image).astype(np.float64) / 257  # 65535 -> 255
        return Image.fromarray(levels.round().clip(0, 255).astype(np.uint8), "L").convert("RGB")

    # over white: convert("RGB") alone would show whatever lies under the transparent pixels
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")

    return image.convert("RGB")


def fit(image: Image.Image, height: int, width: int) -> Tensor:
    """Crop an RGB image around its centre to a shape and scale it, ``[3, height, width]`` in -1..1."""
    across = min(image.width, image.height * width // height)
    down = min(image.height, image.width * height // width)

    left, top = (image.width - across) // 2, (image.height - down) // 2
    part = image.crop((left, top, left + across, top + down))
    if part.size != (width, height):
        part = part.resize((width, height), Image.Resampling.LANCZOS)

    return from_uint8(np.asarray(part)[None])[0]


def centre_square(image: Image.Image, side: int) -> Tensor:
    """Scale an RGB image to fit its short side and crop its middle, ``[3, side, side]`` in -1..1.

    As CLIP prepares photographs: bicubic, then the crop.
    """
    # int and round as torchvision has them: a pixel more or less moves the whole crop
    short, long = sorted(image.size)
    scaled = int(side * long / short)

    size = (side, scaled) if image.width <= image.height else (scaled, side)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)

    left, top = (round((extent - side) / 2) for extent in size)
    return from_uint8(np.asarray(image.crop((left, top, left + side, top + side)))[None])[0]


def pad_square(image: Tensor) -> Tensor:
    """Put images ``[B, 3, H, W]`` in -1..1 in the middle of a gray square of their longer side.

    CLIP's own preprocessing would cut head and feet off a standing person. Square images stay as they are.
    """
    height, width = image.shape[-2:]

    across, down = max(height - width, 0), max(width - height, 0)
    if not across and not down:
        return image
    return F.pad(image, (across // 2, across - across // 2, down // 2, down - down // 2))


def encode_png(image: Tensor) -> bytes:
    """Encode one image ``[3, H, W]`` in -1..1 as PNG; the same image gives the same bytes."""
    return encode_photograph(Image.fromarray(to_uint8(image[None])[0], "RGB"), colours_of=None)


def encode_photograph(image: Image.Image, *, colours_of: Image.Image | None) -> bytes:
    """Encode an RGB image as PNG; the same image gives the same bytes.

    Args:
        image: The pixels.
        colours_of: A decoded photograph whose colour profile the pixels follow; without the profile
            the same numbers would look different.
    """
    profile = colours_of.info.get("icc_profile", b"") if colours_of else b""

    # decode_image has converted the pixels of any profile that is not RGB
    if profile[16:20] != b"RGB ":
        profile = b""

    buffer = io.BytesIO()
    image.save(buffer, "PNG", icc_profile=profile or None)
    return buffer.getvalue()


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of images in -1..1, ``[B]``; infinite if equal."""
    error = (image.clamp(-1, 1) - target.clamp(-1, 1)).square().mean(dim=(1, 2, 3)) / 4
    return -10 * torch.log10(error)
