"""Channel relevance: the engine against the reference's way, one image at a time through PIL.

The reference loop is written as the published script works (synthesize, round to 8 bits, PIL
preprocessing image by image, one CLIP call for a channel), but from untouched codes, so both measure
the same quantity. Time is that of the process, summed over one shard of channels in the middle of every
layer, weighted by the layer's channels; the reference takes fewer of them. ``STYLECLIP_BENCH=config-f``
measures a generator of the published architecture with generated weights and ViT-B/32 on a GPU instead.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from clip.clip import _transform
from PIL import Image
from torch import Tensor

import data
from styleclip_core import load_clip, load_generator
from styleclip_core.derivatives import embedding_basis, unit_derivatives
from styleclip_core.images import to_uint8
from styleclip_core.instant import instant_relevance
from styleclip_core.models.clip import ClipModel
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig
from styleclip_core.relevance import RelevanceSettings, measure_channels
from styleclip_core.sampling import measure_statistics, sample_styles
from styleclip_core.style_space import StyleCode

ROUNDS = 3
EXACT = RelevanceSettings(batch_size=32)
FAST = replace(EXACT, tolerance=0.15, minimum=4)
DERIVATIVES = 64


@dataclass(frozen=True)
class Case:
    """Networks to measure and how much of the work to do.

    Attributes:
        name: What they are.
        codes: Style codes for ratios to the reference loop.
        shard: Channels of a layer for the engine.
        slow: Channels of a layer for the reference loop.
        many: Style codes of a whole table, for fast mode.
    """

    name: str
    generator: Generator
    clip: ClipModel
    std: StyleCode
    sampled: StyleCode
    codes: int
    shard: int
    slow: int
    many: int

    def part(self, layer: str) -> range:
        """Return a shard from the middle of a layer."""
        channels = self.generator.layout.layer(layer).channels
        size = min(self.shard, channels)
        return range((channels - size) // 2, (channels - size) // 2 + size)


def cases() -> Iterator[Case]:
    """Yield the networks of this run."""
    if os.environ.get("STYLECLIP_BENCH", "") != "config-f":
        generator, clip = load_generator(data.GENERATOR), load_clip(data.CLIP)
        yield _case("embedded world, 64 px", generator, clip, codes=8, shard=24, slow=3, many=100)
        return
    clip = load_clip("ViT-B/32", device="cuda")
    for resolution in (256, 1024):
        torch.manual_seed(0)
        generator = Generator(GeneratorConfig(resolution)).cuda().eval().requires_grad_(False)
        name = f"config-f, {resolution} px, generated weights, ViT-B/32"
        yield _case(name, generator, clip, codes=4, shard=24, slow=1, many=100)


def _case(name: str, generator: Generator, clip: ClipModel, **sizes: int) -> Case:
    settings = {"seed": 5, "truncation_psi": 1.0}
    batches = sample_styles(generator, sample_ids=range(2000), **settings)  # type: ignore[arg-type]
    spread = measure_statistics(styles for _, _, styles in batches).std
    std = StyleCode.from_flat(generator.layout, spread[None].float()).to(generator.device)
    ((_, _, sampled),) = sample_styles(generator, sample_ids=range(sizes["many"]), **settings)  # type: ignore[arg-type]
    return Case(name, generator, clip, std, sampled, **sizes)


def measure_relevance() -> Iterator[tuple[str, ...]]:
    """Yield a row per way of measuring: seconds of a whole table by the reference, ours, ratio, error."""
    for case in cases():
        whole = [_exact(case) for _ in range(ROUNDS)]
        ratio = statistics.median(slow / fast for slow, fast, _ in whole)
        slow, fast = (statistics.median(each[index] for each in whole) for index in (0, 1))
        difference = max(each[2] for each in whole)
        moves = f"{case.generator.layout.num_editable} channels x {case.codes} codes"
        yield (
            f"{case.name}: {moves}, exact",
            f"{slow:.0f} s",
            f"{fast:.0f} s",
            f"{ratio:.2f}",
            f"{difference:.1e}",
        )
        per_code = slow / case.codes * case.many
        seconds, images, cosine = _fast(case)
        name = f"fast mode, {case.many} codes ({images:.1f} of them moved)"
        ratio = per_code / seconds
        yield (
            name,
            f"{per_code:.0f} s",
            f"{seconds:.0f} s",
            f"{ratio:.2f}",
            f"mean cosine of rows {cosine:.4f}",
        )
        yield "instant mode, one prompt, 16 codes, 16 probes", "-", f"{_instant(case):.1f} s", "-", "-"


def measure_growth() -> Iterator[tuple[str, ...]]:
    """Yield a row per size of the work: channels, codes and resolution doubled in turn."""
    clip = load_clip(data.CLIP)
    for resolution, channels, codes in ((64, 12, 4), (64, 24, 4), (64, 24, 8), (128, 24, 8)):
        torch.manual_seed(0)
        config = GeneratorConfig(resolution, 64, 128, 0, 4, 2304 * resolution // 64, 96)
        generator = Generator(config).eval().requires_grad_(False)
        case = _case("", generator, clip, codes=codes, shard=channels, slow=0, many=codes)
        layer = "b8.conv1"
        std = case.std[layer][0]
        seconds, _ = _clock(lambda: _ours(case, case.sampled, layer, range(channels), std))  # noqa: B023
        name = f"{resolution} px, {channels} channels x {codes} codes"
        yield name, f"{seconds:.2f}", f"{seconds / channels / codes / 2 * 1000:.2f}"


def _clock(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    # the process's own time where it computes, wall time where a GPU does
    now = time.perf_counter if torch.cuda.is_available() else time.process_time
    started = now()
    result = work().cpu()  # waits for the GPU
    return now() - started, result


def _exact(case: Case) -> tuple[float, float, float]:
    """Return the reference loop's seconds for all channels, ours, and the largest difference of unit rows."""
    codes, slow, fast, difference = case.sampled.select(slice(0, case.codes)), 0.0, 0.0, 0.0
    for layer in case.generator.layout.editable:
        part, std = case.part(layer.name), case.std[layer.name][0]
        some = part[: case.slow]
        seconds, expected = _clock(lambda: _reference(case, codes, layer.name, some, std))  # noqa: B023
        slow += seconds / len(some) * layer.channels
        seconds, found = _clock(lambda: _ours(case, codes, layer.name, part, std))  # noqa: B023
        fast += seconds / len(part) * layer.channels
        unit = F.normalize(found[: len(some)], dim=1)
        difference = max(difference, (unit - F.normalize(expected, dim=1)).abs().max().item())
    return slow, fast, difference


