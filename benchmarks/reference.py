"""The reference's way to measure relevance, written straightforwardly: one image at a time, through PIL.

As the published script works: synthesize, round to 8 bits, PIL preprocessing image by image, one CLIP call
for a channel. But it starts every channel from untouched codes, so it measures what the engine does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from clip.clip import _transform
from PIL import Image
from torch import Tensor

from benchmarks.networks import Case
from styleclip_core.images import to_uint8
from styleclip_core.style_space import StyleCode


@torch.no_grad()
def reference_directions(case: Case, codes: StyleCode, layer: str, channels: Iterable[int]) -> Tensor:
    """Return the mean unit change of the embedding by every channel, ``[C, D]``."""
    preprocess, std = _transform(case.clip.input_resolution), case.std[layer][0]
    rows = []
    for channel in channels:
        pixels = []
        for sign in (5.0, -5.0):
            for index in range(codes.batch_size):
                one = codes.select(slice(index, index + 1))
                style = one[layer].clone()
                style[:, channel] += sign * std[channel]
                image = case.generator.synthesize(one.replace(layer, style))
                pixels.append(preprocess(Image.fromarray(to_uint8(image)[0])))
        batch = torch.stack(pixels).to(case.clip.device, cast(torch.dtype, case.clip.model.dtype))
        embedded = F.normalize(case.clip.model.encode_image(batch).float(), dim=1)  # type: ignore[operator]
        up, down = embedded.chunk(2)
        rows.append(F.normalize(up - down, dim=1).mean(dim=0))
    return torch.stack(rows).cpu()


def table_seconds(case: Case, layer: str, seconds: float, channels: int, codes: int, wanted: int) -> float:
    """Return the seconds for all channels of a layer at ``wanted`` codes, from those for some at some."""
    return seconds / channels / codes * case.generator.layout.layer(layer).channels * wanted
