"""The published script's table against its loop, written out with the slip it has."""

import numpy as np
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from styleclip_core.models.stylegan2 import Generator, GeneratorConfig
from styleclip_core.reference_compat import measure_as_published, published_layers
from styleclip_core.relevance import RelevanceSettings
from styleclip_core.style_space import StyleCode


def _embed(images):
    features = torch.cat([images.mean(dim=(2, 3)), images[:, :, 3, 3], torch.ones(len(images), 1)], dim=1)
    return F.normalize(features, dim=1)


def _published_loop(generator, codes, mean, std):
    """SingleChannel.py: a list copied, its arrays not; every visited channel stays at its mean."""
    layout = generator.layout
    styles = {name: style.numpy().copy() for name, style in codes.items()}
    rows = {}
    for layer in published_layers(layout):
        for channel in range(layer.channels):
            styles[layer.name][:, channel] = mean[layer.name][0, channel]
            pixels = []
            for alpha in (5, -5):
                moved = {name: style.copy() for name, style in styles.items()}
                moved[layer.name][:, channel] += alpha * std[layer.name][0, channel].item()
                for index in range(codes.batch_size):
                    one = {name: torch.from_numpy(style[index : index + 1]) for name, style in moved.items()}
                    image = generator.synthesize(StyleCode(layout, one)).numpy()
                    pixels.append(((image + 1) * 127.5).clip(0, 255).astype(np.uint8))
            images = torch.from_numpy(np.concatenate(pixels)).float() / 127.5 - 1
            up, down = _embed(images).double().chunk(2)
            length = (up - down).norm(dim=1, keepdim=True)
            seen = length[:, 0] > 1e-6
            rows[layer.name, channel] = ((up - down) / length)[seen].sum(dim=0) / max(1, int(seen.sum()))
    return rows


def test_shards_in_closed_form_equal_the_published_loop(generator, codes):
    source = torch.Generator().manual_seed(9)
    many = generator.styles(generator.map(torch.randn(50, 8, generator=source)))
    mean = StyleCode.from_flat(generator.layout, many.flat().mean(dim=0, keepdim=True))
    std = StyleCode.from_flat(generator.layout, many.flat().std(dim=0, keepdim=True))
    expected = _published_loop(generator, codes, mean, std)
    before = codes.flat().clone()
    for layer, channels in (("b16.conv0", [7, 2]), ("b4.conv1", range(3)), ("b8.conv1", [11])):
        found = measure_as_published(
            generator, _embed, codes, layer=layer, channels=channels, mean=mean, std=std,
            settings=RelevanceSettings(batch_size=4),
        )  # fmt: skip
        for channel, direction in zip(channels, found.direction, strict=True):
            # a float that lies on the edge of a level may fall to either side
            assert_close(direction, expected[layer, channel].float(), atol=2e-2, rtol=0)
            assert direction.norm() > 0.3
    assert torch.equal(codes.flat(), before)


def test_layers_above_128_pixels_are_left_out():
    big = Generator(GeneratorConfig(512, 4, 4, 0, 1, 2048, 4))
    names = [layer.name for layer in published_layers(big.layout)]
    assert names[-1] == "b128.conv1"
    assert len(names) == 11
