"""What the hot paths ask of a machine, counted on tensors without memory: no figure here is a time measured.

The networks are config-f and ViT-B/32, the latter in 16 bits where a GPU's whole table is counted. Beside the
counts stands the least time that a named device would take at its maker's nominal rates, which no program
reaches. A test holds the counts: work that grows is seen here before it is felt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache, partial
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.counting import Cost, count_compiled, count_quiet
from benchmarks.gpu.vision import ImageClip, image_clip
from benchmarks.report import Options, Section
from styleclip_core import winograd
from styleclip_core.batches import Batches
from styleclip_core.compiling import Compiled
from styleclip_core.models.clip import ClipModel
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig, SynthesisState
from styleclip_core.moves import ChannelMoves, bytes_per_move
from styleclip_core.relevance import Accumulator, fastest_batch
from styleclip_core.style_space import StyleCode, StyleLayer

RESOLUTIONS, CODES = (256, 1024), 100
PRECISIONS = ("float32", "bfloat16")
BATCH = 16  # images at once, or half as many channels, each moved both ways
# of an exact table before it was cut by work and compiled, at 1024 px and in float32: its kernels, in shards
# of 24 channels and batches of 32 images, and the bytes of an image behind the moved layer
KERNELS_BEFORE, BYTES_BEFORE = 29.9e6, 3.751e9


@dataclass(frozen=True, slots=True)
class Roof:
    """A device's nominal rates.

    Attributes:
        name: Which device.
        moved: Bytes a second.
        flops: Operations of matrix products a second, by precision.
        memory: Bytes.
    """

    name: str
    moved: float
    flops: dict[str, float]
    memory: float


# of the maker's data sheet, dense; float32 stands for what torch does by default, TF32 products
H200 = Roof("H200, nominal", 4.8e12, {"float32": 494e12, "bfloat16": 990e12}, 141e9)


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
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), lower, _libraries():
        codes = _codes(generator, BATCH)
        images = torch.empty(BATCH, 3, resolution, resolution)

        drawn = count_quiet(partial(generator.synthesize, codes))
        embedded = count_quiet(partial(clip.embed_images, images))
        # the engine casts by itself, the tail alone
        with torch.autocast("cpu", enabled=False):
            looked = count_quiet(partial(clip.embed_images, images))
            moved, shared = _exact(generator, codes.select(slice(0, 1)), dtype)
    return {
        "synthesis": Path(drawn * (1 / BATCH), drawn.kernels),
        "CLIP": Path(embedded * (1 / BATCH), embedded.kernels),
        "channel pair, exact": Path((moved + looked) * (2 / BATCH), moved.kernels + looked.kernels),
        "code of all layers, exact: what its channels share": Path(shared, shared.kernels),
    }


@lru_cache(maxsize=len(RESOLUTIONS))
def _networks(resolution: int) -> tuple[Generator, ClipModel]:
    # memory is promised and never touched: nothing is read of it but its shape
    with torch.device("meta"):
        generator, clip = Generator(GeneratorConfig(resolution)), ImageClip()
    empty = generator.to_empty(device="cpu").eval().requires_grad_(False)
    return empty, image_clip(clip.to_empty(device="cpu"), torch.device("cpu"))


def _libraries() -> AbstractContextManager[object]:
    """Leave the way to convolve to libraries while counting, as on a GPU, though tensors lie on a CPU."""
    return patch.object(winograd, "pays", return_value=False)


class _Counting(Compiled):
    """Counts what is to be compiled, and runs it as it is written.

    Attributes:
        found: The sum.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = Cost()

    def __call__(
        self,
        function: Callable[..., Tensor],
        plain: Callable[..., Tensor],
        name: str,
        batches: Sequence[Tensor],
        *others: Tensor | float | None,
    ) -> Tensor:
        """Count a layer, once for all of its name."""
        key = (function.__name__, name, batches[0].dtype, batches[0].shape)
        if key not in _LAYERS:
            _LAYERS[key] = count_compiled(function, *batches, *others)
        self.found += _LAYERS[key]
        return plain(*batches, *others)


_LAYERS: dict[tuple[object, ...], Cost] = {}


