"""Edited images as files: every format reads back as asked for, and the same image is the same bytes."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from styleclip_core import images
from styleclip_core.errors import ImageFormatError
from styleclip_core.images import (
    decode_image,
    encode_image,
    encode_png,
    from_uint8,
    psnr,
    saved_size,
    to_uint8,
)
from styleclip_core.settings.saving import LOSSY, SavingSettings

FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP", "webp-lossless": "WEBP", "avif": "AVIF"}


def smooth(height: int = 48, width: int = 64) -> torch.Tensor:
    """A picture as generators draw them: no noise, all colours."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return torch.stack([x, y, (3 * x * y).sin()])


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_is_of_its_format_and_holds_nothing_but_pixels(form):
    settings = SavingSettings(format=form)
    content = encode_image(smooth(), settings)
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.size, image.mode) == (FORMATS[form], (64, 48), "RGB")
        assert not image.getexif()
        assert not {"exif", "xmp", "icc_profile", "comment"} & {
            name for name, value in image.info.items() if value
        }
    shown = from_uint8(np.asarray(decode_image(content))[None])
    expected = from_uint8(to_uint8(smooth()[None]))
    if form in LOSSY:
        assert psnr(shown, expected).item() > 32
    else:
        assert torch.equal(shown, expected)


@pytest.mark.parametrize("form", FORMATS)
def test_another_process_with_other_threads_writes_the_same_bytes(form):
    code = (
        "import hashlib, sys; from tests.core.test_saving import *; import torch; torch.set_num_threads(1)\n"
        f"print(hashlib.sha256(encode_image(smooth(), SavingSettings(format={form!r}))).hexdigest())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    import hashlib

    assert (
        found.stdout.strip()
        == hashlib.sha256(encode_image(smooth(), SavingSettings(format=form))).hexdigest()
    )


def test_png_is_what_it_always_was():
    assert encode_image(smooth(), SavingSettings()) == encode_png(smooth())


@pytest.mark.parametrize("form", LOSSY)
def test_quality_is_paid_for_in_bytes(form):
    sizes = [len(encode_image(smooth(), SavingSettings(format=form, quality=each))) for each in (20, 60, 98)]
    assert sizes == sorted(set(sizes))


@given(st.integers(16, 400), st.integers(16, 400), st.integers(16, 400))
def test_the_long_side_is_as_asked_for_and_the_shape_stays(width, height, size):
    found = saved_size(width, height, size)
    assert max(found) == size
    assert abs(found[0] * height - found[1] * width) <= max(width, height)
    assert saved_size(width, height, None) == (width, height)


def test_a_file_is_scaled_to_its_long_side():
    with Image.open(io.BytesIO(encode_image(smooth(), SavingSettings(size=32)))) as image:
        assert image.size == (32, 24)


def test_a_format_that_pillow_lacks_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setattr(images, "_FORMATS", ("PNG",))
    with pytest.raises(ImageFormatError, match=r"avif is not written here.*install a Pillow with AVIF"):
        encode_image(smooth(), SavingSettings(format="avif"))
