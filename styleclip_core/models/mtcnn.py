"""Photograph -> faces with five landmarks: MTCNN (Zhang et al. 2016), on torch alone.

Three small networks, each more accurate and more costly than the last: P-net slides over a pyramid of the
photograph, R-net takes a second look at what it proposes, O-net says where eyes, nose and mouth are.
Architecture, names of the weights and thresholds are those of facenet-pytorch, whose weights
these are (MIT). Boxes count pixels from 1, as in the original.

Shapes: N boxes, P points of a map, H W pixels. A box is x0, y0, x1, y1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from styleclip_core.errors import CheckpointError
from styleclip_core.faces import Face
from styleclip_core.files.checkpoint import file_sha256, read_state
from styleclip_core.models.network import Network, filled

FORMAT = "styleclip-mtcnn-1"
_WINDOW, _STRIDE, _PYRAMID = 12, 2, 0.709  # side of P-net's window, its step, ratio of two levels
_CROPS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class DetectionSettings:
    """What counts as a face.

    Attributes:
        min_score: Lowest score of a face, 0 to 1.
        min_side: Smallest face that is looked for, in pixels of the photograph as it is searched.
        longest_side: A larger photograph is scaled down to this before it is searched, in pixels.
    """

    min_score: float = 0.9
    min_side: int = 20
    longest_side: int = 1024

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score must be from 0 to 1, got {self.min_score:g}")

        if self.min_side < _WINDOW or self.longest_side < self.min_side:
            raise ValueError(
                f"min_side must be at least {_WINDOW} and longest_side at least that, "
                f"got {self.min_side} and {self.longest_side}"
            )


class _PNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores ``[B, h, w]`` and shifts of the box ``[B, 4, h, w]``."""
        x = F.max_pool2d(self.prelu1(self.conv1(image)), 2, 2, ceil_mode=True)
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return self.conv4_1(x).softmax(dim=1)[:, 1], self.conv4_2(x)


