"""Image files: every form a user has, every damage a bucket holds."""

import contextlib
import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from styleclip_core import images as core_images
from styleclip_core.errors import ImageDecodeError, ImageSizeError
from styleclip_core.images import (
    ENDINGS,
    centre_square,
    decode_image,
    encode_png,
    fit,
    from_uint8,
    pad_square,
    psnr,
    to_uint8,
)


def _file(image: Image.Image, form="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _declared(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds almost nothing."""
    return _png(width, height, 8, 2, b"\0" * 100)


def _png(width: int, height: int, depth: int, kind: int, content: bytes, clear: bytes = b"") -> bytes:
    """A PNG of these bytes; ``clear`` is the transparent value, two bytes for each channel."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    transparent = [(b"tRNS", clear)] if clear else []
    chunks = [(b"IHDR", header), *transparent, (b"IDAT", zlib.compress(content)), (b"IEND", b"")]
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


GREY, COLOUR = 0, 2  # kinds of PNG without an alpha channel


@pytest.mark.parametrize(
    ("depth", "kind", "row", "clear", "shown"),
    [
        (16, GREY, struct.pack(">16H", *[1000, 30000] * 8), (1000,), (255, 117)),
        (
            16,
            COLOUR,
            struct.pack(">48H", *[1000, 1000, 1000, 30000, 30000, 30000] * 8),
            (1000,) * 3,
            (255, 117),
        ),
        (8, GREY, bytes([7, 117] * 8), (7,), (255, 117)),
        (4, GREY, bytes([0x57] * 8), (5,), (255, 119)),  # 7 of 15
        (2, GREY, bytes([0b01100110] * 4), (1,), (255, 170)),  # 2 of 3
        (1, GREY, bytes([0b01010101] * 2), (0,), (255, 255)),
    ],
)
def test_a_transparent_value_of_any_depth_lies_over_white(depth, kind, row, clear, shown):
    data = _png(16, 16, depth, kind, (b"\0" + row) * 16, struct.pack(f">{len(clear)}H", *clear))
    decoded = decode_image(data)
    assert [decoded.getpixel((x, 3)) for x in (0, 1)] == [(value,) * 3 for value in shown]


def _tiff(bits: int, photometric: int, row: bytes) -> bytes:
    """A grey TIFF of 16 equal rows; a photometric of 0 says that 0 is white."""
    content = row * 16
    tags = {256: 16, 257: 16, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 16, 279: len(content)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return (
        b"II*\0"
        + struct.pack("<I", 8 + len(content))
        + content
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )


def test_grey_of_any_depth_is_scaled_by_what_it_can_hold():
    sixteen = struct.pack("<16H", *[0, 65535] * 8)
    twelve = bytes([0x00, 0x0F, 0xFF]) * 8  # 0 and 4095
    for data in (_tiff(16, 1, sixteen), _tiff(12, 1, twelve)):
        assert [decode_image(data).getpixel((x, 5))[0] for x in (0, 1)] == [0, 255]
    assert [decode_image(_tiff(16, 0, sixteen)).getpixel((x, 5))[0] for x in (0, 1)] == [255, 0]
    whole = np.array([[0, 65535]] * 16 * 8, np.int32).reshape(16, 16)
    assert np.asarray(decode_image(_file(Image.fromarray(whole), "TIFF")))[0, :2, 0].tolist() == [0, 255]
    floats = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    scaled = np.asarray(decode_image(_file(Image.fromarray(floats), "TIFF")))
    assert scaled[..., 1].ravel().tolist() == list(range(256))


@pytest.mark.parametrize(
    ("pixel", "message"),
    [
        (np.float32(100), "goes from 0 to 100, where 0 to 1 was expected, so what is white is not known"),
        (np.float32(np.nan), "goes from nan to nan"),
        (np.int32(70_000), "goes from 0 to 70000, where 0 to 65535"),
        (np.int32(-3), "goes from -3 to 0"),
    ],
)
def test_grey_that_does_not_say_what_is_white_is_refused_not_black(pixel, message):
    levels = np.zeros((16, 16), pixel.dtype)
    levels[3, 4] = pixel
    with pytest.raises(ImageDecodeError, match=f"{message}.*|convert it to 8 or 16 bits"):
        decode_image(_file(Image.fromarray(levels), "TIFF"))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"]
)
def test_every_mode_becomes_rgb_of_the_same_brightness(mode):
    grey = np.full((16, 16), 128, np.uint8)
    deep = {"I;16": np.uint16(128 * 257), "I": np.int32(128 * 257), "F": np.float32(128 / 255)}
    if mode in deep:
        image = Image.fromarray(np.full((16, 16), deep[mode]))
    elif mode == "LAB":
        image = Image.merge(
            "LAB", [Image.new("L", (16, 16), value) for value in (137, 128, 128)]
        )  # CIE L* 53.6
    else:
        image = Image.fromarray(grey).convert("RGB").convert(mode)
    form = "PNG" if mode in ("LA", "P", "RGBA") else "TIFF"
    decoded = np.asarray(decode_image(_file(image, form))).astype(int)
    assert decoded.shape == (16, 16, 3)
    assert abs(decoded.mean() - 128) <= (1 if mode != "1" else 8)  # of dots, half are white


@pytest.mark.parametrize("form", ["TIFF", "WEBP", "PNG", "GIF", "AVIF"])
def test_the_first_picture_of_several_is_read(form):
    if form in ("WEBP", "AVIF") and not features.check(form.lower()):
        pytest.skip(f"this Pillow was built without {form}")
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    decoded = decode_image(_file(first, form, save_all=True, append_images=[second]))
    assert np.abs(np.asarray(decoded).astype(int) - (255, 0, 0)).max() <= 2


def test_what_is_read_has_an_ending_and_what_is_not_says_its_kind():
    assert {".png", ".jpg", ".jfif", ".jpe", ".gif"} <= set(ENDINGS)
    assert (".avif" in ENDINGS) == bool(features.check("avif"))
    for start, kind in (
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    ):
        with pytest.raises(
            ImageDecodeError, match=f"{kind} is not read here; convert the image to JPEG or PNG"
        ):
            decode_image(start + bytes(40))
    # a program of PostScript must not reach Ghostscript by calling itself .png
    with pytest.raises(ImageDecodeError, match="not an image in a known format"):
        decode_image(_file(Image.new("RGB", (20, 20)), "EPS"))


PHONE = (Path(__file__).parents[1] / "data" / "phone.heic").read_bytes()


def test_what_a_phone_writes_is_read_by_its_colours():
    decoded = decode_image(PHONE)
    assert (decoded.size, decoded.mode) == ((64, 48), "RGB")
    assert decoded.getpixel((5, 5)) == (255, 255, 255)
    assert np.abs(np.subtract(decoded.getpixel((50, 20)), (255, 0, 0))).max() <= 4  # stored in Display P3
    with pytest.raises(ImageSizeError, match="declares 64 x 48 pixels"):
        decode_image(PHONE, max_pixels=1000)


def test_without_the_extra_heic_says_which_it_is(monkeypatch):
    for brand in (b"heic", b"mif1"):
        with pytest.raises(ImageDecodeError, match="damaged or truncated HEIC"):
            decode_image(b"\0\0\0\x18ftyp" + brand + bytes(40))
    monkeypatch.setattr(core_images, "_FORMATS", tuple(set(core_images._FORMATS) - {"HEIF"}))
    with pytest.raises(ImageDecodeError, match="HEIC is not read here; install the extra heic, or convert"):
        decode_image(PHONE)


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
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "JPEG2000", "AVIF", "HEIF"])
def test_damage_anywhere_in_a_file_is_an_image_error(form):
    if form in ("WEBP", "AVIF") and not features.check(form.lower()):
        pytest.skip(f"this Pillow was built without {form}")
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 8, "maker"
    exif[0x8825] = {1: "N", 2: (1.0, 2.0, 3.0)}  # rewritten when the orientation is applied
    options = {"exif": exif} if form in ("JPEG", "PNG", "WEBP") else {}
    noise = Image.effect_noise((32, 32), 50).convert("RGB")
    good = PHONE if form == "HEIF" else _file(noise, form, **options)
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


# ---- how much memory a picture takes --------------------------------------------------------------------


def published(image: Image.Image, side: int) -> torch.Tensor:
    """CLIP's preparation of photographs as OpenAI has it: torchvision's Resize and CenterCrop."""
    short, long = sorted(image.size)
    scaled = int(side * long / short)
    size = (side, scaled) if image.width <= image.height else (scaled, side)
    whole = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (round((extent - side) / 2) for extent in size)
    return from_uint8(np.asarray(whole.crop((left, top, left + side, top + side)))[None])[0]


@given(st.integers(16, 90), st.integers(16, 300), st.booleans(), st.sampled_from([32, 33, 64, 224]))
def test_the_centre_square_is_the_published_one_to_the_bit(short, long, turned, side):
    size = (long, short) if turned else (short, long)
    image = Image.fromarray(np.random.default_rng(long).integers(0, 256, (*size, 3), dtype=np.uint8))
    assert torch.equal(centre_square(image, side), published(image, side))


@given(st.integers(16, 60), st.integers(60, 500), st.booleans())
def test_the_middle_alone_differs_from_the_published_square_by_rounding(short, long, turned):
    size = (long, short) if turned else (short, long)
    image = Image.fromarray(np.random.default_rng(short).integers(0, 256, (*size, 3), dtype=np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core_images, "MOST_SCALED", 0)
        assert (centre_square(image, 32) - published(image, 32)).abs().mean() < 2 / 255


@pytest.fixture
def pixels_made(monkeypatch) -> list[int]:
    """How many pixels each picture has that is scaled or cut out."""
    made: list[int] = []

    def noting(real):
        def note(image, *args, **options):
            result = real(image, *args, **options)
            made.append(result.width * result.height)
            return result

        return note

    for name in ("resize", "crop", "transform"):
        monkeypatch.setattr(Image.Image, name, noting(getattr(Image.Image, name)))
    return made


@pytest.mark.parametrize("size", [(16, 200_000), (200_000, 16), (40, 1_500_000)])
def test_a_very_long_picture_takes_no_more_memory_than_it_has_pixels(pixels_made, size):
    image = decode_image(_file(Image.new("RGB", size, (200, 10, 40)), "PNG", compress_level=1))
    assert centre_square(image, 224).shape == (3, 224, 224)
    assert fit(image, 64, 64).shape == (3, 64, 64)
    assert fit(image, 64, 1).shape == (3, 64, 1)
    assert max(pixels_made) <= core_images.MOST_SCALED
    assert torch.equal(centre_square(image, 224)[:, 0, 0], centre_square(image, 224)[:, 100, 100])
