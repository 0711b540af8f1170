"""Image files <-> tensors, safe to use on hostile files.

Inside the project images are ``[B, 3, H, W]`` float32 in -1..1; 8-bit pixels exist only here, at
the boundary. Of an animation, or of a file with several pages, the first picture is read.

Whatever its width and height, no picture takes much memory. Decoding looks at the declared size before it
touches a pixel, and refuses more than ``max_pixels``; on the way to RGB it holds at most 20 bytes for each.
``fit`` cuts before it scales, so no picture between is larger than its source and its result together.
``centre_square`` scales first, as CLIP does, up to ``MOST_SCALED`` pixels, and what would be larger is cut
first.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError, features
from torch import Tensor

from styleclip_core.colours import rgb_profile, to_srgb
from styleclip_core.errors import ImageDecodeError, ImageFormatError, ImageSizeError
from styleclip_core.settings.saving import LOSSY, Format, SavingSettings

_ENDINGS = {
    "PNG": (".png",), "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "WEBP": (".webp",), "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"), "GIF": (".gif",), "AVIF": (".avif",), "JPEG2000": (".jp2",),
    "HEIF": (".heic", ".heif", ".hif"),
}  # fmt: skip
_OPTIONAL = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}  # not in every Pillow


def _reads_heif() -> bool:
    """Let Pillow read what iPhones write, if the extra that can is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ModuleNotFoundError:
        return False
    register_heif_opener(thumbnails=False)
    return True


def _is_read(form: str) -> bool:
    if form == "HEIF":
        return _reads_heif()
    name = _OPTIONAL.get(form)
    known = {**features.modules, **features.codecs}  # features.check warns of a name it does not know
    return name is None or (name in known and bool(features.check(name)))


# Pillow would try others too, and hand a file that says it is PostScript to Ghostscript
_FORMATS = tuple(form for form in _ENDINGS if _is_read(form))
ENDINGS = tuple(ending for form in _FORMATS for ending in _ENDINGS[form])

MOST_SCALED = 2**24
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # grey of more than 8 bits
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF
# what Pillow's parsers and its EXIF reader raise on damaged bytes
_DECODING_ERRORS = (
    OSError, SyntaxError, ValueError, struct.error, zlib.error, EOFError,
    RuntimeError, TypeError, LookupError, AttributeError, ArithmeticError,
)  # fmt: skip


