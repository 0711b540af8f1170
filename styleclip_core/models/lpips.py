"""Two images -> how different they look: LPIPS (Zhang et al. 2018), version 0.1.

    d(x, y) = sum over five layers l of  mean over pixels of  h_l . (f_l(x) / |f_l(x)| - f_l(y) / |f_l(y)|)^2

with f_l the features behind a ReLU of a network that was trained to name what images show, and h_l one
non-negative weight per channel, fitted to what people found similar. The backbone is AlexNet or VGG16 up
to the last ReLU before its classifier, under torchvision's names and read from its published weights. The
heads h_l are those of the PyPI package ``lpips`` 0.1.4, converted to ``lpips_heads.safetensors`` beside
this module (BSD, ``lpips_heads.LICENSE.txt``).

Shapes: B batch, H W pixels, C channels of a layer. Images are in -1..1.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from styleclip_core.errors import CheckpointError
from styleclip_core.files.checkpoint import Checkpoint, read_state
from styleclip_core.models.network import Network, filled
from styleclip_core.models.weights import read_network, refusing, save_network

Variant = Literal["alex", "vgg"]
_FORMAT = "styleclip-perceptual-1"
_REMEDY = "give torchvision's alexnet-owt-7be5be79.pth or vgg16-397923af.pth"
_HEADS = Path(__file__).with_name("lpips_heads.safetensors")
_TAPS: dict[Variant, tuple[int, ...]] = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}
_CHANNELS: dict[Variant, tuple[int, ...]] = {
    "alex": (64, 192, 384, 256, 256),
    "vgg": (64, 128, 256, 512, 512),
}
_SMALLEST: dict[Variant, int] = {"alex": 31, "vgg": 16}  # pixels that leave one behind the last pooling
_FIRST: dict[tuple[int, ...], Variant] = {(64, 3, 11, 11): "alex", (64, 3, 3, 3): "vgg"}
# ImageNet's mean and deviation, of pixels in -1..1
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class PerceptualDistance(Network):
    """LPIPS.

    Attributes:
        variant: ``"alex"``, closest to what people say, or ``"vgg"``, as most inversion losses use.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.variant = variant
        self.features = _alexnet() if variant == "alex" else _vgg16()
        self.heads = nn.ParameterList(nn.Parameter(torch.rand(count)) for count in _CHANNELS[variant])

        # constants, also where the weights are still to come
        with torch.device("cpu"):
            self.register_buffer("shift", torch.tensor(_SHIFT).view(3, 1, 1), persistent=False)
            self.register_buffer("scale", torch.tensor(_SCALE).view(3, 1, 1), persistent=False)

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """Return how different pairs of images look; 0 for equal ones.

        A distance has the same bits in every batch of one size; alone and in a batch, it differs by rounding.

        Args:
            first: ``[B, 3, H, W]`` in -1..1; gradients flow back to it, and to ``second`` if it wants them.
            second: As many images of the same size. A side below what the backbone can take in, 31
                pixels for AlexNet and 16 for VGG16, is enlarged to that, bilinearly, in both.

        Returns:
            ``[B]`` float32, not negative; about 0 to 1.

        Raises:
            ValueError: If the two differ in shape.
        """
        if first.shape != second.shape:
            raise ValueError(f"images differ in shape: {list(first.shape)} and {list(second.shape)}")

        total = first.new_zeros(len(first), dtype=torch.float32)
        for head, a, b in zip(self.heads, self._unit(first), self._unit(second), strict=True):
            total = total + torch.einsum("bchw,c->bhw", (a - b).square(), head).mean(dim=(1, 2))
        return total

    forward = distance

    def _unit(self, image: Tensor) -> list[Tensor]:
        """Return the five feature maps, of unit length at every pixel, ``[B, C, h, w]`` each."""
        height, width = (max(side, _SMALLEST[self.variant]) for side in image.shape[-2:])
        if image.shape[-2:] != (height, width):
            image = F.interpolate(image, size=(height, width), mode="bilinear", align_corners=False)

        # unit length over the channels, as in equation 1 of the paper
        x, found = (image - self.shift) / self.scale, []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in _TAPS[self.variant]:
                found.append(F.normalize(x, dim=1, eps=1e-10))

        return found


def _alexnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(),
    )  # fmt: skip


def _vgg16() -> nn.Sequential:
    layers: list[nn.Module] = []
    before = 3

    for stage, (channels, convolutions) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        if stage:
            layers.append(nn.MaxPool2d(2, 2))
        for _ in range(convolutions):
            layers += [nn.Conv2d(before, channels, 3, 1, 1), nn.ReLU()]
            before = channels
    return nn.Sequential(*layers)


def load_perceptual(path: str | Path, device: str | torch.device = "cpu") -> PerceptualDistance:
    """Read a perceptual distance.

    Args:
        path: torchvision's published ``alexnet-owt-7be5be79.pth`` or ``vgg16-397923af.pth``, or the
            safetensors that ``save_perceptual`` writes. The variant is told from the first layer.
        device: Where its weights go.

    Raises:
        CheckpointError: If the file is missing, damaged, hostile or of another architecture.
    """
    return read_network(path, device, ours=_from_safetensors, theirs=_from_checkpoint)


def _from_safetensors(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> PerceptualDistance:
    with refusing(f"{path} holds no usable perceptual network", _REMEDY):
        variant = json.loads(metadata["config"])["variant"]
        if metadata.get("format") != _FORMAT or variant not in get_args(Variant):
            raise CheckpointError(f"it has the format {metadata.get('format')!r:.60}, expected {_FORMAT}")
        return _fill(variant, state)


def _from_checkpoint(file: Checkpoint) -> PerceptualDistance:
    state = file.state(file.weights, "features.")

    # AlexNet and VGG16 differ in their very first kernel
    first = state.get("0.weight")
    variant = None if first is None else _FIRST.get(tuple(first.shape))
    if variant is None:
        raise CheckpointError(f"{file.path} is neither torchvision's AlexNet nor its VGG16; {_REMEDY}")

    # the published file ends in a classifier; LPIPS's heads stand in its place
    heads, _ = read_state(_HEADS)
    whole = {f"features.{name}": tensor for name, tensor in state.items()}
    whole |= {f"heads.{index}": heads[f"{variant}.{index}"] for index in range(len(_CHANNELS[variant]))}

    with refusing(str(file.path), _REMEDY):
        return _fill(variant, whole)


def _fill(variant: Variant, state: dict[str, Tensor]) -> PerceptualDistance:
    return filled(lambda: PerceptualDistance(variant), state, what=f"perceptual network ({variant})")


def save_perceptual(network: PerceptualDistance, path: str | Path) -> None:
    """Write backbone and heads as one safetensors file."""
    save_network(network, path, _FORMAT, {"variant": network.variant})
