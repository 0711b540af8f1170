"""Winograd's filtering: convolutions by their definition, of tiles that fill caches unevenly."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from styleclip_core import winograd
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig
from styleclip_core.style_space import StyleCode


@pytest.mark.parametrize(
    ("batch", "channels", "out", "height", "width"), [(3, 5, 7, 8, 12), (1, 96, 100, 4, 4), (2, 3, 2, 16, 8)]
)
def test_it_is_a_convolution(batch, channels, out, height, width):
    source = torch.Generator().manual_seed(3)
    x = torch.randn(batch, channels, height, width, generator=source)
    weight = torch.randn(out, channels, 3, 3, generator=source)
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    found = winograd.convolve(x, winograd.transform(weight))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_close(found.double(), expected, atol=2e-5 * expected.abs().max().item(), rtol=0)


def test_small_caches_cut_images_and_rows_and_change_nothing(monkeypatch):
    source = torch.Generator().manual_seed(4)
    x, weight = torch.randn(3, 4, 16, 8, generator=source), torch.randn(6, 4, 3, 3, generator=source)
    transformed = winograd.transform(weight)
    whole = winograd.convolve(x, transformed)
    row = 36 * 4 * (4 + 6) * 2  # bytes of a row of tiles
    for cache in (1, 3 * row, 4 * row, 9 * row):
        monkeypatch.setattr(winograd, "_CACHE", cache)
        assert_close(winograd.convolve(x, transformed), whole, atol=1e-4, rtol=0)


def test_it_is_used_where_it_pays():
    wide = torch.zeros(96, 128, 3, 3)
    assert winograd.pays(wide, 8, 12)
    assert not winograd.pays(wide, 8, 10)  # not in tiles of four
    assert not winograd.pays(wide, 4, 4)
    assert not winograd.pays(wide[:, :95], 8, 8)
    assert not winograd.pays(wide.bfloat16(), 8, 8)
    assert not winograd.pays(wide.to("meta"), 8, 8)


def test_an_image_has_the_same_bits_wherever_it_lies_in_a_batch_of_one_size():
    source = torch.Generator().manual_seed(6)
    x = torch.randn(16, 96, 8, 8, generator=source)
    transformed = winograd.transform(torch.randn(96, 96, 3, 3, generator=source))
    order = torch.randperm(16, generator=source)
    assert torch.equal(winograd.convolve(x[order], transformed), winograd.convolve(x, transformed)[order])


def test_a_wide_generator_draws_the_same_images_that_way_and_none_when_it_is_differentiated(monkeypatch):
    torch.manual_seed(7)
    wide = Generator(GeneratorConfig(16, z_dim=8, w_dim=8, channel_base=1536, channel_max=96)).eval()
    wide.requires_grad_(False)
    styles, used = wide.styles(wide.map(torch.randn(4, 8))), []
    real = winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda *given: used.append(1) or real(*given))

    image = wide.synthesize(styles)
    assert len(used) == 1  # the convolution at 16 px: the others double, or have too few pixels
    moving = StyleCode(wide.layout, {name: style.clone().requires_grad_() for name, style in styles.items()})
    direct = wide.synthesize(moving)
    assert direct.requires_grad
    assert len(used) == 1
    assert_close(image, direct.detach(), atol=1e-4, rtol=0)
