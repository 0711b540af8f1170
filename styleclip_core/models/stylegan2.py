"""StyleGAN2: z -> w_plus -> style code -> image, each step of it open to the caller.

The generator of Karras et al. 2020 ("Analyzing and improving the image quality of StyleGAN",
skip architecture) with parameters named as in NVIDIA's stylegan2-ada-pytorch. Modulation is
applied to the activations instead of the weights (``conv(x * s) * d``), which is the same
function and lets all images of a batch share one convolution.

Shapes: B batch, L rows of w_plus (2 log2(resolution) - 2), W w_dim, C channels, H height of the image
in pixels, V its width: H, but for StyleGAN-Human and its like. Images are ``[B, 3, H, V]``, nominally
in -1..1. Knows nothing of files, CLIP or edits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from styleclip_core import winograd
from styleclip_core.errors import CheckpointError, LayoutMismatchError
from styleclip_core.models.network import Network, filled
from styleclip_core.style_space import StyleCode, StyleLayer, StyleLayout

Noise = Literal["const", "random", "none"]
LRELU_GAIN = math.sqrt(2)
_FIR = (1.0, 3.0, 3.0, 1.0)


# what files may ask for: published models have up to 1024 pixels, 1000 classes and a width of 512
_BOUNDS = {
    "resolution": (8, 4096), "z_dim": (1, 4096), "w_dim": (1, 4096), "c_dim": (0, 1 << 20),
    "mapping_layers": (1, 32), "channel_base": (1, 1 << 20), "channel_max": (1, 1 << 16),
    "const_width": (1, 16),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GeneratorConfig:
    """What fixes the architecture of a StyleGAN2 generator.

    Attributes:
        resolution: Height of the image in pixels, a power of two from 8.
        z_dim: Width of z.
        w_dim: Width of w.
        c_dim: Number of class labels; 0 for an unconditional model.
        mapping_layers: Fully connected layers of the mapping network (8 in the paper, 2 in cfg=auto).
        channel_base: Channels times resolution (32768 for config-f).
        channel_max: Upper bound of the channels of a layer.
        conv_clamp: Bound on activations that mixed-precision models were trained with, or None.
        const_width: Width of the learnt constant, whose height is 4; the image is as much wider or
            narrower (2 for StyleGAN-Human's 1024 x 512).
        mapping_lr: Learning-rate multiplier of the mapping network, by which its weights are scaled.
    """

    resolution: int
    z_dim: int = 512
    w_dim: int = 512
    c_dim: int = 0
    mapping_layers: int = 8
    channel_base: int = 32768
    channel_max: int = 512
    conv_clamp: float | None = None
    const_width: int = 4
    mapping_lr: float = 0.01

    def __post_init__(self) -> None:
        for name, (low, high) in _BOUNDS.items():
            size = getattr(self, name)
            if not isinstance(size, int) or not low <= size <= high:
                raise CheckpointError(
                    f"a StyleGAN2 of {name}={size!r:.40} cannot be built; it goes from {low} to {high}"
                )

        if self.resolution & (self.resolution - 1):
            raise CheckpointError(f"a StyleGAN2 resolution is a power of two from 8, got {self.resolution}")
        if self.channels(self.resolution) < 1:
            raise CheckpointError(f"channel_base={self.channel_base} leaves no channel at the largest side")

        factors = (self.mapping_lr, 1.0 if self.conv_clamp is None else self.conv_clamp)
        if not all(isinstance(x, int | float) and 0 < x < math.inf for x in factors):
            raise CheckpointError(
                f"mapping_lr={self.mapping_lr!r:.40} and conv_clamp={self.conv_clamp!r:.40} are not positive"
            )

    def channels(self, resolution: int) -> int:
        """Return the output channels of the block at ``resolution``."""
        return min(self.channel_base // resolution, self.channel_max)

    @property
    def resolutions(self) -> list[int]:
        """Return the sides of the blocks, 4 to ``resolution``."""
        return [2**k for k in range(2, self.resolution.bit_length())]

    @property
    def width(self) -> int:
        """Return the width of the image in pixels."""
        return self.resolution * self.const_width // 4

    @property
    def num_ws(self) -> int:
        """Return L, the number of rows of w_plus."""
        return 2 * len(self.resolutions)

    def to_dict(self) -> dict[str, int | float | None]:
        """Return the settings as plain values, for a weights file's header."""
        return asdict(self)


class FullyConnected(nn.Module):
    """A linear layer with equalized learning rate, leaky ReLU if ``activate``."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        activate: bool = False,
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__()
        # stored near 1 and scaled when used, so that all layers learn at one rate (Karras et al. 2018)
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias_init / lr_multiplier))
        self.activate = activate
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in_features]`` to ``[B, out_features]``."""
        x = F.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain)
        return F.leaky_relu(x, 0.2) * LRELU_GAIN if self.activate else x


