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

import torch
import torch.nn.functional as F
from torch import Tensor

from styleclip_core.compiling import Compiled
from styleclip_core.folded import fold
from styleclip_core.models.stylegan2 import (
    LRELU_GAIN,
    Generator,
    SynthesisLayer,
    SynthesisState,
    fir_blur,
)
from styleclip_core.style_space import StyleCode, StyleLayer, StyleLayout


def bytes_per_move(generator: Generator, layer: str, dtype: torch.dtype) -> int:
    """Return about how much memory drawing one moved image takes: four of its largest features.

    A layer holds what it reads and what it makes of that, before and behind its low-pass: two and a half. The
    rest is left to libraries, which bring features into an order of their own.
    """
    resolution = generator.layout.layer(layer).resolution
    wide = generator.config.const_width / 4
    largest = max(
        generator.config.channels(side) * side**2 * wide
        for side in generator.config.resolutions
        if side >= resolution
    )
    return int(4 * largest * dtype.itemsize)


def products_per_move(layout: StyleLayout, layer: str) -> int:
    """Return the floating-point operations of the convolutions behind a layer, of one square image."""
    names = [each.name for each in layout.layers]
    found = 0
    for place in range(names.index(layer) + 1, len(layout.layers)):
        each = layout.layers[place]
        if each.is_torgb:
            found += 2 * each.channels * 3 * each.resolution**2
            continue

        # a convolution gives as many channels as what comes next reads; one that doubles reads a quarter
        pixels = each.resolution**2 // (4 if each.name.endswith("conv0") else 1)
        found += 2 * 9 * each.channels * layout.layers[place + 1].channels * pixels
    return found


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
        compiled: Compiled | None = None,
    ) -> None:
        """Prepare what all moves share.

        Args:
            generator: Draws the images, with its stored noise.
            code: One style code.
            layer: Name of an editable layer.
            below: Its synthesis, stopped before the layer.
            dtype: Number format of the convolutions above the layer.
            compiled: Runs the layers above compiled; None runs them as they are written.
        """
        self._dtype, self._compiled = dtype, compiled
        layers = generator.layout.layers
        self._moved = _MovedLayer(_convolution(generator, layers[below.next_layer]), code[layer][0], below)
        taps = generator.synthesis.block(4).resample_filter * 4
        flipped = taps.flip(0, 1)
        self._tail = [
            fold(
                generator.modulated(each), each, code[each.name][0], taps if each.is_torgb else flipped, dtype
            )
            for each in layers[below.next_layer + 1 :]
        ]

        # colours of the layers below are the same for all moves; they are added to the first of those above
        above = next(each for each in layers[below.next_layer :] if each.is_torgb)
        self._image = None if below.image is None else generator.upsample(below.image, above.resolution)

    def images(self, channels: Tensor, values: Tensor) -> Tensor:
        """Draw every move.

        Args:
            channels: Channels of the layer, ``[n]``.
            values: What they are set to, ``[K, n]``.

        Returns:
            ``[K n, 3, H, V]`` float32, the first move of all channels first.
        """
        # the moved layer is float32; above it all is of one type, toRGB too, which may come next
        x, image = self._moved.features(channels, values).to(self._dtype), None
        for layer in self._tail:
            if not layer.colour:
                x = layer.forward(x, self._compiled)
                continue
            first = image is None
            image = layer.paint(x, image, self._compiled)
            if first and self._image is not None:
                image.add_(self._image)
        if image is None:
            raise ValueError("a generator without toRGB layers draws nothing")
        return image


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

        # noise and bias ride along as a tenth and an eleventh tap
        strength, drawn = (
            module.noise_strength.float() * LRELU_GAIN,
            module.noise_const.float().reshape(1, -1),
        )
        self.extra = torch.stack(
            [strength.expand(len(self.total)), module.bias.float() * LRELU_GAIN]
        )  # [2, O]
        self.drawn = torch.cat([drawn, torch.ones_like(drawn)])  # [2, P]

    def features(self, channels: Tensor, values: Tensor) -> Tensor:
        """Return the layer's output for every move, ``[K n, O, H, V]``."""
        n, moves = len(channels), len(values)

        # a move changes every demodulation a little: by the energy of the moved channel's weights alone
        before, after = self.style[channels].double(), values.double()
        change = (after.square() - before.square())[..., None] * self.energy.t()[channels]  # [K, n, O]
        factor = (self.total + change).clamp(min=0).add(1e-8).rsqrt().float() * LRELU_GAIN

        weight = self.weight[:, channels].flatten(2).permute(1, 2, 0)  # [n, 9, O]
        step = (values - self.style[channels])[..., None, None] * factor[:, :, None]  # [K, n, 1, O]

        weight = torch.cat([weight * step, self.extra.expand(moves, n, -1, -1)], dim=2)  # [K, n, 11, O]
        taps = torch.cat([self._taps(channels), self.drawn.expand(n, -1, -1)], dim=1)  # [n, 11, P]

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
