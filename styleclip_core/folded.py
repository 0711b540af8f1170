"""Layers of a generator with one style in their weights: plain convolutions, for many images of one code.

Style, demodulation and the gain of leaky ReLU go into the weights, noise and bias into one tensor that is
added (Karras et al. 2020, equations 1 and 3). What is left of a layer are pure functions of tensors, which
``torch.compile`` can make kernels of: weights are among their inputs, so that what was compiled for one code
serves all. A function that ends in ``_fused`` is the one before it, written for a compiler.

Shapes: B images, C channels in, O out, H V pixels of the output. Features are channels-last in memory.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from styleclip_core import winograd
from styleclip_core.compiling import Compiled
from styleclip_core.models.stylegan2 import LRELU_GAIN, ModulatedConv, SynthesisLayer, ToRGBLayer
from styleclip_core.style_space import StyleLayer

_SLOPE = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class FoldedLayer:
    """A layer with one style in its weights.

    Attributes:
        name: Of the style layer.
        weight: As ``F.conv2d`` or, if ``up``, ``F.conv_transpose2d`` takes it.
        shift: Bias, with the noise where there is some, to be added.
        up: Whether it doubles the resolution.
        colour: Whether it is a toRGB layer.
        clamp: Bound on its output.
        taps: Filter of the up-sampling, ``[4, 4]`` with sum 4; flipped, as a convolution reads it, but for
            toRGB.
        transformed: The weight as ``winograd`` takes it, where that is faster.
    """

    name: str
    weight: Tensor
    shift: Tensor
    up: bool
    colour: bool
    clamp: float | None
    taps: Tensor
    transformed: Tensor | None = None

    def forward(self, x: Tensor, compiled: Compiled | None = None) -> Tensor:
        """Map features ``[B, C, H, V]``, or of half that side if ``up``, to ``[B, O, H, V]``."""
        if self.up:
            given = self.weight, self.shift, self.taps, self.clamp
            if compiled:
                return compiled(convolve_up_fused, convolve_up, self.name, [x], *given)
            return convolve_up(x, *given)
        if compiled:
            return compiled(convolve, convolve, self.name, [x], self.weight, self.shift, self.clamp)
        if self.transformed is not None:
            return _activated(winograd.convolve(x, self.transformed), self.shift, self.clamp)
        return convolve(x, self.weight, self.shift, self.clamp)

    def paint(self, x: Tensor, image: Tensor | None, compiled: Compiled | None = None) -> Tensor:
        """Return the sum of colours ``[B, 3, H, V]`` float32, with what ``image`` holds at half the size."""
        if compiled:
            if image is None:
                return compiled(colour, colour, self.name, [x], self.weight, self.shift, self.clamp)
            given = self.weight, self.shift, self.taps, self.clamp
            return compiled(colour_over_fused, colour_over, self.name, [x, image], *given)
        if image is None:
            return colour(x, self.weight, self.shift, self.clamp)
        return colour_over(x, image, self.weight, self.shift, self.taps, self.clamp)


def fold(
    module: ModulatedConv, layer: StyleLayer, style: Tensor, taps: Tensor, dtype: torch.dtype
) -> FoldedLayer:
    """Put a style into the weights of a layer.

    Args:
        module: The layer.
        layer: Its place in the layout.
        style: Its style, ``[C]``.
        taps: Filter of the up-sampling, as ``FoldedLayer`` has it.
        dtype: Number format of the weights; they are computed in float32 and rounded once.

    Raises:
        TypeError: If the layer is neither a convolution nor toRGB.
    """
    scaled = module.weight.float() * style.float()[:, None, None]
    if isinstance(module, ToRGBLayer):
        shift = module.bias.float()[:, None, None]
        weight = (scaled * module.weight_gain).to(dtype)
        return FoldedLayer(layer.name, weight, shift, False, True, module.conv_clamp, taps)
    if not isinstance(module, SynthesisLayer):
        raise TypeError(f"{layer.name} is a {type(module).__name__}")

    factor = module.demodulation(style[None])[0] * LRELU_GAIN
    weight = scaled * factor[:, None, None, None]
    if module.up:
        weight = weight.transpose(0, 1)

    noise = (module.noise_const * module.noise_strength).float()
    shift = (module.bias.float()[:, None, None] + noise) * LRELU_GAIN
    shift = shift[None].to(dtype).contiguous(memory_format=torch.channels_last)
    clamp = None if module.conv_clamp is None else module.conv_clamp * LRELU_GAIN
    weight = weight.to(dtype)
    faster = not module.up and winograd.pays(weight, *shift.shape[2:])
    transformed = winograd.transform(weight) if faster else None
    return FoldedLayer(layer.name, weight, shift, module.up, False, clamp, taps, transformed)


def convolve(x: Tensor, weight: Tensor, shift: Tensor, clamp: float | None) -> Tensor:
    """Convolve features ``[B, C, H, V]`` to ``[B, O, H, V]``."""
    return _activated(F.conv2d(x, weight, padding=1), shift, clamp)


def convolve_up(x: Tensor, weight: Tensor, shift: Tensor, taps: Tensor, clamp: float | None) -> Tensor:
    """Convolve features ``[B, C, H/2, V/2]`` to ``[B, O, H, V]``: transposed, then low-passed."""
    x = F.conv_transpose2d(x, weight, stride=2)
    channels = x.shape[1]
    x = F.conv2d(x, taps.to(x.dtype).expand(channels, 1, 4, 4), padding=1, groups=channels)
    return _activated(x, shift, clamp)


def convolve_up_fused(x: Tensor, weight: Tensor, shift: Tensor, taps: Tensor, clamp: float | None) -> Tensor:
    """Return what ``convolve_up`` does, so that a compiler makes one kernel of all but the products."""
    x = F.conv_transpose2d(x, weight, stride=2)
    return _activated(_filtered(F.pad(x, (1, 1, 1, 1)), taps), shift, clamp).to(x.dtype)


def colour(x: Tensor, weight: Tensor, shift: Tensor, clamp: float | None) -> Tensor:
    """Return the colours of features ``[B, C, H, V]``, ``[B, 3, H, V]`` float32."""
    rgb = F.conv2d(x, weight).float() + shift
    return rgb if clamp is None else rgb.clamp_(-clamp, clamp)


def colour_over(
    x: Tensor, image: Tensor, weight: Tensor, shift: Tensor, taps: Tensor, clamp: float | None
) -> Tensor:
    """Add colours to an image at half the size, ``[B, 3, H/2, V/2]``."""
    return colour(x, weight, shift, clamp).add_(upsample(image, taps))


def colour_over_fused(
    x: Tensor, image: Tensor, weight: Tensor, shift: Tensor, taps: Tensor, clamp: float | None
) -> Tensor:
    """Return what ``colour_over`` does, for a compiler."""
    return colour(x, weight, shift, clamp) + upsample_fused(image, taps)


def upsample(image: Tensor, taps: Tensor) -> Tensor:
    """Double the size of an image ``[B, 3, H/2, V/2]``."""
    channels = image.shape[1]
    return F.conv_transpose2d(image, taps.expand(channels, 1, 4, 4), stride=2, padding=1, groups=channels)


def upsample_fused(image: Tensor, taps: Tensor) -> Tensor:
    """Return what ``upsample`` does, as one kernel that other work on its output can join."""
    batch, channels, height, width = image.shape
    spread = F.pad(image[:, :, :, None, :, None], (0, 1, 0, 0, 0, 1))  # zeros between the pixels
    spread = spread.reshape(batch, channels, 2 * height, 2 * width)
    return _filtered(F.pad(spread, (2, 1, 2, 1)), taps.flip(0, 1))


def _filtered(x: Tensor, taps: Tensor) -> Tensor:
    """Filter ``[B, C, H + 3, V + 3]`` to ``[B, C, H, V]`` float32: sixteen shifted products, in registers."""
    height, width = x.shape[2] - 3, x.shape[3] - 3
    moved = [x[:, :, i : i + height, j : j + width] * taps[i, j].float() for i in range(4) for j in range(4)]
    return functools.reduce(torch.add, moved)


def _activated(x: Tensor, shift: Tensor, clamp: float | None) -> Tensor:
    x = F.leaky_relu_(x.add_(shift), _SLOPE)
    return x if clamp is None else x.clamp_(-clamp, clamp)
