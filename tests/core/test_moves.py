"""Moved channels: the images of the plain synthesis, for every layer, move and kind of network."""

import pytest
import torch
from torch.testing import assert_close

from styleclip_core.models.stylegan2 import Generator, GeneratorConfig
from styleclip_core.moves import ChannelMoves


def _expected(generator, code, layer, channels, values):
    """One synthesis for each move, from the start."""
    images = []
    for row in values:
        for channel, value in zip(channels, row, strict=True):
            style = code[layer].clone()
            style[:, channel] = value
            images.append(generator.synthesize(code.replace(layer, style)))
    return torch.cat(images)


def _check(generator, code, layer, *, tolerance=2e-5):
    names = [each.name for each in generator.layout.layers]
    channels = torch.tensor([4, 0, 5])
    style = code[layer][0, channels]
    values = torch.stack([style + 2, style - 2, torch.zeros(3)])
    with torch.no_grad():
        below = generator.advance(generator.begin(1), code, names.index(layer))
        moved = ChannelMoves(generator, code, layer, below).images(channels, values)
        expected = _expected(generator, code, layer, channels, values)
    assert_close(moved, expected, atol=tolerance * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize("layer", ["b4.conv1", "b8.conv0", "b8.conv1", "b16.conv0", "b16.conv1"])
def test_moves_equal_syntheses(generator, codes, layer):
    _check(generator, codes.select(slice(1, 2)), layer)


@pytest.mark.parametrize("changes", [{"conv_clamp": 0.5}, {"const_width": 2}])
def test_moves_equal_syntheses_of_clamped_and_of_narrow_generators(changes):
    torch.manual_seed(2)
    config = GeneratorConfig(16, 8, 8, 0, 2, 128, 12, **changes)
    built = Generator(config).eval().requires_grad_(False)
    code = built.styles(built.map(torch.randn(1, 8)))
    for layer in ("b8.conv0", "b16.conv1"):
        _check(built, code, layer)


def test_a_channel_that_carries_nearly_all_of_the_energy_can_be_switched_off(generator, codes):
    code = codes.select(slice(0, 1))
    style = torch.full_like(code["b8.conv1"], 0.01)
    style[:, 4] = 30
    _check(generator, code.replace("b8.conv1", style), "b8.conv1", tolerance=2e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("layer", ["b4.conv1", "b8.conv0", "b8.conv1", "b16.conv0", "b16.conv1"])
def test_moves_in_16_bits_are_those_of_32_but_for_their_rounding(generator, codes, layer, dtype, tolerance):
    # what is above a conv1 is a toRGB layer, above a conv0 a convolution: both take what the layer gives
    code, channels = codes.select(slice(0, 1)), torch.tensor([4, 0, 5])
    values = torch.stack([code[layer][0, channels] + 2, code[layer][0, channels] - 2])
    names = [each.name for each in generator.layout.layers]
    with torch.no_grad():
        below = generator.advance(generator.begin(1), code, names.index(layer))
        half, whole = (
            ChannelMoves(generator, code, layer, below, dtype=each).images(channels, values)
            for each in (dtype, torch.float32)
        )
    assert half.dtype == torch.float32
    assert_close(half, whole, atol=tolerance * whole.abs().max().item(), rtol=0)
    assert not torch.equal(half, whole)