class MappingNetwork(nn.Module):
    """z (and a class label) -> w."""

    w_avg: Tensor

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.c_dim, self.num_layers = config.c_dim, config.mapping_layers
        in_features = config.z_dim
        if config.c_dim:
            self.embed = FullyConnected(config.c_dim, config.w_dim)
            in_features += config.w_dim

        # the first layer reads z and the class, every other one w
        for index in range(config.mapping_layers):
            layer = FullyConnected(in_features, config.w_dim, activate=True, lr_multiplier=config.mapping_lr)
            setattr(self, f"fc{index}", layer)
            in_features = config.w_dim

        self.register_buffer("w_avg", torch.zeros(config.w_dim))

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Map ``[B, z_dim]`` and one-hot labels ``[B, c_dim]`` to ``[B, w_dim]``."""
        x = _normalize_second_moment(z)
        if self.c_dim:
            if label is None or label.shape != (len(z), self.c_dim):
                got = None if label is None else list(label.shape)
                raise ValueError(
                    f"this generator is conditional: give a one-hot label of shape "
                    f"[{len(z)}, {self.c_dim}], got {got}"
                )

            x = torch.cat([x, _normalize_second_moment(self.embed(label))], dim=1)
        elif label is not None and label.shape[1:] != (0,):
            raise ValueError("this generator is unconditional: leave the label out")

        for index in range(self.num_layers):
            x = getattr(self, f"fc{index}")(x)
        return x


@dataclass(frozen=True, slots=True, eq=False)
class LayerChange:
    """A change of one modulated convolution that differs from image to image: of low rank R, plus the bias.

    The weight of image b grows by ``sum over r of write[b, o, r] kernel[b, r] read[b, r, i]``, which is
    never made as a tensor: R features are read, filtered one by one, and written. Demodulation uses
    the unchanged weight, so that changes add up, and a change of zeros is none, bit for bit.

    Attributes:
        read: ``[B, R, in]``.
        kernel: ``[B, R, k, k]``, k the side of the layer's kernel.
        write: ``[B, out, R]``.
        bias: Added to the bias, ``[B, out]``.
    """

    read: Tensor
    kernel: Tensor
    write: Tensor
    bias: Tensor

    def convolve(self, x: Tensor, *, up: bool = False) -> Tensor:
        """Return what the change adds to the convolution of modulated features ``[B, in, H, H]``."""
        (batch, rank), (height, width) = self.read.shape[:2], x.shape[2:]
        features = self.read.to(x.dtype) @ x.flatten(2)  # [B, R, H H]

        # one group for every image and every r: each feature meets its own kernel, and no image another's
        features = features.view(1, batch * rank, height, width)
        kernel = self.kernel.to(x.dtype).flatten(0, 1)[:, None]

        if up:
            features = F.conv_transpose2d(features, kernel, stride=2, groups=batch * rank)
        else:
            features = F.conv2d(features, kernel, padding=kernel.shape[-1] // 2, groups=batch * rank)

        height, width = features.shape[2:]
        written = self.write.to(x.dtype) @ features.view(batch, rank, -1)
        return written.view(batch, -1, height, width)


class ModulatedConv(nn.Module):
    """What conv0, conv1 and torgb share: the affine map, the weight, the bias."""

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, in_channels: int, out_channels: int, kernel: int, w_dim: int) -> None:
        super().__init__()
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))


class SynthesisLayer(ModulatedConv):
    """A modulated, demodulated 3 x 3 convolution with noise, bias and leaky ReLU."""

    noise_const: Tensor
    resample_filter: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, resolution: int, config: GeneratorConfig, *, up: bool
    ) -> None:
        super().__init__(in_channels, out_channels, 3, config.w_dim)
        self.up, self.conv_clamp = up, config.conv_clamp

        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer("noise_const", torch.randn(resolution, resolution * config.const_width // 4))
        self.register_buffer("resample_filter", fir_kernel())

    def demodulation(self, style: Tensor) -> Tensor:
        """Return the factor that gives every output channel unit variance, ``[B, out]`` float32."""
        energy = self.weight.float().square().sum(dim=(2, 3))  # [out, in]
        # a product of lower precision would show as brightness
        with torch.autocast(style.device.type, enabled=False):
            return (style.float().square() @ energy.t() + 1e-8).rsqrt()

    def forward(self, x: Tensor, style: Tensor, noise: Noise, change: LayerChange | None = None) -> Tensor:
        """Map features ``[B, in, H, H]`` under ``style`` ``[B, in]``; H doubles if ``up``."""
        # features are scaled, not weights: the same function, and one convolution for the whole batch
        x = x * style[:, :, None, None].to(x.dtype)
        added = None if change is None else change.convolve(x, up=self.up)

        if self.up:
            x = F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2)
            x = x if added is None else x + added
            x = fir_blur(x, self.resample_filter)
        else:
            x = self._convolve(x)
            x = x if added is None else x + added

        # what scaling the weights and giving each output unit variance would be (2020, equation 3)
        factor = self.demodulation(style)[:, :, None, None]
        bias = self.bias if change is None else self.bias + change.bias
        return self._finish(x, factor, self._drawn(noise, x), bias)

    def _convolve(self, x: Tensor) -> Tensor:
        # the other way pays for its transformed weights from a thousand pixels on, and keeps no gradient
        height, width = x.shape[2:]
        many = len(x) * height * width >= 1024 and x.dtype == torch.float32
        if many and winograd.pays(self.weight, height, width) and not _differentiated(x, self.weight):
            return winograd.convolve(x, winograd.transform(self.weight))
        return F.conv2d(x, self.weight, padding=1)

    def _drawn(self, noise: Noise, x: Tensor) -> Tensor:
        """Return what every channel gets of the noise: ``[H, V]``, or ``[B, H, V]`` if it is random."""
        if noise == "none":
            return x.new_zeros(1, 1, dtype=torch.float32)
        random = noise == "random"
        drawn = torch.randn(len(x), *x.shape[2:], device=x.device) if random else self.noise_const
        return drawn * self.noise_strength

    def _finish(self, x: Tensor, factor: Tensor, drawn: Tensor, bias: Tensor) -> Tensor:
        """Scale features ``[B, O, H, V]`` by ``[B, O, 1, 1]``, add noise and bias, apply leaky ReLU."""
        # leaky ReLU lets a positive factor through: its gain goes into what is smaller than the features
        drawn, bias = ((each * LRELU_GAIN).to(x.dtype) for each in (drawn, bias))

        # added in one pass, and laid out as the features are: channels last
        shift, factor = (drawn[..., None] + bias[..., None, None, :]).movedim(-1, -3), factor.to(x.dtype)

        # nothing else holds what the convolution made: where nothing is differentiated, it is overwritten
        held = _differentiated(x, factor, shift)
        x = torch.addcmul(shift, x, factor, value=LRELU_GAIN, out=None if held else x)
        x = F.leaky_relu(x, 0.2, inplace=True)
        return _clamp(x, self.conv_clamp, LRELU_GAIN)


class ToRGBLayer(ModulatedConv):
    """A modulated 1 x 1 convolution to colour, without demodulation."""

    def __init__(self, in_channels: int, config: GeneratorConfig) -> None:
        super().__init__(in_channels, 3, 1, config.w_dim)
        self.weight_gain = 1 / math.sqrt(in_channels)
        self.conv_clamp = config.conv_clamp

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Map features ``[B, in, H, H]`` to float32 colour ``[B, 3, H, H]``."""
        # three colours: a weight for each image is smaller than the features, and they are read once
        weight = (self.weight[:, :, 0, 0] * (style * self.weight_gain)[:, None]).to(x.dtype)  # [B, 3, C]
        rgb = (weight @ x.flatten(2)).unflatten(2, x.shape[2:]).float() + self.bias[:, None, None]
        return _clamp(rgb, self.conv_clamp, 1.0)


