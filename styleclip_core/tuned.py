"""A generator that differs slightly from image to image: compact changes, and the file they are kept in.

A tuning changes every 3 x 3 convolution of one image's generator by a sum of R outer products, and its bias:

    W' = W + 0.02 rms(W) sum over r of  write_r (x) kernel_r (x) read_r,      b' = b + 0.1 bias

with write_r one number per output channel, read_r one per input channel, and kernel_r 3 x 3. All are
kept as float16 and near 1, whatever the size of the generator. Per layer these are R (out + in + 9) + out
numbers in place of 9 out in.

Shapes: B images, K numbers of a tuning, R rank. This module finds no tuning; see ``pivotal``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from styleclip_core.models.network import is_finite
from styleclip_core.models.stylegan2 import Generator, LayerChange, Noise
from styleclip_core.per_image import AnyGenerator as AnyGenerator
from styleclip_core.per_image import PerImageGenerator, damaged, of_another, read_own, write_own
from styleclip_core.settings.pivotal import MAX_RANK
from styleclip_core.style_space import StyleCode

_WHAT, _FORMAT, _TENSOR = "tuning of a generator", "styleclip-tuning-1", "values"
_WEIGHT_GAIN, _BIAS_GAIN = 0.02, 0.1


@dataclass(frozen=True, slots=True)
class TunedLayer:
    """Sizes of a convolution that a tuning changes: its name and channels, and the side of its kernel."""

    name: str
    inputs: int
    outputs: int
    kernel: int

    def parts(self, rank: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of one image's ``LayerChange``, by name."""
        return {
            "read": (rank, self.inputs),
            "kernel": (rank, self.kernel, self.kernel),
            "write": (self.outputs, rank),
            "bias": (self.outputs,),
        }

    def size(self, rank: int) -> int:
        """Return how many numbers that is."""
        return rank * (self.inputs + self.kernel**2 + self.outputs) + self.outputs


@dataclass(frozen=True)
class TuningForm:
    """What tunings of one generator and rank have in common.

    Attributes:
        generator: Content hash of the generator's weights file.
        rank: R.
        layers: The convolutions, in the order of their numbers.
    """

    generator: str
    rank: int
    layers: tuple[TunedLayer, ...]

    @classmethod
    def of(cls, generator: Generator, rank: int) -> TuningForm:
        """Return the form of a generator's tunings.

        Raises:
            ValueError: If the rank is not from 1 to 64.
        """
        if not 1 <= rank <= MAX_RANK:
            raise ValueError(f"the rank of a tuning is a number from 1 to {MAX_RANK}, got {rank}")

        layers = []
        for layer in generator.layout.editable:
            outputs, inputs, side, _ = generator.modulated(layer).weight.shape
            layers.append(TunedLayer(layer.name, inputs, outputs, side))

        return cls(generator.fingerprint, rank, tuple(layers))

    @cached_property
    def size(self) -> int:
        """Return K, how many numbers a tuning has."""
        return sum(layer.size(self.rank) for layer in self.layers)

    def split(self, values: Tensor) -> dict[str, dict[str, Tensor]]:
        """Return the numbers ``[B, K]`` by layer and part; views."""
        found: dict[str, dict[str, Tensor]] = {}
        start = 0
        # views, so that an optimizer of the numbers moves the changes of the layers
        for layer in self.layers:
            found[layer.name] = {}
            for name, shape in layer.parts(self.rank).items():
                count = torch.Size(shape).numel()
                found[layer.name][name] = values[:, start : start + count].unflatten(1, shape)
                start += count

        return found

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, for a file's header."""
        layers = {layer.name: [layer.inputs, layer.outputs, layer.kernel] for layer in self.layers}
        return {"format": _FORMAT, "generator": self.generator, "rank": self.rank, "layers": layers}