def to_uint8(image: Tensor) -> np.ndarray:
    """Round images in -1..1 to pixels, ``[B, H, W, 3]`` uint8; values outside are clamped."""
    # rounded where the images are: a quarter of the bytes comes from a device, and waits to be written
    pixels = ((image.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def from_uint8(pixels: np.ndarray) -> Tensor:
    """Return pixels ``[B, H, W, 3]`` uint8 as images ``[B, 3, H, W]`` in -1..1."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def decode_image(
    data: bytes, *, min_side: int = 16, max_pixels: int = 64_000_000, own_colours: bool = False
) -> Image.Image:
    """Decode an image file to upright RGB.

    EXIF orientation is applied, colours are brought into sRGB by the file's colour profile, CMYK and the like
    are converted, transparency is laid over white. Grey of more than 8 bits is scaled: integers from 0 to
    65535, or to what 12 bits hold, and floats from 0 to 1.

    Args:
        data: Content of the file.
        min_side: Smallest side in pixels that makes sense as a photograph.
        max_pixels: Largest width times height to decode; checked on the declared size.
        own_colours: Leave RGB pixels as the file has them, with their profile in ``info``.

    Raises:
        ImageDecodeError: If the bytes are no image, or are truncated or damaged, or if the values of grey say
            not what is white.
        ImageSizeError: If the image is smaller than ``min_side`` or larger than ``max_pixels``.
    """
    if not data:
        raise ImageDecodeError("the file is empty (0 bytes); upload it again")

    # Pillow reads the size from the header alone; no pixel is decoded before it has been judged
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(image.size, min_side, max_pixels)
            image.load()
            if image.format == "PNG":
                _scale_transparency(image, depth=data[24])
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image, own_colours=own_colours)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageSizeError(f"the image is too large to decode safely: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageDecodeError(_foreign(data)) from error
    except _DECODING_ERRORS as error:
        raise ImageDecodeError(f"damaged or truncated image: {error}; upload it again") from error


def is_plain(data: bytes, wanted: Image.Image) -> bool:
    """Return whether readers that heed neither EXIF, colour profile nor transparency show the same picture.

    Args:
        data: Content of a file.
        wanted: What ``decode_image`` makes of it.
    """
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        shown = image.convert("RGB")
    return shown.size == wanted.size and shown.tobytes() == wanted.tobytes()


def _check_size(size: tuple[int, int], min_side: int, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageSizeError(
            f"the image declares {width} x {height} pixels, more than the {max_pixels:,} that are "
            "decoded; scale it down"
        )
    if min(width, height) < min_side:
        raise ImageSizeError(f"the image is {width} x {height} pixels, smaller than {min_side} on a side")


def _foreign(data: bytes) -> str:
    """Return why a file is not opened, with its kind where that is known."""
    brand = data[8:12] if data[4:8] == b"ftyp" else b""
    kind = ""
    if brand == b"avif":
        kind = "AVIF"
    elif brand[:3] in (b"hei", b"hev", b"mif", b"msf"):
        kind = "HEIC"
    elif data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        kind = "JPEG XL"

    if kind == "HEIC" and "HEIF" in _FORMATS:
        return "damaged or truncated HEIC; upload it again"
    if kind:
        extra = "install the extra heic, or " if kind == "HEIC" else ""
        return f"{kind} is not read here; {extra}convert the image to JPEG or PNG"
    return f"not an image in a known format (the file begins with {data[:8]!r})"


def _scale_transparency(image: Image.Image, *, depth: int) -> None:
    """Scale the transparent value of a PNG as Pillow has scaled the pixels, which it does not do itself.

    Colours of 16 bits have become 8, so those that agree in these are transparent, too.
    """
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    elif isinstance(clear, int) and image.mode == "L" and depth < 8:
        top = 2**depth - 1
        image.info["transparency"] = (clear & top) * 255 // top


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey of more than 8 bits, at most 9 bytes a pixel beside it."""
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    bits = min(16, *tags.get(_BITS_PER_SAMPLE, (16,)))
    top = 1 if image.mode == "F" else 2**bits - 1

    # not clipped: an image that is all black or all white would pass for a good one
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= top):
        raise ImageDecodeError(
            f"its grey goes from {low:g} to {high:g}, where 0 to {top} was expected, so what is white is not "
            "known; convert it to 8 or 16 bits"
        )

    # scaled by hand: convert("L") would cut off at 255 instead
    if image.mode == "F":
        scaled = values * np.float32(255)
        levels = np.rint(scaled, out=scaled).astype(np.uint8)
    else:
        scaled = values.astype(np.uint32)
        scaled *= 255
        scaled += top // 2
        scaled //= top
        levels = scaled.astype(np.uint8)

    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        levels = 255 - levels
    if "transparency" in image.info:
        levels[values == image.info["transparency"]] = 255
    return Image.fromarray(levels)


def _to_rgb(image: Image.Image, *, own_colours: bool) -> Image.Image:
    if image.mode in _DEEP:
        return _eight_bits(image).convert("RGB")
    transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    if transparent or image.mode == "P":
        image = image.convert("RGBA" if transparent else "RGB")
    if not (own_colours and rgb_profile(image)):
        image = to_srgb(image)

    # over white: convert("RGB") alone would show whatever lies under the transparent pixels
    if transparent:
        white = Image.new("RGBA", image.size, "white")
        white.info = image.info
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def fit(image: Image.Image, height: int, width: int) -> Tensor:
    """Crop an RGB image around its centre to a shape and scale it, ``[3, height, width]`` in -1..1."""
    across = max(1, min(image.width, image.height * width // height))
    down = max(1, min(image.height, image.width * height // width))

    left, top = (image.width - across) // 2, (image.height - down) // 2
    part = image.crop((left, top, left + across, top + down))
    if part.size != (width, height):
        part = part.resize((width, height), Image.Resampling.LANCZOS)

    return from_uint8(np.asarray(part)[None])[0]


def centre_square(image: Image.Image, side: int) -> Tensor:
    """Scale an RGB image to fit its short side and crop its middle, ``[3, side, side]`` in -1..1.

    As CLIP prepares photographs: bicubic, then the crop. Of an image so long that this would take more than
    ``MOST_SCALED`` pixels the middle alone is scaled, which differs by rounding.
    """
    # int and round as torchvision has them: a pixel more or less moves the whole crop
    short, long = sorted(image.size)
    scaled = int(side * long / short)

    size = (side, scaled) if image.width <= image.height else (scaled, side)
    left, top = (round((extent - side) / 2) for extent in size)
    square = (left, top, left + side, top + side)

    if side * scaled > MOST_SCALED:
        across, down = image.width / size[0], image.height / size[1]
        box = (
            left * across,
            top * down,
            min((left + side) * across, image.width),
            min((top + side) * down, image.height),
        )
        part = image.resize((side, side), Image.Resampling.BICUBIC, box=box)
    else:
        whole = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
        part = whole.crop(square)
    return from_uint8(np.asarray(part)[None])[0]


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
    return encode_pixels(to_uint8(image[None])[0])


def encode_pixels(pixels: np.ndarray) -> bytes:
    """Encode pixels ``[H, W, 3]`` uint8 as PNG; the same pixels give the same bytes."""
    return encode_photograph(Image.fromarray(pixels), colours_of=None)


# Runs of equal bytes alone: behind a PNG's filters, longer matches cost three times as much and save nothing.
_PNG: dict[str, object] = {"compress_type": zlib.Z_RLE}

# Nothing but pixels goes in: no date, no name of a program. Threads of an encoder would cut by their number.
_PILLOW: dict[Format, tuple[str, dict[str, object]]] = {
    "png": ("PNG", _PNG),
    "jpeg": ("JPEG", {"subsampling": 0}),  # colours are what edits are about
    "webp": ("WEBP", {"method": 2}),
    "webp-lossless": (
        "WEBP",
        {"lossless": True, "quality": 0, "method": 0},
    ),  # effort 0: 8 % larger, 5 x faster
    "avif": ("AVIF", {"speed": 8, "max_threads": 1, "autotiling": False}),
}


def check_format(form: Format) -> None:
    """Refuse a format that is not written here.

    Raises:
        ImageFormatError: If this Pillow was built without it.
    """
    if _PILLOW[form][0] not in _FORMATS:
        raise ImageFormatError(
            f"{form} is not written here: this Pillow was built without it; install a Pillow with "
            f"{_PILLOW[form][0]} (pip install --upgrade pillow), or choose another format"
        )


def saved_size(width: int, height: int, size: int | None) -> tuple[int, int]:
    """Return width and height in pixels of a file whose long side is ``size``; as they are without one."""
    if size is None:
        return width, height
    scale = size / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def encode_image(image: Tensor, settings: SavingSettings) -> bytes:
    """Encode one image ``[3, H, W]`` in -1..1 as a file; see ``encode_file``."""
    return encode_file(to_uint8(image[None])[0], settings)


def encode_file(pixels: np.ndarray, settings: SavingSettings) -> bytes:
    """Encode pixels ``[H, W, 3]`` uint8 as a file; the same pixels give the same bytes.

    Raises:
        ImageFormatError: If this Pillow does not write the format.
    """
    check_format(settings.format)
    picture = Image.fromarray(pixels)
    size = saved_size(*picture.size, settings.size)
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)

    form, options = _PILLOW[settings.format]
    quality = {"quality": settings.quality or LOSSY[settings.format]} if settings.format in LOSSY else {}
    buffer = io.BytesIO()
    picture.save(buffer, form, **options, **quality)
    return buffer.getvalue()


def encode_photograph(image: Image.Image, *, colours_of: Image.Image | None) -> bytes:
    """Encode an RGB image as PNG; the same image gives the same bytes.

    Args:
        image: The pixels.
        colours_of: A photograph decoded with its own colours, whose profile the pixels follow; without the
            profile the same numbers would look different.
    """
    profile = rgb_profile(colours_of) if colours_of else b""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", icc_profile=profile or None, **_PNG)
    return buffer.getvalue()


def psnr(image: Tensor, target: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of images in -1..1, ``[B]``; infinite if equal."""
    error = (image.clamp(-1, 1) - target.clamp(-1, 1)).square().mean(dim=(1, 2, 3)) / 4
    return -10 * torch.log10(error)
