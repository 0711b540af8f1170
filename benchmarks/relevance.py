"""Channel relevance: the engine against the reference's way, one image at a time through PIL.

The reference loop is written as the published script works (synthesize, round to 8 bits, PIL
preprocessing image by image, one CLIP call for a channel), but from untouched codes, so both measure
the same quantity.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from clip.clip import _transform
from PIL import Image
from torch import Tensor

import data
from styleclip_core import load_clip, load_generator
from styleclip_core.images import to_uint8
from styleclip_core.models.clip import ClipModel
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.relevance import RelevanceSettings, measure_channels
from styleclip_core.sampling import ChannelStatistics, sample_styles
from styleclip_core.style_space import StyleCode

CODES, CHANNELS, ROUNDS = 16, 4, 3


def measure_relevance() -> Iterator[tuple[str, ...]]:
    """Yield a row for an early, a middle and a late layer of the embedded world."""
    generator, clip = load_generator(data.GENERATOR), load_clip(data.CLIP)
    settings = {"seed": 0, "truncation_psi": 1.0}
    ((_, _, many),) = sample_styles(generator, sample_ids=range(2000), batch_size=2000, **settings)  # type: ignore[arg-type]
    spread = StyleCode.from_flat(
        generator.layout, ChannelStatistics.from_codes(many.flat()).std[None].float()
    )
    codes = many.select(slice(0, CODES))
    for layer in ("b8.conv0", "b16.conv1", "b64.conv1"):
        std, slow, fast = spread[layer][0], [], []
        difference = 0.0
        for _ in range(ROUNDS):
            started = time.perf_counter()
            expected = _reference(generator, clip, codes, layer, std)
            slow.append(time.perf_counter() - started)
            started = time.perf_counter()
            found = measure_channels(
                generator, clip.embed_images, codes, layer=layer, channels=range(CHANNELS),
                mean=torch.zeros_like(std), std=std, settings=RelevanceSettings(),
            )  # fmt: skip
            fast.append(time.perf_counter() - started)
            unit = F.normalize(found.direction, dim=1)
            difference = max(difference, (unit - F.normalize(expected, dim=1)).abs().max().item())
        ratio = statistics.median(s / f for s, f in zip(slow, fast, strict=True))
        images = 2 * CODES * CHANNELS
        yield (
            f"relevance of {layer}", f"{images / statistics.median(slow):.0f} images/s",
            f"{images / statistics.median(fast):.0f} images/s", f"{ratio:.1f}", f"{difference:.1e}",
        )  # fmt: skip


@torch.no_grad()
def _reference(generator: Generator, clip: ClipModel, codes: StyleCode, layer: str, std: Tensor) -> Tensor:
    preprocess = _transform(clip.input_resolution)
    rows = []
    for channel in range(CHANNELS):
        pixels = []
        for sign in (5.0, -5.0):
            for index in range(codes.batch_size):
                one = codes.select(slice(index, index + 1))
                style = one[layer].clone()
                style[:, channel] += sign * std[channel]
                image = generator.synthesize(one.replace(layer, style))
                pixels.append(preprocess(Image.fromarray(to_uint8(image)[0])))
        embedded = F.normalize(clip.model.encode_image(torch.stack(pixels)).float(), dim=1)  # type: ignore[operator]
        up, down = embedded.chunk(2)
        rows.append(F.normalize(up - down, dim=1).mean(dim=0))
    return torch.stack(rows)
