"""How a CLIP wants its images: resized and cropped on the device, so that gradients flow.

Shapes: B images, H W pixels, R side of the images that the network reads. Knows nothing of networks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from styleclip_core.errors import CheckpointError

Triple = tuple[float, float, float]
ResizeMode = Literal["shortest", "longest", "squash"]
_MAX_SIDE = 4096


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What is done to an image before a CLIP reads it.

    Attributes:
        side: R, in pixels; images are square then.
        mean: Subtracted from each of red, green and blue, which are in 0..1.
        std: What they are divided by then.
        interpolation: ``"bicubic"`` or ``"bilinear"``, antialiased.
        resize_mode: ``"shortest"`` scales the shorter side to R and cuts out the center; ``"longest"`` scales
            the longer one and fills up; ``"squash"`` scales each side on its own.
        fill: What ``"longest"`` fills up with, 0..255.
    """

    side: int
    mean: Triple = (0.48145466, 0.4578275, 0.40821073)
    std: Triple = (0.26862954, 0.26130258, 0.27577711)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: ResizeMode = "shortest"
    fill: int = 0

    def __post_init__(self) -> None:
        # it is read off files that others wrote
        right = {
            "side": 0 < self.side <= _MAX_SIDE,
            "mean": len(self.mean) == 3,
            "std": len(self.std) == 3 and all(each > 0 for each in self.std),
            "interpolation": self.interpolation in ("bicubic", "bilinear"),
            "resize_mode": self.resize_mode in ("shortest", "longest", "squash"),
            "fill": 0 <= self.fill <= 255,
        }
        for name, fits in right.items():
            if not fits:
                raise CheckpointError(
                    f"a preprocessing with {name} {getattr(self, name)!r} is none that is known; "
                    "mend the configuration beside the weights"
                )

    def describe(self) -> dict[str, object]:
        """Return it as plain values."""
        return asdict(self)

    def resized(self, pixels: Tensor) -> Tensor:
        """Resize, and crop or fill up, ``[B, 3, H, W]`` in 0..1 -> ``[B, 3, R, R]``."""
        height, width = pixels.shape[-2:]
        size = self._scaled(height, width)

        # PIL goes over the rows, clips to 8 bits, then over the columns
        if size != (height, width):
            for step in ((height, size[1]), size):
                pixels = F.interpolate(pixels, size=step, mode=self.interpolation, antialias=True).clamp(0, 1)

        if self.resize_mode == "longest":
            pixels = self._filled_up(pixels)

        # rounded as torchvision's CenterCrop does, to the even neighbor
        top, left = (round((extent - self.side) / 2) for extent in pixels.shape[-2:])
        return pixels[..., top : top + self.side, left : left + self.side]

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        side = self.side
        if self.resize_mode == "squash":
            return side, side
        if self.resize_mode == "longest":  # which open_clip rounds, as timm does
            long = max(height, width)
            return round(height * side / long), round(width * side / long)

        # which torchvision cuts off
        short, long = min(height, width), max(height, width)
        if short == side:
            return height, width
        scaled = int(side * long / short)
        return (side, scaled) if height <= width else (scaled, side)

    def _filled_up(self, pixels: Tensor) -> Tensor:
        down, across = (max(0, self.side - extent) for extent in pixels.shape[-2:])
        edges = (across // 2, (across + 1) // 2, down // 2, (down + 1) // 2)
        return F.pad(pixels, edges, value=self.fill / 255)
