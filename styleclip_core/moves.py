"""One style code drawn with single channels of one layer moved: what a relevance table is made of.

All images of a batch share their style code but for one channel of one layer, and three things follow.
The network below the layer runs once for all of them. The layer itself is updated instead of run: a
style channel scales one input channel, so ``conv(x s)`` changes by ``(s'_c - s_c) conv(x_c, w_c)``, nine
products a pixel instead of nine times C, and the demodulation by one term of its sum. Above the layer,
style, demodulation and the gain of leaky ReLU go into the weights once per code, which leaves plain
convolutions. The images are those of ``Generator.synthesize`` to float32 rounding.

Shapes: C channels of the moved layer, O its outputs, P its output pixels, K moves of a channel, n channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from styleclip_core.models.stylegan2 import (
    LRELU_GAIN,
    Generator,
    ModulatedConv,
    SynthesisLayer,
    SynthesisState,
    ToRGBLayer,
    fir_blur,
)
from styleclip_core.style_space import StyleCode, StyleLayer


def bytes_per_move(generator: Generator, layer: str, dtype: torch.dtype) -> int:
    """Return about how much memory drawing one moved image takes: six of its largest features."""
    resolution = generator.layout.layer(layer).resolution
    wide = generator.config.const_width / 4
    largest = max(
        generator.config.channels(side) * side**2 * wide
        for side in generator.config.resolutions
        if side >= resolution
    )
    return int(6 * largest * dtype.itemsize)


class ChannelMoves:
    """Draws one style code with single channels of one layer set to other values."""

    def __init__(
        self,
        generator: Generator,
        code: StyleCode,
        layer: str,
        below: SynthesisState,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Prepare what all moves share.

        Args:
            generator: Draws the images, with its stored noise.
            code: One style code.
            layer: Name of an editable layer.
            below: Its synthesis, stopped before the layer.
            dtype: Number format of the convolutions above the layer.
        """
        self._generator, self._image, self._dtype = generator, below.image, dtype
        layers = generator.layout.layers
        self._moved = _MovedLayer(_convolution(generator, layers[below.next_layer]), code[layer][0], below)
        self._tail = [
            _fold(generator.modulated(each), each, code[each.name][0], dtype)
            for each in layers[below.next_layer + 1 :]
        ]

    def images(self, channels: Tensor, values: Tensor) -> Tensor:
        """Draw every move.

        Args:
            channels: Channels of the layer, ``[n]``.
            values: What they are set to, ``[K, n]``.

        Returns:
            ``[K n, 3, H, V]`` float32, the first move of all channels first.
        """
        # the moved layer is float32; above it all is of one type, toRGB too, which may come next
        x, image = self._moved.features(channels, values).to(self._dtype), self._image
        for layer in self._tail:
            if layer.colour:
                rgb = F.conv2d(x, layer.weight).float() + layer.shift
                if layer.clamp is not None:
                    rgb = rgb.clamp_(-layer.clamp, layer.clamp)
                image = rgb if image is None else rgb.add_(self._generator.upsample(image, layer.resolution))
            else:
                x = layer.forward(x)
        if image is None:
            raise ValueError("a generator without toRGB layers draws nothing")
        return image


@dataclass(frozen=True, slots=True, eq=False)
class _Folded:
    """A layer with one style in its weights.

    Attributes:
        weight: As ``F.conv2d`` or, if ``up``, ``F.conv_transpose2d`` takes it.
        shift: Bias, with the noise where there is some, to be added.
        up: Whether it doubles the resolution.
        colour: Whether it is a toRGB layer.
        clamp: Bound on its output.
        taps: Filter of the up-sampling.
        resolution: Side of its output in pixels.
    """

    weight: Tensor
    shift: Tensor
    up: bool
    colour: bool
    clamp: float | None
    taps: Tensor | None
    resolution: int

    def forward(self, x: Tensor) -> Tensor:
        """Map features to features."""
        if self.up and self.taps is not None:
            x = fir_blur(F.conv_transpose2d(x, self.weight, stride=2), self.taps)
        else:
            x = F.conv2d(x, self.weight, padding=1)
        x = F.leaky_relu_(x.add_(self.shift), 0.2)
        return x if self.clamp is None else x.clamp_(-self.clamp, self.clamp)