class _RNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, crop: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores ``[N]`` and shifts of the box ``[N, 4]`` of crops ``[N, 3, 24, 24]``."""
        x = F.max_pool2d(self.prelu1(self.conv1(crop)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)

        # the dense layer was trained on features in the order width, height, channel
        x = self.prelu3(self.conv3(x)).permute(0, 3, 2, 1).flatten(1)
        x = self.prelu4(self.dense4(x))
        return self.dense5_1(x).softmax(dim=1)[:, 1], self.dense5_2(x)


class _ONet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2 = nn.Linear(256, 2), nn.Linear(256, 4)
        self.dense6_3 = nn.Linear(256, 10)

    def forward(self, crop: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores ``[N]``, shifts ``[N, 4]`` and points ``[N, 10]`` of crops ``[N, 3, 48, 48]``."""
        x = F.max_pool2d(self.prelu1(self.conv1(crop)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu3(self.conv3(x)), 2, 2, ceil_mode=True)

        # the order of axes as in R-net
        x = self.prelu4(self.conv4(x)).permute(0, 3, 2, 1).flatten(1)
        x = self.prelu5(self.dense5(x))
        return self.dense6_1(x).softmax(dim=1)[:, 1], self.dense6_2(x), self.dense6_3(x)


class Mtcnn(Network):
    """Finds faces and their five landmarks."""

    def __init__(self, settings: DetectionSettings) -> None:
        super().__init__()
        self.settings = settings
        self.pnet, self.rnet, self.onet = _PNet(), _RNet(), _ONet()

    @torch.no_grad()
    def detect(self, image: Image.Image) -> list[Face]:
        """Find the faces of a photograph.

        Args:
            image: Upright RGB, of any size.

        Returns:
            Faces with five landmarks in pixels of ``image``, the largest first; empty if there is none.

        Raises:
            ValueError: If the image is not RGB.
        """
        if image.mode != "RGB":
            raise ValueError(f"the photograph must be RGB, got {image.mode}; decode it with decode_image")

        # the detector's cost is that of its pixels, and a face needs few of them
        full = image.size
        shrink = min(1.0, self.settings.longest_side / max(full))
        if shrink < 1:
            size = (max(1, round(full[0] * shrink)), max(1, round(full[1] * shrink)))
            image = image.resize(size, Image.Resampling.BOX)

        device = self.onet.dense5.weight.device
        pixels = torch.from_numpy(np.array(image)).to(device).permute(2, 0, 1)[None].float()
        pixels = (pixels - 127.5) / 128  # [1, 3, H, W]

        boxes = self._refine(pixels, self._propose(pixels))
        boxes, scores, points = self._locate(pixels, boxes)

        # the largest face first: it is whom a photograph shows
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        order = area.argsort(descending=True, stable=True)

        # to pixels of the whole photograph, in which the centre of the first pixel is 0
        back = np.divide(full, image.size)
        located = (points[order].double().cpu().numpy() + 0.5) * back - 0.5  # [N, 5, 2]
        return [Face(face, float(score)) for face, score in zip(located, scores[order].cpu(), strict=True)]

    def _propose(self, pixels: Tensor) -> Tensor:
        """Return boxes ``[N, 4]`` that may hold a face, from all levels of the pyramid."""
        height, width = pixels.shape[2:]
        boxes, scores, shifts = [pixels.new_zeros(0, 4)], [pixels.new_zeros(0)], [pixels.new_zeros(0, 4)]

        # P-net knows faces of 12 pixels only: the photograph is shrunk until the largest face is as small
        scale = _WINDOW / self.settings.min_side
        while min(height, width) * scale >= _WINDOW:
            level = F.interpolate(pixels, (int(height * scale + 1), int(width * scale + 1)), mode="area")
            score, shift = self.pnet(level)

            y, x = (score[0] >= 0.6).nonzero(as_tuple=True)  # [P]

            # each place of the map is a window of 12 pixels at every second one, counted from 1
            first = torch.stack([x, y], dim=1) * _STRIDE + 1
            box = torch.cat([first / scale, (first + _WINDOW - 1) / scale], dim=1).floor()
            kept = _suppress(box, score[0, y, x], overlap=0.5)

            boxes.append(box[kept])
            scores.append(score[0, y, x][kept])
            shifts.append(shift[0, :, y, x].T[kept])
            scale *= _PYRAMID

        # once more over all levels, which find the same face in neighboring sizes
        found, score, shift = torch.cat(boxes), torch.cat(scores), torch.cat(shifts)
        kept = _suppress(found, score, overlap=0.7)

        sides = found[kept, 2:] - found[kept, :2]
        return _square(found[kept] + shift[kept] * sides.repeat(1, 2))

    def _refine(self, pixels: Tensor, boxes: Tensor) -> Tensor:
        """Return the boxes ``[N, 4]`` that still look like a face at R-net's resolution."""
        boxes, crops = _crop(pixels, boxes, 24)
        batches = [self.rnet(batch) for batch in crops.split(_CROPS_AT_ONCE)]
        score, shift = (torch.cat(parts) for parts in zip(*batches, strict=True))

        # 0.7 for the second net and its overlap, as published; only the last threshold is a setting
        sure = score > 0.7
        boxes, score, shift = boxes[sure], score[sure], shift[sure]

        kept = _suppress(boxes, score, overlap=0.7)
        return _square(_shift(boxes[kept], shift[kept]))

    def _locate(self, pixels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes ``[N, 4]``, scores ``[N]`` and landmarks ``[N, 5, 2]``."""
        boxes, crops = _crop(pixels, boxes, 48)
        batches = [self.onet(batch) for batch in crops.split(_CROPS_AT_ONCE)]
        score, shift, points = (torch.cat(parts) for parts in zip(*batches, strict=True))

        sure = score > self.settings.min_score
        boxes, score, shift, points = boxes[sure], score[sure], shift[sure], points[sure]

        # landmarks are fractions of the box as it was looked at, so before it is shifted
        sides = boxes[:, None, 2:] - boxes[:, None, :2] + 1
        points = points.view(-1, 2, 5).transpose(1, 2) * sides + boxes[:, None, :2] - 1

        boxes = _shift(boxes, shift)

        # over the smaller box: a face within a face is the same one, however little of it is shared
        kept = _suppress(boxes, score, overlap=0.7, of_smaller=True)
        return boxes[kept], score[kept], points[kept]


def _suppress(boxes: Tensor, scores: Tensor, *, overlap: float, of_smaller: bool = False) -> Tensor:
    """Return the boxes left after each has ruled out weaker ones that overlap it by more than ``overlap``.

    Overlap is intersection over union, or over the smaller of the two.
    """
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left = scores.argsort(descending=True, stable=True)
    kept = []

    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)

        low = torch.maximum(boxes[best, :2], boxes[left, :2])
        high = torch.minimum(boxes[best, 2:], boxes[left, 2:])
        shared = (high - low).clamp(min=0).prod(dim=1)

        whole = torch.minimum(area[best], area[left]) if of_smaller else area[best] + area[left] - shared
        left = left[shared <= overlap * whole]
    return torch.stack(kept) if kept else left


def _shift(boxes: Tensor, shift: Tensor) -> Tensor:
    """Move the sides of boxes by fractions of their width and height."""
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    return boxes + shift * sides.repeat(1, 2)


def _square(boxes: Tensor) -> Tensor:
    """Grow boxes to squares around the same centre."""
    sides = boxes[:, 2:] - boxes[:, :2]
    longest = sides.amax(dim=1, keepdim=True)
    first = boxes[:, :2] + (sides - longest) * 0.5
    return torch.cat([first, first + longest], dim=1)


def _crop(pixels: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Cut boxes out of a photograph, as far as they lie on it.

    Returns:
        The boxes ``[N, 4]`` that lie on it at all, and their crops ``[N, 3, size, size]``.
    """
    height, width = pixels.shape[2:]
    crops, kept = [pixels.new_zeros(0, 3, size, size)], []

    for number, (x0, y0, x1, y1) in enumerate(boxes.trunc().int().tolist()):
        # pixels count from 1; an area pooling of what lies on the photograph, as published
        crop = pixels[:, :, max(y0, 1) - 1 : min(y1, height), max(x0, 1) - 1 : min(x1, width)]
        if y1 > 0 and x1 > 0 and crop.numel():
            crops.append(F.interpolate(crop, (size, size), mode="area"))
            kept.append(number)
    return boxes[kept], torch.cat(crops)


def load_face_detector(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    settings: DetectionSettings = DetectionSettings(),
) -> Mtcnn:
    """Read MTCNN from our safetensors file.

    Args:
        path: The file.
        device: Where the weights go.
        settings: What counts as a face.

    Returns:
        The detector; ``fingerprint`` is the file's SHA-256.

    Raises:
        CheckpointError: If the file is missing, damaged or no face detector.
    """
    state, metadata = read_state(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is no face detector of this project (format {metadata.get('format')!r}, expected "
            f"{FORMAT!r}); give the file that data/world/face_detector.py writes"
        )

    detector = filled(lambda: Mtcnn(settings), state, what="face detector")
    detector.fingerprint = file_sha256(path)
    return detector.to(device)
