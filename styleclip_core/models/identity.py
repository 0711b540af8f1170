"""Image of a face -> identity embedding: what tells people apart, and nothing else.

Two networks: IR-SE50 of ArcFace with the crop that StyleCLIP's loss uses, for photographs of people, and a
compact one for small generators, such as that of the embedded world. ``load_identity`` reads both.

Shapes: B batch, H W pixels, D width of the embedding. Images are in -1..1, aligned as FFHQ.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
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
_IR_SE50, _COMPACT = "ir-se50", "compact"
_WHOLE, _FACE = 256, 112
_ROWS, _COLUMNS = slice(35, 223), slice(32, 220)  # the face in an FFHQ-aligned image of 256 pixels


class IdentityNetwork(IRSE50):
    """ArcFace; weights are random until a state is loaded.

    Attributes:
        embedding_dim: Width D of the embedding.
        fingerprint: SHA-256 of the weights file, set by the loader.
    """

    embedding_dim = 512

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


@dataclass(frozen=True, slots=True)
class IdentityConfig:
    """What fixes the architecture of a compact identity network.

    Attributes:
        resolution: Side of the images it reads, ``2 ** len(widths)`` times a whole number.
        widths: Channels of its stages, each of half the side of the one before.
        hidden: Width of the layer before the head.
        embedding_dim: Width D of the embedding.
    """

    resolution: int = 64
    widths: tuple[int, ...] = (24, 48, 96, 128)
    hidden: int = 192
    embedding_dim: int = 64

    def __post_init__(self) -> None:
        sizes = (self.hidden, self.embedding_dim, *self.widths)
        if not 1 <= len(self.widths) <= 8 or not all(
            type(size) is int and 0 < size <= 4096 for size in sizes
        ):
            raise CheckpointError(f"an identity network of sizes {sizes[:10]!r:.100} cannot be built")
        step = 1 << len(self.widths)
        if type(self.resolution) is not int or self.resolution not in range(step, 1025, step):
            raise CheckpointError(
                f"an identity network of {len(self.widths)} stages reads multiples of {step} pixels up to "
                f"1024, got {self.resolution!r:.40}"
            )


class CompactIdentity(nn.Module):
    """A small convolutional network; weights are random until a state is loaded.

    Attributes:
        config: Its sizes.
        fingerprint: SHA-256 of the weights file, set by the loader.
    """

    def __init__(self, config: IdentityConfig) -> None:
        super().__init__()
        self.config = config
        self.fingerprint = ""
        stages: list[nn.Module] = []
        for before, after in pairwise((3, *config.widths)):
            stages.append(_conv(before, after, stride=2))
            if before != 3:
                stages.append(_conv(after, after, stride=1))
        self.stages = nn.Sequential(*stages)
        side = config.resolution >> len(config.widths)
        self.trunk = nn.Linear(config.widths[-1] * side**2, config.hidden)
        self.head = nn.Linear(config.hidden, config.embedding_dim)

    @property
    def embedding_dim(self) -> int:
        """Return the width D of the embedding."""
        return self.config.embedding_dim

    def embed(self, image: Tensor) -> Tensor:
        """Embed aligned images.

        Args:
            image: ``[B, 3, H, W]`` in -1..1; another size than the network's is resized by area.
                Gradients flow back to it.

        Returns:
            Unit rows, ``[B, D]`` float32. The inner product of two is their identity similarity.
        """
        return F.normalize(self.head(self.features(image)).float(), dim=1)

    def features(self, image: Tensor) -> Tensor:
        """Return what the head reads, ``[B, hidden]``; images as for ``embed``."""
        side = self.config.resolution
        if image.shape[-2:] != (side, side):
            image = F.interpolate(image, size=(side, side), mode="area")
        features: Tensor = self.trunk(self.stages(image).flatten(1)).relu()
        return features

    forward = embed

    @classmethod
    def from_state(cls, config: IdentityConfig, state: dict[str, Tensor]) -> Self:
        """Build a network in evaluation mode.

        Raises:
            CheckpointError: If a tensor is missing, left over, of another shape or not finite.
        """
        with torch.device("meta"):  # no memory for sizes that the weights may not have
            network = cls(config)
        load_exactly(network, state, what="compact identity network")
        return network.eval().requires_grad_(False)


def load_identity(path: str | Path, device: str | torch.device = "cpu") -> IdentityNetwork | CompactIdentity:
    """Read an identity network.

    Args:
        path: ``model_ir_se50.pth`` as published (a plain state dict, or one under ``state_dict``), or
            the safetensors that ``save_identity`` writes of either network.
        device: Where its weights go.

    Raises:
        CheckpointError: If the file is missing, damaged, hostile or of another architecture.
    """
    path = Path(path)
    with guarded(path):
        network = _from_safetensors(path) if is_safetensors(path) else _from_checkpoint(path)
    network.fingerprint = file_sha256(path)
    network.to(device)
    return network


def _from_safetensors(path: Path) -> IdentityNetwork | CompactIdentity:
    state, metadata = read_state(path)
    try:
        config = json.loads(metadata.get("config", "{}"))
        architecture = config.pop("architecture", _IR_SE50)
        if architecture == _COMPACT:
            return CompactIdentity.from_state(
                IdentityConfig(**config | {"widths": tuple(config["widths"][:9])}), state
            )
        if architecture != _IR_SE50:
            raise CheckpointError(
                f"its architecture {architecture!r:.60} is neither {_IR_SE50} nor {_COMPACT}"
            )
    except (CheckpointError, *DAMAGE) as error:
        raise CheckpointError(f"{path} holds no usable identity network: {error}; fetch it again") from error
    return _ir_se50(path, state)


def _from_checkpoint(path: Path) -> IdentityNetwork:
    with open_checkpoint(path) as file:
        return _ir_se50(path, file.state(file.weights))


def _ir_se50(path: Path, state: dict[str, Tensor]) -> IdentityNetwork:
    prefixes = ("facenet.", "module.", "")
    prefix = next(
        prefix for prefix in prefixes if any(name.startswith(prefix) for name in state) or not prefix
    )
    try:
        return IdentityNetwork.from_state({name.removeprefix(prefix): value for name, value in state.items()})
    except (CheckpointError, *DAMAGE) as error:
        raise CheckpointError(f"{path}: {error}; give ArcFace's model_ir_se50.pth") from error


def save_identity(network: IdentityNetwork | CompactIdentity, path: str | Path) -> None:
    """Write an identity network as safetensors; the weights of a compact one in float16."""
    state = network.state_dict()
    if isinstance(network, IdentityNetwork):
        write_state(path, state, {"format": _FORMAT})
        return
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    config = json.dumps({"architecture": _COMPACT, **asdict(network.config)})
    write_state(path, half, {"format": _FORMAT, "config": config})


def _conv(before: int, after: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
