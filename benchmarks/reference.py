"""The reference's ways, written straightforwardly: one image at a time, through PIL, mutated in place.

Relevance is written twice: as the engine defines it, from untouched codes for every channel, and as the
published script measures it, slip included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.networks import Case
from styleclip_core.images import to_uint8
from styleclip_core.mapper_training import PRESETS as MAPPER_PRESETS
from styleclip_core.mapper_training import MapperTrainingSettings, new_mapper
from styleclip_core.models.clip import ClipModel
from styleclip_core.models.clip_preprocessing import Preprocessing
from styleclip_core.models.mapper import PUBLISHED_STRENGTH, Mapper
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.optimization import OptimizationSettings, learning_rate_factor
from styleclip_core.relevance import ChannelDirections, RelevanceTable
from styleclip_core.style_space import StyleCode

_PUBLISHED_STRENGTH = 5.0  # deviations that the published script moves a channel by


def published_preprocessing(side: int) -> Callable[[Image.Image], Tensor]:
    """Return what OpenAI's package does to an image through PIL, bit for bit, without torchvision.

    The shorter side is scaled to ``side``, the middle cut out, the pixels normalized: ``[3, side, side]``.
    """
    normal = Preprocessing(side)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (normal.mean, normal.std))

    def preprocess(image: Image.Image) -> Tensor:
        # the longer side is cut off to a whole number, as torchvision does
        short = min(image.size)
        width, height = (side if each == short else int(side * each / short) for each in image.size)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BICUBIC)

        left, top = round((width - side) / 2), round((height - side) / 2)
        cut = image.crop((left, top, left + side, top + side)).convert("RGB")
        pixels = torch.from_numpy(np.array(cut)).permute(2, 0, 1).contiguous()
        return (pixels.float() / 255 - mean) / std

    return preprocess


@torch.no_grad()
def reference_directions(case: Case, codes: StyleCode, layer: str, channels: Iterable[int]) -> Tensor:
    """Return the mean unit change of the embedding by every channel, ``[C, D]``."""
    preprocess, std = published_preprocessing(case.clip.input_resolution), case.std[layer][0]
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


@torch.no_grad()
def reference_table(
    generator: Generator, clip: ClipModel, codes: StyleCode, mean: StyleCode, std: StyleCode
) -> RelevanceTable:
    """Measure channel relevance as the published script does, slip included.

    ``visited`` is its one copy of the codes: a channel is put to its mean before its turn, and stays there.
    """
    visited = {name: codes[name].clone() for name in codes}
    preprocess, parts = published_preprocessing(clip.input_resolution), []
    for layer in generator.layout.editable:
        rows = []
        for channel in range(layer.channels):
            visited[layer.name][:, channel] = mean[layer.name][0, channel]
            pixels = []
            for sign in (1, -1):
                for index in range(codes.batch_size):
                    one = {name: style[index : index + 1].clone() for name, style in visited.items()}
                    one[layer.name][:, channel] += sign * _PUBLISHED_STRENGTH * std[layer.name][0, channel]
                    image = generator.synthesize(StyleCode(codes.layout, one))[0]
                    eight_bit = ((image + 1) * 127.5).clamp(0, 255).to(torch.uint8)
                    pixels.append(preprocess(Image.fromarray(eight_bit.permute(1, 2, 0).numpy())))
            batch = torch.stack(pixels).to(clip.model.dtype)  # type: ignore[arg-type]
            embedded = F.normalize(clip.model.encode_image(batch).float(), dim=1)  # type: ignore[operator]
            up, down = embedded.chunk(2)
            rows.append(F.normalize(up - down, dim=1).mean(dim=0))
        every = torch.arange(layer.channels)
        count = torch.full((layer.channels,), codes.batch_size)
        parts.append(ChannelDirections(layer.name, every, count, torch.stack(rows)))
    return RelevanceTable.from_parts(generator.layout, parts)


def reference_optimization(
    generator: Generator,
    embed: Callable[[Tensor], Tensor],
    w_source: Tensor,
    text: Tensor,
    settings: OptimizationSettings,
) -> StyleCode:
    """Optimize one code ``[1, L, W]`` towards a prompt ``[D]``, step by step, in W+ or in S without toRGB.

    The result is the code of the last image that was drawn; the update that follows it is not used.
    """
    source = generator.styles(w_source)
    in_s = settings.space == "s"
    fixed = {layer.name for layer in generator.layout.layers if layer.is_torgb}
    latent = w_source.detach().clone().requires_grad_(True)
    styles = {name: source[name].clone().requires_grad_(name not in fixed) for name in source}
    moving = [style for style in styles.values() if style.requires_grad] if in_s else [latent]
    optimizer = torch.optim.Adam(moving, lr=settings.learning_rate, eps=settings.epsilon)
    for step in range(settings.steps - 1):
        rate = settings.learning_rate * learning_rate_factor(step, settings.steps)
        optimizer.param_groups[0]["lr"] = rate
        codes = StyleCode(generator.layout, styles) if in_s else generator.styles(latent)
        loss = 1 - (embed(generator.synthesize(codes)) @ text).squeeze()
        if in_s:
            l2 = torch.stack([(styles[name] - source[name]).square().sum() for name in styles]).sum()
        else:
            l2 = (latent - w_source).square().sum()
        loss = loss + settings.l2_weight * l2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return StyleCode(generator.layout, styles) if in_s else generator.styles(latent)


def reference_mapper(
    generator: Generator,
    embed: Callable[[Tensor], Tensor],
    codes: Tensor,
    text: Tensor,
    steps: int,
    settings: MapperTrainingSettings = MAPPER_PRESETS["published"],
) -> Mapper:
    """Train a mapper with the published losses, rate, batch of 2 and optimizer.

    That optimizer, Ranger, is RAdam on gradients of zero mean, every sixth step of which is averaged with
    where it was six steps before. The identity term is left out: it was made for faces.
    """
    mapper = new_mapper(generator, settings)
    weights = list(mapper.parameters())
    optimizer = torch.optim.RAdam(weights, lr=settings.learning_rate, betas=(0.95, 0.999), eps=1e-5)
    slow = [weight.detach().clone() for weight in weights]
    order = torch.Generator().manual_seed(settings.seed)
    for step in range(steps):
        w = codes[torch.randint(len(codes), (settings.batch_size,), generator=order)]
        moved = w + PUBLISHED_STRENGTH * mapper.step(w)
        clip = (1 - embed(generator.synthesize(generator.styles(moved))) @ text).mean()
        loss = settings.clip_weight * clip + settings.l2_weight * F.mse_loss(moved, w)
        optimizer.zero_grad()
        loss.backward()
        for weight in weights:
            if weight.grad is not None and weight.ndim > 1:
                weight.grad -= weight.grad.mean(dim=tuple(range(1, weight.ndim)), keepdim=True)
        optimizer.step()
        if step % 6 == 5:
            for weight, anchor in zip(weights, slow, strict=True):
                anchor += 0.5 * (weight.detach() - anchor)
                weight.data.copy_(anchor)
    return mapper.requires_grad_(False)
