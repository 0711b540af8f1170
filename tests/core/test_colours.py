"""Photographs with colour profiles: the same colours in sRGB, and back into the photograph's own numbers."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from styleclip_core.colours import from_srgb, rgb_profile, to_srgb
from styleclip_core.images import decode_image, encode_photograph
from tests.profiles import ADOBE, DISPLAY_P3, SRGB, grey_profile


def picture(*colours: tuple[int, ...], mode: str = "RGB", side: int = 16) -> Image.Image:
    """Return an image of stripes, wide enough that JPEG keeps their colours."""
    pixels = np.repeat(np.repeat(np.array([colours], np.uint8), side, axis=0), side, axis=1)
    return Image.fromarray(pixels, mode)


def stored(image: Image.Image, form: str, profile: bytes | None, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, icc_profile=profile, **options)
    return buffer.getvalue()


def colours(image: Image.Image, side: int = 16) -> np.ndarray:
    return np.asarray(image)[side // 2, side // 2 :: side].astype(int)


# what the same colours are in sRGB, by matrices and curves of the standards
@pytest.mark.parametrize(
    ("profile", "own", "wanted"),
    [
        (DISPLAY_P3, (255, 255, 255), (255, 255, 255)),
        (DISPLAY_P3, (120, 120, 120), (120, 120, 120)),
        (DISPLAY_P3, (234, 51, 35), (255, 0, 0)),  # the red of sRGB in Display P3
        (DISPLAY_P3, (117, 251, 76), (0, 255, 0)),
        (ADOBE, (219, 0, 0), (255, 0, 0)),
        (ADOBE, (144, 255, 60), (0, 255, 0)),
    ],
)
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_the_colours_of_a_photograph_are_those_that_it_shows(profile, own, wanted, form):
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
    decoded = decode_image(stored(picture(own), form, profile, **options))
    assert decoded.mode == "RGB"
    assert "icc_profile" not in decoded.info
    assert np.abs(colours(decoded) - wanted).max() <= (4 if form == "JPEG" else 3)


@pytest.mark.parametrize("profile", [None, SRGB, b"", b"no profile", SRGB[:200], grey_profile(1.0)])
def test_pixels_stay_where_the_profile_is_srgb_or_cannot_be_used(profile):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
    decoded = decode_image(stored(image, "PNG", profile))
    assert np.array_equal(np.asarray(decoded), np.asarray(image))


def test_transparency_lies_over_white_in_srgb():
    image = picture((234, 51, 35, 255), (234, 51, 35, 0), (234, 51, 35, 128), mode="RGBA")
    decoded = colours(decode_image(stored(image, "PNG", DISPLAY_P3)))
    assert np.abs(decoded - [[255, 0, 0], [255, 255, 255], [255, 127, 127]]).max() <= 3
    palette = picture((234, 51, 35), (255, 255, 255)).quantize(4)
    assert np.abs(colours(decode_image(stored(palette, "PNG", DISPLAY_P3)))[0] - [255, 0, 0]).max() <= 3


def test_grey_and_cmyk_become_rgb_by_their_profiles():
    linear = stored(Image.new("L", (32, 32), 64), "PNG", grey_profile(1.0))
    assert np.abs(np.asarray(decode_image(linear), np.int16) - 137).max() <= 1  # 64 / 255 of the light
    # there is no free profile of CMYK that is small, so what has one that is of RGB is converted without it
    inks = stored(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", SRGB, quality=100)
    assert np.abs(np.asarray(decode_image(inks), np.int16) - [255, 0, 0]).max() <= 3


def test_own_colours_are_left_with_their_profile():
    own = stored(picture((234, 51, 35)), "PNG", DISPLAY_P3)
    decoded = decode_image(own, own_colours=True)
    assert (colours(decoded) == [[234, 51, 35]]).all()
    assert rgb_profile(decoded) == DISPLAY_P3

    # and so does what is encoded for it
    again = decode_image(encode_photograph(decoded, colours_of=decoded), own_colours=True)
    assert (np.asarray(again) == np.asarray(decoded)).all()
    assert rgb_profile(again) == DISPLAY_P3
    assert not rgb_profile(decode_image(own))

    clear = decode_image(
        stored(picture((234, 51, 35, 255), mode="RGBA"), "PNG", DISPLAY_P3), own_colours=True
    )
    assert rgb_profile(clear) == DISPLAY_P3


@given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=8))
def test_what_srgb_has_comes_back_from_a_wider_space(wanted):
    image = picture(*wanted)
    for profile in (DISPLAY_P3, ADOBE):
        there = from_srgb(image, profile)
        there.info["icc_profile"] = profile
        assert np.abs(colours(to_srgb(there)) - wanted).max() <= 6  # of 8 bits, dark ones are far apart


def test_without_another_space_there_is_nothing_to_convert():
    image = picture((10, 200, 30))
    for profile in (b"", SRGB, b"no profile"):
        assert from_srgb(image, profile) is image
