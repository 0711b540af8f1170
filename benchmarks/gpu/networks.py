"""The networks that a GPU is measured with: the published sizes, weights made from names and shapes.

Nothing is read from outside, and every machine makes the same weights. What edits mean is not to be seen on
them; what work costs, and whether a device computes what a CPU does, is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.timing import Timing
from benchmarks.gpu.vision import ImageClip, TowerSize, image_clip
from benchmarks.networks import Case, case_of
from styleclip_core.models.clip import ClipModel
from styleclip_core.models.identity import IdentityNetwork
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig, fir_kernel
from styleclip_core.sampling import sample_z
from tests.golden.fill import fill_state

Precision = Literal["float32", "tf32", "bfloat16", "float16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_SEED = 11


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    Attributes:
        resolutions: Sides of the generators' images in pixels.
        tower: Sizes of CLIP's image tower.
        batches: Batch sizes of synthesis.
        clip_batches: Batch sizes of CLIP.
        product_side: Side of the matrices whose product is the machine's limit; None for the usual one.
        copy_numbers: Numbers in the copy that is the machine's other limit; None for the usual one.
        statistics: Style codes behind means and deviations.
        rounds: Timings behind every mean and its standard error.
        settle: Seconds that a timing repeats its work for, at least.
        moves: Images at once when single channels are moved, by resolution.
        fast_codes: Style codes whose derivatives are measured.
        fast_channels: Channels of every layer that are moved in fast mode.
        loop_layers: Layers that the published loop is measured on.
        loop_codes: Codes of each of its channels.
        pairs: Pairs that are optimized at once.
        steps: Steps behind each timing of a descent.
        edits: Edited images that are encoded, by resolution.
        identity: Whether the mapper's loss has its identity term, of IR-SE50.
    """

    resolutions: tuple[int, ...] = (256, 1024)
    tower: TowerSize = field(default_factory=TowerSize)
    batches: tuple[int, ...] = (1, 8, 32)
    clip_batches: tuple[int, ...] = (1, 32, 256)
    product_side: int | None = None
    copy_numbers: int | None = None
    statistics: int = 2_000
    rounds: int = 3
    settle: float = 0.2
    moves: tuple[int, ...] = (128, 32)  # features of fewer than 2^31 numbers, which kernels can index
    fast_codes: int = 8
    fast_channels: int = 16
    loop_layers: int = 3
    loop_codes: int = 6
    pairs: int = 16
    steps: int = 2
    edits: tuple[int, ...] = (256, 32)
    identity: bool = True


# the same paths in seconds on a CPU: a rehearsal, whose figures say nothing of a GPU
SMALL = Sizes(
    resolutions=(16, 64), tower=TowerSize(32, 16, 64, 1, 1, 16), batches=(1, 2), clip_batches=(1, 2),
    product_side=64, copy_numbers=2**12, statistics=64, rounds=2, settle=0.0, moves=(4, 4), fast_codes=2,
    fast_channels=2, loop_layers=2, loop_codes=2, pairs=2, steps=1, edits=(2, 2), identity=False,
)  # fmt: skip


