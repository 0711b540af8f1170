"""Image of a face -> identity embedding: IR-SE50 ArcFace with the crop that StyleCLIP's loss uses.

Shapes: B batch, H W pixels. Images are in -1..1, aligned as FFHQ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

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
from styleclip_core.models.ir_se import IRSE50
from styleclip_core.models.stylegan2 import load_exactly

_FORMAT = "styleclip-identity-1"
_WHOLE, _FACE = 256, 112
_ROWS, _COLUMNS = slice(35, 223), slice(32, 220)  # the face in an FFHQ-aligned image of 256 pixels


class IdentityNetwork(IRSE50):
    """ArcFace; weights are random until a state is loaded.

    Attributes:
        fingerprint: SHA-256 of the weights file, set by the loader.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fingerprint = ""
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512),
            nn.Dropout(0.6),
            nn.Flatten(),
            nn.Linear(512 * 7 * 7, 512),
            nn.BatchNorm1d(512),
        )

    def embed(self, image: Tensor) -> Tensor:
        """Embed FFHQ-aligned images.

        Args:
            image: ``[B, 3, H, W]`` in -1..1; gradients flow back to it.

        Returns:
            Unit rows, ``[B, 512]`` float32. The inner product of two is their identity similarity.
        """
        if image.shape[-2:] != (_WHOLE, _WHOLE):
            image = F.adaptive_avg_pool2d(image, (_WHOLE, _WHOLE))
        return self.embed_face(F.adaptive_avg_pool2d(image[:, :, _ROWS, _COLUMNS], (_FACE, _FACE)))

    def embed_face(self, face: Tensor) -> Tensor:
        """Embed faces that are cropped already, ``[B, 3, 112, 112]`` in -1..1, to unit rows."""
        return F.normalize(self.output_layer(self.body(self.input_layer(face))), dim=1)

    forward = embed

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """Build a network in evaluation mode.

        Raises:
            CheckpointError: If a tensor is missing, left over, of another shape or not finite.
        """
        with torch.device("meta"):
            network = cls()
        load_exactly(network, state, what="IR-SE50 identity network")
        return network.eval().requires_grad_(False)


def load_identity(path: str | Path, device: str | torch.device = "cpu") -> IdentityNetwork:
    """Read an identity network.

    Args:
        path: ``model_ir_se50.pth`` as published (a plain state dict, or one under ``state_dict``), or
            the safetensors that ``save_identity`` writes.
        device: Where its weights go.

    Raises:
        CheckpointError: If the file is missing, damaged, hostile or of another architecture.
    """
    path = Path(path)
    with guarded(path):
        network = _read(path)
    network.fingerprint = file_sha256(path)
    return network.to(device)


def _read(path: Path) -> IdentityNetwork:
    if is_safetensors(path):
        state, _ = read_state(path)
    else:
        with open_checkpoint(path) as file:
            state = file.state(file.weights)
    prefixes = ("facenet.", "module.", "")
    prefix = next(
        prefix for prefix in prefixes if any(name.startswith(prefix) for name in state) or not prefix
    )
    try:
        return IdentityNetwork.from_state({name.removeprefix(prefix): value for name, value in state.items()})
    except (CheckpointError, *DAMAGE) as error:
        raise CheckpointError(f"{path}: {error}; give ArcFace's model_ir_se50.pth") from error


def save_identity(network: IdentityNetwork, path: str | Path) -> None:
    """Write an identity network as safetensors."""
    write_state(path, network.state_dict(), {"format": _FORMAT})