def _fold(module: ModulatedConv, layer: StyleLayer, style: Tensor, dtype: torch.dtype) -> _Folded:
    scaled = module.weight.float() * style.float()[:, None, None]
    if isinstance(module, ToRGBLayer):
        shift = module.bias.float()[:, None, None]
        return _Folded(
            (scaled * module.weight_gain).to(dtype), shift, False, True, module.conv_clamp, None,
            layer.resolution,
        )  # fmt: skip
    if not isinstance(module, SynthesisLayer):
        raise TypeError(f"{layer.name} is a {type(module).__name__}")
    factor = module.demodulation(style[None])[0] * LRELU_GAIN
    weight = scaled * factor[:, None, None, None]
    noise = (module.noise_const * module.noise_strength).float()
    shift = (module.bias.float()[:, None, None] + noise) * LRELU_GAIN
    clamp = None if module.conv_clamp is None else module.conv_clamp * LRELU_GAIN
    if module.up:
        weight = weight.transpose(0, 1)
    shift = shift[None].to(dtype).contiguous(memory_format=torch.channels_last)
    return _Folded(weight.to(dtype), shift, module.up, False, clamp, module.resample_filter, layer.resolution)


class _MovedLayer:
    """The layer whose channels move, in float32."""

    def __init__(self, module: SynthesisLayer, style: Tensor, below: SynthesisState) -> None:
        self.module, self.style = module, style.float()
        self.x = below.features.float()
        self.weight = module.weight.float()
        scaled = self.x * self.style[:, None, None]
        if module.up:
            still = F.conv_transpose2d(scaled, self.weight.transpose(0, 1), stride=2)
            still = fir_blur(still, module.resample_filter)
        else:
            still = F.conv2d(scaled, self.weight, padding=1)
        self.size = still.shape[-2:]
        self.still = still[0].flatten(1).t().contiguous()  # [P, O]
        self.energy = self.weight.double().square().sum(dim=(2, 3))  # [O, C]
        self.total = self.energy @ self.style.double().square()  # [O]

    def features(self, channels: Tensor, values: Tensor) -> Tensor:
        """Return the layer's output for every move, ``[K n, O, H, V]``."""
        n, moves = len(channels), len(values)

        # a move changes every demodulation a little: by the energy of the moved channel's weights alone
        before, after = self.style[channels].double(), values.double()
        change = (after.square() - before.square())[..., None] * self.energy.t()[channels]  # [K, n, O]
        factor = (self.total + change).clamp(min=0).add(1e-8).rsqrt().float() * LRELU_GAIN

        weight = self.weight[:, channels].flatten(2).permute(1, 2, 0)  # [n, 9, O]
        step = (values - self.style[channels])[..., None, None] * factor[:, :, None]  # [K, n, 1, O]

        # noise and bias ride along as a tenth and an eleventh tap
        noise = self.module.noise_strength.float() * LRELU_GAIN
        extra = torch.stack([noise.expand(len(self.total)), self.module.bias.float() * LRELU_GAIN])
        weight = torch.cat([weight * step, extra.expand(moves, n, -1, -1)], dim=2)  # [K, n, 11, O]

        drawn = self.module.noise_const.float().reshape(1, 1, -1)
        taps = torch.cat(
            [self._taps(channels), drawn.expand(n, -1, -1), torch.ones_like(drawn).expand(n, -1, -1)], 1
        )

        # what stays the same is scaled anew, and the moved channel's taps are added in place
        y = self.still * factor.flatten(0, 1)[:, None]  # [K n, P, O]
        y.baddbmm_(taps.transpose(1, 2).repeat(moves, 1, 1), weight.flatten(0, 1))
        F.leaky_relu_(y, 0.2)
        if self.module.conv_clamp is not None:
            y.clamp_(-self.module.conv_clamp * LRELU_GAIN, self.module.conv_clamp * LRELU_GAIN)
        features: Tensor = y.transpose(1, 2).unflatten(2, self.size)
        return features

    def _taps(self, channels: Tensor) -> Tensor:
        """Return what each of the nine weights of an input channel multiplies, ``[n, 9, P]``."""
        x = self.x[0, channels][:, None]
        if not self.module.up:
            return F.unfold(x, 3, padding=1)
        each = torch.eye(9, device=x.device).view(1, 9, 3, 3)
        return fir_blur(F.conv_transpose2d(x, each, stride=2), self.module.resample_filter).flatten(2)


def _convolution(generator: Generator, layer: StyleLayer) -> SynthesisLayer:
    module = generator.modulated(layer)
    if not isinstance(module, SynthesisLayer):
        raise TypeError(f"{layer.name} is a {type(module).__name__}")
    return module