class Bench:
    """What every part is measured with; networks are made when a part asks for them.

    Attributes:
        device: What is measured.
        small: Whether this is a rehearsal.
        sizes: How much is measured.
        rates: The machine's limits, once they are measured: bytes a second of ``copy``, and for each
            precision operations a second.
        tables: Seconds of exact tables, once they are measured, by resolution and precision.
    """

    def __init__(self, device: torch.device, *, small: bool) -> None:
        self.device, self.small, self.sizes = device, small, SMALL if small else Sizes()
        self.rates: dict[str, float] = {}
        self.tables: dict[tuple[int, str], Timing] = {}
        self._states: dict[str, dict[str, Tensor]] = {}
        self._cases: dict[int, Case] = {}

    def config(self, resolution: int) -> GeneratorConfig:
        """Return the architecture of a generator: config-f, or a small one."""
        if not self.small:
            return GeneratorConfig(resolution)
        return GeneratorConfig(resolution, 8, 8, mapping_layers=2, channel_base=64 * 4, channel_max=6)

    def generator(self, resolution: int, device: torch.device | None = None) -> Generator:
        """Return a generator with weights made from nothing, on the device that is measured or another."""
        with torch.device("meta"):
            shell = Generator(self.config(resolution))
        kernels = {name: fir_kernel() for name in shell.state_dict() if "resample_filter" in name}
        state = self._state(f"generator of {resolution} px", shell, equalized=True) | kernels
        return Generator.from_state(self.config(resolution), state).to(device or self.device)

    def clip(self, device: torch.device | None = None, *, halved: bool | None = None) -> ClipModel:
        """Return a CLIP; in half precision on a GPU, as it is loaded, unless ``halved`` says otherwise."""
        device = device or self.device
        with torch.device("meta"):
            shell = ImageClip(self.sizes.tower)
        network = ImageClip(self.sizes.tower)
        network.load_state_dict(self._state("CLIP", shell, equalized=False))

        # a rehearsal goes the way of a GPU
        usual = self.small or device.type == "cuda"
        if usual if halved is None else halved:
            network.halve()
        return image_clip(network, device)

    def identity(self) -> IdentityNetwork:
        """Return IR-SE50 on the device."""
        with torch.device("meta"):
            shell = IdentityNetwork()
        network = IdentityNetwork()
        network.load_state_dict(self._state("IR-SE50", shell, equalized=False))
        return network.eval().requires_grad_(False).to(self.device)

    def case(self, resolution: int) -> Case:
        """Return generator and CLIP on the device, with a hundred style codes and their statistics."""
        if resolution not in self._cases:
            name = f"{resolution} px"
            made = self.generator(resolution), self.clip()
            self._cases[resolution] = case_of(name, *made, 100, statistics_of=self.sizes.statistics)
        return self._cases[resolution]

    def codes(self, count: int, resolution: int) -> Tensor:
        """Return w_plus of the generator of a resolution, ``[count, L, W]``, on the device."""
        generator = self.case(resolution).generator
        with torch.no_grad():
            return generator.map(sample_z(_SEED, range(count), generator.config.z_dim).to(self.device))

    def images(self, count: int, side: int) -> Tensor:
        """Return images of the generator of that side, ``[count, 3, side, side]``, on the device."""
        case = self.case(side)
        index = torch.arange(count, device=self.device) % case.sampled.batch_size
        with torch.no_grad():
            drawn = [case.generator.synthesize(case.sampled.select(some)) for some in index.split(16)]
        return torch.cat(drawn)

    def texts(self, count: int, width: int) -> Tensor:
        """Return unit rows in place of texts' embeddings, ``[count, width]``, on the device."""
        drawn = torch.randn(count, width, generator=torch.Generator().manual_seed(_SEED))
        return F.normalize(drawn, dim=1).to(self.device)

    def _state(self, name: str, shell: nn.Module, *, equalized: bool) -> dict[str, Tensor]:
        # of one name, the same weights for the CPU and the device: they take seconds to draw
        if name not in self._states:
            shapes = {key: tuple(each.shape) for key, each in shell.state_dict().items()}
            made = fill_state(shapes, equalized=equalized, keep=("resample_filter", "logit_scale"))
            tensors = {key: torch.from_numpy(np.asarray(value)) for key, value in made.items()}
            if "logit_scale" in shapes:
                tensors["logit_scale"] = torch.tensor(100.0).log()
            self._states[name] = tensors
        return dict(self._states[name])


@contextlib.contextmanager
def computing(device: torch.device, precision: Precision) -> Iterator[None]:
    """Compute in a precision: exact float32, TF32 products, or 16 bits where autocast puts them."""
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # the stubs are older
    switches = torch.backends.cuda.matmul, convolutions
    before = [each.fp32_precision for each in switches]
    dtype = getattr(torch, precision) if precision in ("bfloat16", "float16") else None
    try:
        for each in switches:
            each.fp32_precision = "ieee" if precision == "float32" else "tf32"
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            yield
    finally:
        for each, value in zip(switches, before, strict=True):
            each.fp32_precision = value
