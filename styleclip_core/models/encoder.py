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
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from styleclip_core.errors import CheckpointError
from styleclip_core.models.network import CompactTrunk, filled
from styleclip_core.models.psp import FORMAT, Kind, PspConfig, PspEncoder, fill_psp, read_psp
from styleclip_core.models.weights import read_network, refusing, save_network

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


class Encoder(CompactTrunk):
    """Predicts w_plus."""

    latent_avg: Tensor
    latent_std: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config.resolution, config.widths, config.hidden)
        self.config = config

        self.base = nn.Linear(config.hidden, config.w_dim)
        self.offsets = nn.Linear(config.hidden, config.num_ws * config.w_dim)

        # a step of the network is in standard deviations of w, so that training starts at the right size
        self.register_buffer("latent_avg", torch.zeros(config.w_dim))
        self.register_buffer("latent_std", torch.ones(config.w_dim))

    def encode(self, image: Tensor) -> Tensor:
        """Predict the latent of images.

        A latent has the same bits in every batch of one size; alone and in a batch, it differs by rounding,
        so what descends from it takes it from ``descent.in_chunks``.

        Args:
            image: ``[B, 3, H, H]`` in -1..1; another size than the encoder's is resized by area.

        Returns:
            w_plus, ``[B, L, W]``, the average latent included.
        """
        features = self.features(image)
        offsets: Tensor = self.offsets(features).view(-1, self.config.num_ws, self.config.w_dim)

        # one code for all rows plus a small offset of each keeps w_plus near w, where edits work (e4e)
        base: Tensor = self.base(features)
        return self.latent_avg + self.latent_std * (base[:, None] + offsets)

    forward = encode


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
    return read_network(path, device, ours=_from_safetensors, theirs=partial(read_psp, kind=kind))


def _from_safetensors(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> Encoder | PspEncoder:
    forms: dict[str, Callable[..., Encoder | PspEncoder]] = {_FORMAT: _compact, FORMAT: _published}
    form = metadata.get("format")
    if form not in forms:
        raise CheckpointError(
            f"{path} is not an encoder of this project (format {form!r:.60}, "
            f"expected {_FORMAT} or {FORMAT}); give the file that `styleclip convert` or a training wrote"
        )
    with refusing(f"{path} holds no usable encoder"):
        return forms[form](json.loads(metadata["config"]), state)


def _compact(settings: dict[str, Any], state: dict[str, Tensor]) -> Encoder:
    # one width too many is kept, so that the check of the sizes sees it; a list of any length is not
    config = EncoderConfig(**settings | {"widths": tuple(settings["widths"][:5])})
    return filled(lambda: Encoder(config), state, what="encoder")


def _published(settings: dict[str, Any], state: dict[str, Tensor]) -> PspEncoder:
    return fill_psp(PspConfig(**settings), state)


def save_encoder(encoder: Encoder, path: str | Path) -> None:
    """Write an encoder as safetensors, its weights in float16."""
    save_network(encoder, path, _FORMAT, asdict(encoder.config), half=True)