@lru_cache(maxsize=len(PRECISIONS))
def tail_compiled(resolution: int, precision: str) -> Cost:
    """Return the kernels of a batch and the bytes of an image behind the moved layer, compiled.

    The mean over all channels, in batches of ``BATCH`` images.
    """
    generator, _ = _networks(resolution)
    names, total = [layer.name for layer in generator.layout.layers], Cost()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), _libraries():
        code = _codes(generator, 1)
        for layer in generator.layout.editable:
            state = generator.advance(generator.begin(1), code, names.index(layer.name))
            counting = _Counting()
            moves = ChannelMoves(
                generator, code, layer.name, state, dtype=getattr(torch, precision), compiled=counting
            )
            moves.images(torch.zeros(BATCH // 2, dtype=torch.int64), torch.empty(2, BATCH // 2))
            share = layer.channels / generator.layout.num_editable
            total += Cost(0, counting.found.moved / BATCH, counting.found.kernels) * share
    return total


@lru_cache(maxsize=len(PRECISIONS))
def table_kernels(resolution: int, precision: str) -> float:
    """Return the kernels of a whole exact table, uncompiled, at the default cut of a GPU: layer by layer.

    Batches are as large as the named device's memory allows, and CLIP is in 16 bits, as on any GPU.
    """
    generator, _ = _networks(resolution)
    with torch.device("meta"):
        clip = ImageClip()
        clip.halve()
    half = image_clip(clip.to_empty(device="cpu"), torch.device("cpu"))

    names, dtype, total = [layer.name for layer in generator.layout.layers], getattr(torch, precision), 0.0
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), _libraries():
        code, images = _codes(generator, 1), torch.empty(BATCH, 3, resolution, resolution)
        embedded = count_quiet(partial(half.embed_whole, images)).kernels
        for layer in generator.layout.editable:
            place = names.index(layer.name)
            reached: list[SynthesisState] = []
            made: list[ChannelMoves] = []
            below = partial(generator.advance, generator.begin(1), code, place)
            total += count_quiet(lambda: reached.append(below())).kernels  # noqa: B023
            prepare = partial(ChannelMoves, generator, code, layer.name, reached[0], dtype=dtype)
            total += count_quiet(lambda: made.append(prepare())).kernels  # noqa: B023

            channels = torch.zeros(BATCH // 2, dtype=torch.int64)
            sums, ends = Accumulator(layer.channels, torch.device("cpu")), torch.empty(2, BATCH // 2, 512)
            batch = count_quiet(partial(made[0].images, channels, torch.empty(2, BATCH // 2))).kernels
            batch += embedded + count_quiet(partial(sums.add, channels, *ends)).kernels
            total += batch * _batches(generator, layer, dtype)
    return CODES * total


def _batches(generator: Generator, layer: StyleLayer, dtype: torch.dtype) -> int:
    """Return in how many batches the channels of a layer are moved on the named device."""
    size = 2 * bytes_per_move(generator, layer.name, dtype)
    most = Batches(fastest_batch(torch.device("cuda")), free=int(H200.memory), bytes_per_item=size).size
    return -(-layer.channels // most)


def _codes(generator: Generator, count: int) -> StyleCode:
    layers = generator.layout.layers
    return StyleCode(generator.layout, {each.name: torch.empty(count, each.channels) for each in layers})


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

        channels = torch.zeros(BATCH // 2, dtype=torch.int64)
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

    rows, figures = [], {}
    for precision in PRECISIONS:
        kernels, tail = table_kernels(1024, precision), tail_compiled(1024, precision)
        rows.append((
            precision, f"{kernels / 1e6:.2f}", f"{kernels / KERNELS_BEFORE:.2f}", f"{tail.moved / 1e9:.3f}",
            f"{tail.moved / BYTES_BEFORE:.2f}", f"{tail.kernels:.0f}",
        ))  # fmt: skip
        figures[f"kernels of an exact table, {precision}"] = kernels
        figures[f"bytes of an image behind the moved layer, compiled, {precision}"] = tail.moved
    header = (
        "1024 px", f"million kernels of {CODES} codes", "of those before", "GB an image, compiled",
        "of float32 before", "compiled kernels a batch",
    )  # fmt: skip
    yield Section(f"an exact table by default, {H200.memory / 1e9:.0f} GB of memory", header, rows, figures)


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