def _ours(case: Case, codes: StyleCode, layer: str, channels: range, std: Tensor) -> Tensor:
    # the same rounding to 8 bits as the reference's images get
    settings = replace(EXACT, eight_bit=True)
    return measure_channels(
        case.generator, case.clip.embed_images, codes, layer=layer, channels=channels,
        mean=torch.zeros_like(std), std=std, settings=settings,
    ).direction  # fmt: skip


def _fast(case: Case) -> tuple[float, float, float]:
    """Return seconds for all channels, codes moved per channel, and the mean cosine of rows to exact ones."""
    generator, embed, codes = case.generator, case.clip.embed_images, case.sampled

    def differentiate() -> Tensor:
        basis = embedding_basis(generator, embed, codes, DERIVATIVES)
        return torch.cat(list(unit_derivatives(generator, embed, codes, basis))) @ basis

    total, expected = _clock(differentiate)
    images, cosines = 0.0, []
    for layer in generator.layout.editable:
        part, std = case.part(layer.name)[:6], case.std[layer.name][0]
        start = generator.layout.editable_slices[layer.name].start
        drawn = [0]

        def counted(image: Tensor, drawn: list[int] = drawn) -> Tensor:
            drawn[0] += len(image)
            return embed(image)

        def measure(settings: RelevanceSettings, known: Tensor | None) -> Tensor:
            return measure_channels(
                generator, counted, codes, layer=layer.name, channels=part, mean=torch.zeros_like(std),  # noqa: B023
                std=std, settings=settings, expected=known,  # noqa: B023
            ).direction  # fmt: skip

        known = expected[:, start + part.start : start + part.stop]
        seconds, fast = _clock(lambda: measure(FAST, known))  # noqa: B023
        total += seconds / len(part) * layer.channels
        images += drawn[0] / 2 / len(part) * layer.channels
        cosines.append(F.cosine_similarity(fast, measure(EXACT, None), dim=1).mean().item())
    return total, images / generator.layout.num_editable, statistics.mean(cosines)


def _instant(case: Case) -> float:
    text = case.clip.embed_text(["face with grey hair", "face"])
    direction = F.normalize(text[0] - text[1], dim=0)
    std = torch.cat([case.std[layer.name][0] for layer in case.generator.layout.editable])
    few = case.sampled.select(slice(0, 16))
    seconds, _ = _clock(
        lambda: instant_relevance(case.generator, case.clip.embed_images, few, direction, std, probes=16)
    )
    return seconds


@torch.no_grad()
def _reference(case: Case, codes: StyleCode, layer: str, channels: range, std: Tensor) -> Tensor:
    preprocess = _transform(case.clip.input_resolution)
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
    return torch.stack(rows)
