"""The relevance table as the published script measures it, for comparison only.

Four things differ from ``styleclip_core.relevance``, of which the first is a slip: an assignment meant as
a copy leaves every channel that was visited at its mean, in all images, for the rest of the run. So channel
c is measured on codes whose earlier channels, in this layer and in those below, are no longer the codes'
own. What they have become is known in advance, so shards can still be measured in any order. A channel
moves around its mean. Images are truncated to 8 bits. Layers above 128 pixels are left out.

Shapes: B style codes, C channels of a layer, M all style channels, D width of the CLIP embedding.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from styleclip_core.batches import Batches
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.relevance import (
    Accumulator,
    ChannelDirections,
    EmbedImages,
    RelevanceSettings,
    check_layer,
)
from styleclip_core.style_space import StyleCode, StyleLayer, StyleLayout

_LARGEST = 128
_CODES = 16  # at once, each moved both ways, where nothing else is said


def published_layers(layout: StyleLayout) -> tuple[StyleLayer, ...]:
    """Return the layers that the published script measures."""
    return tuple(layer for layer in layout.editable if layer.resolution <= _LARGEST)


def frozen_codes(codes: StyleCode, mean: StyleCode, layer: str) -> StyleCode:
    """Return the codes as they are when the published script comes to a layer."""
    for before in codes.layout.editable:
        if before.name == layer:
            break
        codes = codes.replace(before.name, mean[before.name].to(codes[layer]).expand(codes.batch_size, -1))

    return codes


@torch.no_grad()
def measure_as_published(
    generator: Generator,
    embed_images: EmbedImages,
    codes: StyleCode,
    *,
    layer: str,
    channels: Iterable[int],
    mean: StyleCode,
    std: StyleCode,
    settings: RelevanceSettings,
) -> ChannelDirections:
    """Measure channels of one layer in the published script's way.

    Args:
        generator: Draws the images.
        embed_images: Images ``[b, 3, H, H]`` in -1..1 -> unit embeddings ``[b, D]``.
        codes: B style codes, left unchanged.
        layer: Name of an editable layer.
        channels: Channels of that layer.
        mean: Mean of all style channels, as a code of one.
        std: Their standard deviation, likewise.
        settings: Strength and batch size; the published way decides the rest.

    Returns:
        One row per channel, in the order given.

    Raises:
        LayoutMismatchError: If the layer does not exist, is a toRGB layer, or has fewer channels.
    """
    chosen = torch.as_tensor(list(channels), dtype=torch.int64)
    check_layer(generator, layer, chosen, mean[layer][0], std[layer][0])

    # all layers below this one are the same for every channel of it: drawn once, not twice per channel
    position = [each.name for each in generator.layout.layers].index(layer)
    frozen = frozen_codes(codes, mean, layer)
    below = generator.advance(generator.begin(codes.batch_size), frozen, position)

    directions = Accumulator(len(chosen), generator.device)
    centre, step = mean[layer][0].to(generator.device), settings.strength * std[layer][0].to(generator.device)
    batches = Batches(settings.batch_size // 2 or _CODES)

    # the slip: channels before this one were never set back from their mean
    for row, channel in enumerate(chosen.tolist()):
        style = frozen[layer].clone()
        style[:, : channel + 1] = centre[: channel + 1]

        up, down = style.clone(), style.clone()
        up[:, channel] += step[channel]
        down[:, channel] -= step[channel]

        def ends(picked: Tensor, up: Tensor = up, down: Tensor = down) -> Tensor:
            twice = torch.cat([picked, picked])
            styles = frozen.select(twice).replace(layer, torch.cat([up[picked], down[picked]]))
            return embed_images(_truncated(generator.resume(below.select(twice), styles))).float()

        for picked, embedded in batches.run(torch.arange(codes.batch_size), ends):
            directions.add(torch.full((len(picked),), row), *embedded.chunk(2))
    return ChannelDirections(layer, chosen, directions.n.cpu(), directions.mean().float().cpu())


def _truncated(images: Tensor) -> Tensor:
    return ((images + 1) * 127.5).clamp(0, 255).floor() / 127.5 - 1
