"""Image files: every form a user has, every damage a bucket holds."""

import contextlib
import io
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from styleclip_core.errors import ImageDecodeError, ImageSizeError
from styleclip_core.images import decode_image, encode_png, fit, from_uint8, pad_square, psnr, to_uint8


def _file(image: Image.Image, form="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _declared(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds almost nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def test_sixteen_bit_grey_is_scaled_not_clipped():
    levels = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    decoded = np.asarray(decode_image(_file(Image.fromarray(levels))))
    assert np.abs(decoded[..., 0].astype(float) - levels / 257).max() <= 0.5


def test_transparency_lies_over_white():
    palette = Image.new("P", (20, 20), 0)
    palette.putpalette([10, 20, 30] * 256)
    clear = np.asarray(decode_image(_file(palette, transparency=0)))
    assert (clear == 255).all()
    half = np.asarray(decode_image(_file(Image.new("RGBA", (20, 20), (0, 0, 0, 128)))))
    assert np.abs(half.astype(int) - 127).max() <= 1


def test_cmyk_and_exif_orientation_are_applied():
    assert decode_image(_file(Image.new("CMYK", (20, 20)), "JPEG")).mode == "RGB"
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees to see it upright
    upright = decode_image(_file(image, "JPEG", exif=exif, quality=95))
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5))[2] > 200  # blue is on top now


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", ImageDecodeError, "empty"),
        (b"hello, I am text", ImageDecodeError, "not an image"),
        (
            _file(Image.effect_noise((64, 64), 50).convert("RGB"))[:600],
            ImageDecodeError,
            "damaged or truncated",
        ),
        (_file(Image.new("RGB", (1, 1))), ImageSizeError, "1 x 1 pixels, smaller than 16"),
        (_declared(30_000, 30_000), ImageSizeError, "30000 x 30000|too large"),
        (_declared(10_000, 10_000), ImageSizeError, "10000 x 10000|too large"),
        (_declared(0, 0), ImageDecodeError, "image"),
    ],
)
def test_bad_files_say_what_is_wrong(data, error, message):
    with pytest.raises(error, match=message):
        decode_image(data)


@given(st.binary(max_size=80), st.integers(0, 400), st.integers(0, 255))
def test_no_bytes_raise_anything_but_image_errors(noise, place, value):
    good = bytearray(_file(Image.effect_noise((32, 32), 50).convert("RGB"), "JPEG"))
    good[place % len(good)] = value
    for data in (noise, bytes(good), _file(Image.new("RGB", (32, 32)))[: len(noise) + 8]):
        with contextlib.suppress(ImageDecodeError, ImageSizeError):
            assert decode_image(data).mode == "RGB"


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow reports the damage before it raises
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "JPEG2000", "AVIF"])
def test_damage_anywhere_in_a_file_is_an_image_error(form):
    if form in ("WEBP", "AVIF") and not features.check(form.lower()):
        pytest.skip(f"this Pillow was built without {form}")
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 8, "maker"
    exif[0x8825] = {1: "N", 2: (1.0, 2.0, 3.0)}  # rewritten when the orientation is applied
    options = {"exif": exif} if form in ("JPEG", "PNG", "WEBP") else {}
    good = _file(Image.effect_noise((32, 32), 50).convert("RGB"), form, **options)
    source = random.Random(form)
    for _ in range(500):
        data = bytearray(good)
        for _ in range(source.choice([1, 2, 4])):
            data[source.randrange(min(len(data), 400))] = source.choice([0, 1, 255, source.randrange(256)])
        with contextlib.suppress(ImageDecodeError, ImageSizeError):
            assert decode_image(bytes(data)).mode == "RGB"


def test_pixels_are_a_round_trip_through_tensor_and_png():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), dtype=np.uint8)
    images = from_uint8(pixels)
    assert images.min() >= -1
    assert images.max() <= 1
    assert np.array_equal(to_uint8(images), pixels)
    assert encode_png(images[0]) == encode_png(images[0])
    assert np.array_equal(np.asarray(decode_image(encode_png(images[0]))), pixels[0])


def test_fit_crops_the_centre_and_scales():
    image = Image.new("RGB", (60, 20), "black")
    image.paste("white", (20, 0, 40, 20))
    assert fit(image, 10, 10).min() == 1.0
    pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(to_uint8(fit(Image.fromarray(pixels), 16, 16)[None])[0], pixels)


def test_psnr_of_a_known_error():
    image = torch.zeros(1, 3, 4, 4)
    assert psnr(image + 0.2, image).item() == pytest.approx(20.0, abs=1e-4)  # (2 / 0.2)^2 = 20 dB
    assert psnr(image, image).item() == float("inf")


@given(st.integers(5, 40), st.integers(5, 40), st.sampled_from([(8, 8), (16, 8), (8, 16), (16, 12)]))
def test_fit_gives_the_wanted_shape_and_never_stretches(width, height, size):
    picture = np.zeros((height, width, 3), np.uint8)
    picture[height // 2, :] = 255
    fitted = fit(Image.fromarray(picture), *size)
    assert fitted.shape == (3, *size)
    flat = fit(Image.new("RGB", (width, height), (200, 10, 40)), *size)
    assert torch.equal(flat, flat[:, :1, :1].expand_as(flat))


def test_a_standing_person_is_padded_to_a_square_and_a_face_is_left_alone():
    tall = torch.rand(2, 3, 16, 8)
    square = pad_square(tall)
    assert square.shape == (2, 3, 16, 16)
    assert torch.equal(square[..., 4:12], tall)
    assert not square[..., :4].any()
    assert pad_square(tall.transpose(2, 3)).shape == (2, 3, 16, 16)
    assert pad_square(square) is square