class SynthesisBlock(nn.Module):
    """All layers of one resolution."""

    const: nn.Parameter
    resample_filter: Tensor

    def __init__(self, resolution: int, config: GeneratorConfig) -> None:
        super().__init__()
        out_channels = config.channels(resolution)
        self.register_buffer("resample_filter", fir_kernel())

        if resolution == 4:
            self.const = nn.Parameter(torch.randn(out_channels, 4, config.const_width))
        else:
            in_channels = config.channels(resolution // 2)
            self.conv0 = SynthesisLayer(in_channels, out_channels, resolution, config, up=True)

        self.conv1 = SynthesisLayer(out_channels, out_channels, resolution, config, up=False)
        self.torgb = ToRGBLayer(out_channels, config)


class SynthesisNetwork(nn.Module):
    """The blocks, under NVIDIA's names ``b4``, ``b8``, ..."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        for resolution in config.resolutions:
            setattr(self, f"b{resolution}", SynthesisBlock(resolution, config))

    def block(self, resolution: int) -> SynthesisBlock:
        """Return the block of one resolution."""
        block: SynthesisBlock = getattr(self, f"b{resolution}")
        return block


@dataclass(frozen=True, slots=True, eq=False)
class SynthesisState:
    """A synthesis stopped before layer number ``next_layer`` of the layout.

    Attributes:
        next_layer: Index of the first layer that has not run.
        features: Activations so far, ``[B, C, H, H]``.
        image: Sum of the toRGB outputs so far, ``[B, 3, H, H]`` float32, None before the first.
    """

    next_layer: int
    features: Tensor
    image: Tensor | None

    def select(self, index: Tensor | slice) -> SynthesisState:
        """Return the state of some images of the batch."""
        image = None if self.image is None else self.image[index]
        return SynthesisState(self.next_layer, self.features[index], image)


class Generator(Network):
    """A StyleGAN2 generator."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.mapping = MappingNetwork(config)
        self.synthesis = SynthesisNetwork(config)
        self.layout = StyleLayout(tuple(self._style_layers()))

    @property
    def num_ws(self) -> int:
        """Return L, the number of rows of w_plus."""
        return self.config.num_ws

    @property
    def resolution(self) -> int:
        """Return the height of the image in pixels."""
        return self.config.resolution

    @property
    def image_size(self) -> tuple[int, int]:
        """Return height and width of the image in pixels."""
        return self.config.resolution, self.config.width

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        return self.mapping.w_avg.device

    def map(
        self,
        z: Tensor,
        label: Tensor | None = None,
        *,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
    ) -> Tensor:
        """Map z to w_plus, pulled towards the average w.

        Args:
            z: Normal latents, ``[B, z_dim]``.
            label: One-hot class, ``[B, c_dim]``, for conditional generators only.
            truncation_psi: 1 leaves w alone, 0 gives the average w.
            truncation_cutoff: Rows of w_plus that are truncated; None for all of them.

        Returns:
            w_plus, ``[B, num_ws, w_dim]``.

        Raises:
            ValueError: If z or the label has the wrong shape.
        """
        if z.ndim != 2 or z.shape[1] != self.config.z_dim:
            raise ValueError(f"z must be [B, {self.config.z_dim}], got {list(z.shape)}")

        w_plus: Tensor = self.mapping(z, label)[:, None].repeat(1, self.num_ws, 1)
        if truncation_psi == 1:
            return w_plus

        # the truncation trick: coarse rows are pulled to the average, the rest keeps its detail
        cutoff = self.num_ws if truncation_cutoff is None else truncation_cutoff
        head = self.mapping.w_avg.lerp(w_plus[:, :cutoff], truncation_psi)
        return torch.cat([head, w_plus[:, cutoff:]], dim=1)

    def styles(self, w_plus: Tensor) -> StyleCode:
        """Map w_plus ``[B, num_ws, w_dim]`` to style codes.

        Raises:
            ValueError: If w_plus has another shape.
        """
        if w_plus.ndim != 3 or w_plus.shape[1:] != (self.num_ws, self.config.w_dim):
            raise ValueError(
                f"w_plus must be [B, {self.num_ws}, {self.config.w_dim}], got {list(w_plus.shape)}"
            )
        return StyleCode(
            self.layout,
            {
                layer.name: self.modulated(layer).affine(w_plus[:, layer.ws_index])
                for layer in self.layout.layers
            },
        )

    def synthesize(
        self,
        styles: StyleCode,
        *,
        noise: Noise = "const",
        changes: Mapping[str, LayerChange] | None = None,
    ) -> Tensor:
        """Draw the images of style codes.

        In batches of one size an image has the same bits whatever is beside it; alone, or in batches of
        other sizes, it differs by rounding.

        Args:
            styles: Codes of a batch of B images.
            noise: ``"const"`` (the stored noise, deterministic), ``"random"`` or ``"none"``.
            changes: By the name of a convolution layer, how its weights differ from image to image.

        Returns:
            ``[B, 3, H, V]`` float32, nominally in -1..1, not clamped.

        Raises:
            LayoutMismatchError: If the codes belong to another generator.
        """
        self.expect(styles)
        return self.resume(self.begin(styles.batch_size), styles, noise=noise, changes=changes)

    def expect(self, styles: StyleCode) -> None:
        """Refuse style codes of another generator.

        Raises:
            LayoutMismatchError: If their layout is another one.
        """
        if styles.layout != self.layout:
            raise LayoutMismatchError(
                f"these style codes have {styles.layout.num_channels} channels in "
                f"{len(styles.layout.layers)} layers, the generator {self.layout.num_channels} in "
                f"{len(self.layout.layers)}"
            )

    def begin(self, batch_size: int) -> SynthesisState:
        """Return the state before the first layer: the learnt constant, ``batch_size`` times."""
        const = self.synthesis.block(4).const
        features = const[None].expand(batch_size, -1, -1, -1)
        # channels last is the order in memory that convolutions are fastest in
        return SynthesisState(0, features.contiguous(memory_format=torch.channels_last), None)

    def advance(
        self,
        state: SynthesisState,
        styles: StyleCode,
        stop: int,
        *,
        noise: Noise = "const",
        changes: Mapping[str, LayerChange] | None = None,
    ) -> SynthesisState:
        """Run the layers of ``state`` up to, not including, number ``stop`` of the layout."""
        x, image = state.features, state.image

        for layer in self.layout.layers[state.next_layer : stop]:
            module = self.modulated(layer)
            if isinstance(module, ToRGBLayer):
                rgb = module(x, styles[layer.name])
                image = rgb if image is None else rgb + self.upsample(image, layer.resolution)
            else:
                x = module(x, styles[layer.name], noise, (changes or {}).get(layer.name))

        return SynthesisState(stop, x, image)

    def resume(
        self,
        state: SynthesisState,
        styles: StyleCode,
        *,
        noise: Noise = "const",
        changes: Mapping[str, LayerChange] | None = None,
    ) -> Tensor:
        """Finish a synthesis that ``begin`` or ``advance`` left at ``state``; see ``synthesize``."""
        done = self.advance(state, styles, len(self.layout.layers), noise=noise, changes=changes)
        if done.image is None:
            raise LayoutMismatchError("a generator without toRGB layers draws nothing")
        return done.image

    @classmethod
    def from_state(cls, config: GeneratorConfig, state: dict[str, Tensor]) -> Self:
        """Build a generator in evaluation mode from NVIDIA-named weights.

        Raises:
            CheckpointError: If a tensor is missing, left over or of another shape.
        """
        return filled(lambda: cls(config), state, what="StyleGAN2 generator")

    def modulated(self, layer: StyleLayer) -> ModulatedConv:
        """Return the part of the network that a style layer names."""
        block, _, part = layer.name.partition(".")
        module: ModulatedConv = getattr(getattr(self.synthesis, block), part)
        return module

    def upsample(self, image: Tensor, resolution: int) -> Tensor:
        """Return a sum of toRGB outputs, float32, at twice its size, which is ``resolution``."""
        kernel = self.synthesis.block(resolution).resample_filter * 4
        channels = image.shape[1]

        # colours add up in float32, whatever features are
        with torch.autocast(image.device.type, enabled=False):
            return F.conv_transpose2d(
                image, kernel.expand(channels, 1, 4, 4), stride=2, padding=1, groups=channels
            )

    def take(self, index: Tensor) -> Self:
        """Return the generator that draws some images of a batch: this one, as it is the same for all."""
        del index
        return self

    def _style_layers(self) -> Iterator[StyleLayer]:
        ws_index = 0
        for resolution in self.config.resolutions:
            block = self.synthesis.block(resolution)
            names = ("conv1", "torgb") if resolution == 4 else ("conv0", "conv1", "torgb")

            for offset, name in enumerate(names):
                channels = getattr(block, name).weight.shape[1]
                yield StyleLayer(
                    f"b{resolution}.{name}", resolution, channels, ws_index + offset, name == "torgb"
                )

            # toRGB shares its row with the next block's conv0
            ws_index += len(names) - 1


def _normalize_second_moment(x: Tensor) -> Tensor:
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


def _differentiated(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(each.requires_grad for each in tensors)


def _clamp(x: Tensor, bound: float | None, gain: float) -> Tensor:
    return x if bound is None else x.clamp(-bound * gain, bound * gain)


def fir_kernel() -> Tensor:
    """Return the low-pass filter of StyleGAN2's up-sampling, ``[4, 4]`` with sum 1."""
    taps = torch.tensor(_FIR)
    kernel = taps[:, None] * taps[None, :]
    return kernel / kernel.sum()


def fir_blur(x: Tensor, kernel: Tensor) -> Tensor:
    """Low-pass a doubled feature map ``[B, C, 2n+1, 2n+1]`` to ``[B, C, 2n, 2n]``."""
    channels = x.shape[1]
    taps = (kernel.flip(0, 1) * 4).to(x.dtype).expand(channels, 1, 4, 4)
    return F.conv2d(x, taps, padding=1, groups=channels)
