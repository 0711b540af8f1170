"""Image -> w_plus in one pass: an encoder that predicts how far an image is from the average latent.

As in e4e (Tov et al. 2021): one code for all rows plus a small offset per row, added to the
generator's average w. This compact convolutional encoder suits small generators; the published
encoders of faces are in ``psp``, and ``load_encoder`` reads both.

Shapes: B batch, L rows of w_plus, W w_dim, H side in pixels. Images are in -1..1.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from styleclip_core.errors import CheckpointError
from styleclip_core.files.checkpoint import (
    DAMAGE,
    file_sha256,
    guarded,
    is_safetensors,
    open_checkpoint,
    read_state,
    write_state,
)
from styleclip_core.models.psp import FORMAT, Kind, PspConfig, PspEncoder, read_psp
from styleclip_core.models.stylegan2 import load_exactly

_FORMAT = "styleclip-encoder-1"


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """What fixes the architecture of an encoder.

    Attributes:
        resolution: Side of the images it reads, a multiple of 16.
        num_ws: Rows of w_plus it writes.
        w_dim: Width of w.
        widths: Channels of its four stages, each of half the side of the one before.
        hidden: Width of the layer before the heads.
    """

    resolution: int
    num_ws: int
    w_dim: int
    widths: tuple[int, int, int, int] = (32, 64, 96, 160)
    hidden: int = 512

    def __post_init__(self) -> None:
        sizes = (self.num_ws, self.w_dim, self.hidden, *self.widths)
        if len(self.widths) != 4 or not all(isinstance(size, int) and 0 < size <= 1 << 13 for size in sizes):
            raise CheckpointError(f"an encoder of sizes {sizes[:8]!r:.100} cannot be built")
        if not isinstance(self.resolution, int) or self.resolution not in range(16, 4097, 16):
            raise CheckpointError(f"an encoder reads multiples of 16 pixels, got {self.resolution!r:.40}")


class Encoder(nn.Module):
    """Predicts w_plus; weights are random until a state is loaded."""

    latent_avg: Tensor
    latent_std: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.fingerprint = ""
        stages: list[nn.Module] = []
        for before, after in zip((3, *config.widths), config.widths, strict=False):
            stages.append(_conv(before, after, stride=2))
            if before != 3:
                stages.append(_conv(after, after, stride=1))
        self.stages = nn.Sequential(*stages)
        features = config.widths[-1] * (config.resolution // 16) ** 2
        self.trunk = nn.Linear(features, config.hidden)
        self.base = nn.Linear(config.hidden, config.w_dim)
        self.offsets = nn.Linear(config.hidden, config.num_ws * config.w_dim)
        self.register_buffer("latent_avg", torch.zeros(config.w_dim))
        self.register_buffer("latent_std", torch.ones(config.w_dim))

    def encode(self, image: Tensor) -> Tensor:
        """Predict the latent of images.

        Args:
            image: ``[B, 3, H, H]`` in -1..1; another size than the encoder's is resized by area.

        Returns:
            w_plus, ``[B, L, W]``, the average latent included.
        """
        side = self.config.resolution
        if image.shape[-2:] != (side, side):
            image = F.interpolate(image, size=(side, side), mode="area")
        features = self.trunk(self.stages(image).flatten(1)).relu()
        offsets: Tensor = self.offsets(features).view(-1, self.config.num_ws, self.config.w_dim)
        base: Tensor = self.base(features)
        return self.latent_avg + self.latent_std * (base[:, None] + offsets)

    forward = encode

    @classmethod
    def from_state(cls, config: EncoderConfig, state: dict[str, Tensor]) -> Self:
        """Build an encoder in evaluation mode.

        Raises:
            CheckpointError: If a tensor is missing, left over or of another shape.
        """
        with torch.device("meta"):  # no memory for sizes that the weights may not have
            encoder = cls(config)
        load_exactly(encoder, {name: _widen(tensor) for name, tensor in state.items()}, what="encoder")
        return encoder.eval().requires_grad_(False)


def load_encoder(
    path: str | Path, device: str | torch.device = "cpu", *, kind: Kind | None = None
) -> Encoder | PspEncoder:
    """Read an encoder.

    Args:
        path: A checkpoint of e4e or pSp, or our safetensors.
        device: Where its weights go.
        kind: ``"e4e"`` or ``"psp"``, for checkpoints that do not say which they are.

    Returns:
        An encoder with ``encode(image) -> w_plus``, in evaluation mode.

    Raises:
        CheckpointError: If the file is missing, damaged, hostile or no encoder.
    """
    encoder: Encoder | PspEncoder
    with guarded(path):
        if is_safetensors(path):
            encoder = _from_safetensors(path)
        else:
            with open_checkpoint(path) as file:
                encoder = read_psp(file, kind)
    encoder.fingerprint = file_sha256(path)
    encoder.to(device)
    return encoder


def _from_safetensors(path: str | Path) -> Encoder | PspEncoder:
    state, metadata = read_state(path)
    forms: dict[str, Callable[..., Encoder | PspEncoder]] = {_FORMAT: _compact, FORMAT: _published}
    form = metadata.get("format")
    if form not in forms:
        raise CheckpointError(
            f"{path} is not an encoder of this project (format {form!r:.60}, "
            f"expected {_FORMAT} or {FORMAT}); give the file that `styleclip convert` or a training wrote"
        )
    try:
        return forms[form](json.loads(metadata["config"]), state)
    except (CheckpointError, *DAMAGE) as error:
        raise CheckpointError(f"{path} holds no usable encoder: {error}; fetch it again") from error


def _compact(settings: dict[str, Any], state: dict[str, Tensor]) -> Encoder:
    return Encoder.from_state(EncoderConfig(**settings | {"widths": tuple(settings["widths"][:5])}), state)


def _published(settings: dict[str, Any], state: dict[str, Tensor]) -> PspEncoder:
    return PspEncoder.from_state(PspConfig(**settings), state)


def save_encoder(encoder: Encoder, path: str | Path) -> None:
    """Write an encoder as safetensors, its weights in float16."""
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in encoder.state_dict().items()
    }
    write_state(path, state, {"format": _FORMAT, "config": json.dumps(asdict(encoder.config))})


def _conv(before: int, after: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
