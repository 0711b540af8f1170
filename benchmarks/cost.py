"""What the hot paths ask of a machine, counted on tensors without memory: no figure here is a time measured.

The networks are config-f and ViT-B/32. Beside the counts stands the least time that a named device would take
at its maker's nominal rates, which no program reaches. A test holds the counts: work that grows is seen here
before it is felt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.counting import Cost, count_quiet
from benchmarks.gpu.vision import ImageClip, image_clip
from benchmarks.report import Options, Section
from styleclip_core.models.clip import ClipModel
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig, SynthesisState
from styleclip_core.moves import ChannelMoves
from styleclip_core.style_space import StyleCode

RESOLUTIONS, CODES = (256, 1024), 100
PRECISIONS = ("float32", "bfloat16")
BATCH = 16  # images at once, or half as many channels, each moved both ways


@dataclass(frozen=True, slots=True)
class Roof:
    """A device's nominal rates.

    Attributes:
        name: Which device.
        moved: Bytes a second.
        flops: Operations of matrix products a second, by precision.
    """

    name: str
    moved: float
    flops: dict[str, float]


# of the maker's data sheet, dense; float32 stands for what torch does by default, TF32 products
H200 = Roof("H200, nominal", 4.8e12, {"float32": 494e12, "bfloat16": 990e12})


@dataclass(frozen=True, slots=True)
class Path:
    """What one path asks for.

    Attributes:
        each: Of an image, or of a channel moved both ways.
        kernels: Of a whole batch.
    """

    each: Cost
    kernels: float


@lru_cache(maxsize=len(RESOLUTIONS) * len(PRECISIONS))
def paths(resolution: int, precision: str) -> dict[str, Path]:
    """Return what synthesis, CLIP and a channel of an exact table ask for.

    Args:
        resolution: Side of the generator's images in pixels.
        precision: ``"float32"`` or ``"bfloat16"``, of convolutions and products.
    """
    generator, clip = _networks(resolution)
    dtype = getattr(torch, precision)
    lower = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), lower:
        shapes = {layer.name: torch.empty(BATCH, layer.channels) for layer in generator.layout.layers}
        codes = StyleCode(generator.layout, shapes)
        images = torch.empty(BATCH, 3, resolution, resolution)

        drawn = count_quiet(partial(generator.synthesize, codes))
        embedded = count_quiet(partial(clip.embed_images, images))
        moved, shared = _exact(generator, codes.select(slice(0, 1)), dtype)
    return {
        "synthesis": Path(drawn * (1 / BATCH), drawn.kernels),
        "CLIP": Path(embedded * (1 / BATCH), embedded.kernels),
        "channel pair, exact": Path((moved + embedded) * (2 / BATCH), moved.kernels + embedded.kernels),
        "code of all layers, exact: what its channels share": Path(shared, shared.kernels),
    }


@lru_cache(maxsize=len(RESOLUTIONS))
def _networks(resolution: int) -> tuple[Generator, ClipModel]:
    # memory is promised and never touched: nothing is read of it but its shape
    with torch.device("meta"):
        generator, clip = Generator(GeneratorConfig(resolution)), ImageClip()
    empty = generator.to_empty(device="cpu").eval().requires_grad_(False)
    return empty, image_clip(clip.to_empty(device="cpu"), torch.device("cpu"))


def _exact(generator: Generator, code: StyleCode, dtype: torch.dtype) -> tuple[Cost, Cost]:
    """Return what a batch of moves asks for, the mean over all channels, and what a code's layers share."""
    moved = shared = below_all = Cost()
    names, state = [layer.name for layer in generator.layout.layers], generator.begin(1)
    for layer in generator.layout.editable:
        # the engine begins anew for every layer: what is below it adds up
        reached: list[SynthesisState] = []
        place = names.index(layer.name)
        below_all += count_quiet(lambda: reached.append(generator.advance(state, code, place)))  # noqa: B023
        (state,) = reached

        made: list[ChannelMoves] = []
        prepare = partial(ChannelMoves, generator, code, layer.name, state, dtype=dtype)
        shared += below_all + count_quiet(lambda: made.append(prepare()))  # noqa: B023

        # moves are drawn outside of autocast, as in the engine
        channels = torch.zeros(BATCH // 2, dtype=torch.int64)
        with torch.autocast("cpu", enabled=False):
            found = count_quiet(partial(made[0].images, channels, torch.empty(2, BATCH // 2)))
        moved += found * (layer.channels / generator.layout.num_editable)
    return moved, shared


def measure(options: Options) -> Iterator[Section]:
    """Yield a table of what paths ask for, and the least time of an exact table, on the named device."""
    del options  # published sizes, and no machine
    rows, figures = list[tuple[str, ...]](), dict[str, float]()
    for resolution in RESOLUTIONS:
        for precision in PRECISIONS:
            for name, path in paths(resolution, precision).items():
                rows.append((f"{resolution} px, {precision}: {name}", *_cells(path, precision)))
            figures[f"minutes of an exact table, {resolution} px, {precision}"] = _minutes(
                resolution, precision
            )

    header = (
        f"path, batches of {BATCH} images", "kernels a batch", "GFLOP", "GB moved",
        "ms of products alone", "ms of bytes alone",
    )  # fmt: skip
    yield Section(f"what an image or a pair asks for, and least times on {H200.name}", header, rows, figures)
    least = [(name, f"{value:.2f}") for name, value in figures.items()]
    yield Section(f"least time of {CODES} codes, {H200.name}", ("what", "minutes"), least)


def _cells(path: Path, precision: str) -> tuple[str, ...]:
    cost = path.each
    return (
        f"{path.kernels:.0f}", f"{cost.flops / 1e9:.2f}", f"{cost.moved / 1e9:.3f}",
        f"{cost.flops / H200.flops[precision] * 1e3:.3f}", f"{cost.moved / H200.moved * 1e3:.3f}",
    )  # fmt: skip


def _minutes(resolution: int, precision: str) -> float:
    """Return the least minutes of an exact table on the named device."""
    found = paths(resolution, precision)
    rates = H200.flops[precision], H200.moved
    channels = _networks(resolution)[0].layout.num_editable
    code = found["code of all layers, exact: what its channels share"].each.seconds(*rates)
    return CODES * (channels * found["channel pair, exact"].each.seconds(*rates) + code) / 60
