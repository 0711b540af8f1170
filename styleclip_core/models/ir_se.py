"""The improved residual network with squeeze and excitation that face recognition and e4e share.

IR-SE50 of ArcFace (Deng et al. 2019) as published with TreB1eN's InsightFace_Pytorch, under its names:
``input_layer``, ``body.0`` to ``body.23``. As a whole it embeds faces; without its head it is the
backbone of the pSp and e4e encoders.

Shapes: B batch, H W pixels of the input.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from styleclip_core.models.network import Network

_UNITS = ((64, 64, 3), (64, 128, 4), (128, 256, 14), (256, 512, 3))


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from the mean of all channels over the image."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, H, W]`` to the same shape."""
        gate: Tensor = self.fc2(F.relu(self.fc1(x.mean(dim=(2, 3), keepdim=True)))).sigmoid()
        return x * gate


class Bottleneck(nn.Module):
    """One residual unit; halves the side if ``stride`` is 2."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        if in_channels == channels:
            # a pooling of one pixel, as published: the shortcut takes every other pixel and has no weights
            self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        else:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False),
            nn.PReLU(channels),
            nn.Conv2d(channels, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            SqueezeExcitation(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in, H, W]`` to ``[B, out, H / stride, W / stride]``."""
        out: Tensor = self.res_layer(x) + self.shortcut_layer(x)
        return out


class IRSE50(Network):
    """The backbone: 24 units in four stages of 64, 128, 256 and 512 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64)
        )
        self.body = nn.Sequential(
            *(
                Bottleneck(before if unit == 0 else after, after, 2 if unit == 0 else 1)
                for before, after, units in _UNITS
                for unit in range(units)
            )
        )