@dataclass(frozen=True, slots=True, eq=False)
class Tuning:
    """The change of one image's generator.

    Attributes:
        form: Whose, and of which rank.
        values: Its numbers, ``[K]`` float16, finite.
    """

    form: TuningForm
    values: Tensor

    def to_bytes(self) -> bytes:
        """Return the content of a safetensors file."""
        return write_own(self.form.to_dict(), {_TENSOR: self.values})

    @classmethod
    def from_bytes(cls, content: bytes, generator: Generator) -> Tuning:
        """Read what ``to_bytes`` wrote, for the generator it changes.

        Raises:
            CheckpointError: If the content is damaged, no tuning, or holds numbers that are not finite.
            LayoutMismatchError: If it is a tuning of another generator.
        """
        header, tensors = read_own(content, generator, what=_WHAT, expected=_FORMAT)
        rank = header.get("rank")
        if not isinstance(rank, int) or not 1 <= rank <= MAX_RANK:
            raise damaged(_WHAT, f"its rank is {rank!r:.40}")

        form = TuningForm.of(generator, rank)
        values = tensors.get(_TENSOR)
        if header != form.to_dict() or values is None or len(tensors) != 1 or values.shape != (form.size,):
            raise damaged(_WHAT, "its sizes are not those of its generator's layers")

        if values.dtype != torch.float16 or not is_finite(values.float()):
            raise damaged(_WHAT, f"its numbers are {values.dtype} or not finite")
        return cls(form, values)


class TunedGenerator(PerImageGenerator):
    """A generator that draws image b of a batch with tuning b; in everything else it is the plain one.

    An image without a tuning is drawn as by the generator itself, bit for bit.
    """

    def __init__(self, generator: Generator, tunings: Sequence[Tuning | None]) -> None:
        """Prepare one batch.

        Args:
            generator: The one that the tunings change; left as it is.
            tunings: One for each image, or None for an image that has none.

        Raises:
            LayoutMismatchError: If a tuning is of another generator.
        """
        rank = max((tuning.form.rank for tuning in tunings if tuning), default=1)
        form = TuningForm.of(generator, rank)

        # all images of a batch get the highest rank among them; products of zeros add nothing
        rows = []
        for tuning in tunings:
            if tuning and tuning.form != TuningForm.of(generator, tuning.form.rank):
                raise of_another(_WHAT, tuning.form.generator, generator)
            rows.append(_widened(tuning, rank) if tuning else torch.zeros(form.size, dtype=torch.float16))

        numbers = torch.stack(rows) if rows else torch.zeros(0, form.size)
        weight = generator.synthesis.block(4).const

        super().__init__(generator, len(rows))
        self._changes = layer_changes(generator, form, numbers.to(weight))

    def synthesize(self, styles: StyleCode, *, noise: Noise = "const") -> Tensor:
        """Draw image b of the batch with tuning b; see ``Generator.synthesize``.

        Raises:
            ValueError: If there are not as many codes as tunings.
        """
        self._expect(styles, "tunings")
        return self.plain.synthesize(styles, noise=noise, changes=self._changes)

    def take(self, index: Tensor) -> Self:
        """Return the generator of some images of the batch, ``[n]`` int64; one may come several times."""
        # past the constructor: the changes are made already, and picking rows of them is cheap
        taken = object.__new__(type(self))
        taken.plain, taken._size = self.plain, len(index)
        taken._changes = take_changes(self._changes, index)
        return taken


def layer_changes(generator: Generator, form: TuningForm, values: Tensor) -> dict[str, LayerChange]:
    """Return the changes of weights and biases that numbers ``[B, K]`` stand for; differentiable."""
    # in units of the layer's own weights, so that one learning rate and float16 suit all layers
    changes = {}
    for name, parts in form.split(values).items():
        weight = generator.modulated(generator.layout.layer(name)).weight
        gain = _WEIGHT_GAIN * weight.square().mean().sqrt()
        changes[name] = LayerChange(
            parts["read"], parts["kernel"], gain * parts["write"], _BIAS_GAIN * parts["bias"]
        )

    return changes


def take_changes(changes: Mapping[str, LayerChange], index: Tensor) -> dict[str, LayerChange]:
    """Return the changes of some images, ``[n]`` int64."""
    return {
        name: LayerChange(each.read[index], each.kernel[index], each.write[index], each.bias[index])
        for name, each in changes.items()
    }


def _widened(tuning: Tuning, rank: int) -> Tensor:
    """Return the numbers of a tuning as one of a higher rank, whose other products are zero."""
    extra = rank - tuning.form.rank
    rows = []
    # products are padded with zeros where a rank is the axis: the first of read and kernel, the last of write
    for parts in tuning.form.split(tuning.values[None].cpu()).values():
        rows += [
            F.pad(parts["read"], (0, 0, 0, extra)),
            F.pad(parts["kernel"], (0, 0, 0, 0, 0, extra)),
            F.pad(parts["write"], (0, extra)),
            parts["bias"],
        ]

    return torch.cat([row.flatten() for row in rows])
