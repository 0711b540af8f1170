"""Image of a face -> identity embedding: what tells people apart, and nothing else.

Two networks: IR-SE50 of ArcFace with the crop that StyleCLIP's loss uses, for photographs of people, and a
compact one for small generators, such as that of the embedded world. ``load_identity`` reads both.

Shapes: B batch, H W pixels, D width of the embedding. Images are in -1..1, aligned as FFHQ.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from styleclip_core.errors import CheckpointError
from styleclip_core.files.checkpoint import Checkpoint
from styleclip_core.models.ir_se import IRSE50
from styleclip_core.models.network import CompactTrunk, filled
from styleclip_core.models.weights import read_network, refusing, save_network

_FORMAT = "styleclip-identity-1"
_IR_SE50, _COMPACT = "ir-se50", "compact"
_WHOLE, _FACE = 256, 112
_ROWS, _COLUMNS = slice(35, 223), slice(32, 220)  # the face in an FFHQ-aligned image of 256 pixels


class IdentityNetwork(IRSE50):
    """ArcFace.

    Attributes:
        embedding_dim: Width D of the embedding.
    """

    embedding_dim = 512

    def __init__(self) -> None:
        super().__init__()
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512),
            nn.Dropout(0.6),
            nn.Flatten(),
            nn.Linear(512 * 7 * 7, 512),
            nn.BatchNorm1d(512),
        )

    def embed(self, image: Tensor) -> Tensor:
        """Embed FFHQ-aligned images.

        An embedding has the same bits in every batch of one size; alone and in a batch, it differs by
        rounding.

        Args:
            image: ``[B, 3, H, W]`` in -1..1; gradients flow back to it.

        Returns:
            Unit rows, ``[B, 512]`` float32. The inner product of two is their identity similarity.
        """
        # StyleCLIP's loss: averaged to 256 pixels, the face cut out, averaged again to what ArcFace reads
        if image.shape[-2:] != (_WHOLE, _WHOLE):
            image = F.adaptive_avg_pool2d(image, (_WHOLE, _WHOLE))
        return self.embed_face(F.adaptive_avg_pool2d(image[:, :, _ROWS, _COLUMNS], (_FACE, _FACE)))

    def embed_face(self, face: Tensor) -> Tensor:
        """Embed faces that are cropped already, ``[B, 3, 112, 112]`` in -1..1, to unit rows."""
        return F.normalize(self.output_layer(self.body(self.input_layer(face))), dim=1)

    forward = embed


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
        # sizes come from a file: they are bounded before any memory is taken for them
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


class CompactIdentity(CompactTrunk):
    """A small convolutional network.

    Attributes:
        config: Its sizes.
    """

    def __init__(self, config: IdentityConfig) -> None:
        super().__init__(config.resolution, config.widths, config.hidden)
        self.config = config
        self.head = nn.Linear(config.hidden, config.embedding_dim)

    @property
    def embedding_dim(self) -> int:
        """Return the width D of the embedding."""
        return self.config.embedding_dim

    def embed(self, image: Tensor) -> Tensor:
        """Embed aligned images.

        An embedding has the same bits in every batch of one size; alone and in a batch, it differs by
        rounding.

        Args:
            image: ``[B, 3, H, W]`` in -1..1; another size than the network's is resized by area.
                Gradients flow back to it.

        Returns:
            Unit rows, ``[B, D]`` float32. The inner product of two is their identity similarity.
        """
        return F.normalize(self.head(self.features(image)).float(), dim=1)

    forward = embed


def load_identity(path: str | Path, device: str | torch.device = "cpu") -> IdentityNetwork | CompactIdentity:
    """Read an identity network.

    Args:
        path: ``model_ir_se50.pth`` as published (a plain state dict, or one under ``state_dict``), or
            the safetensors that ``save_identity`` writes of either network.
        device: Where its weights go.

    Raises:
        CheckpointError: If the file is missing, damaged, hostile or of another architecture.
    """
    return read_network(path, device, ours=_from_safetensors, theirs=_from_checkpoint)


def _from_safetensors(
    path: Path, state: dict[str, Tensor], metadata: dict[str, str]
) -> IdentityNetwork | CompactIdentity:
    with refusing(f"{path} holds no usable identity network"):
        config = json.loads(metadata.get("config", "{}"))
        architecture = config.pop("architecture", _IR_SE50)

        if architecture == _COMPACT:
            # one stage too many is kept, so that the check of the sizes sees it
            sizes = IdentityConfig(**config | {"widths": tuple(config["widths"][:9])})
            return filled(lambda: CompactIdentity(sizes), state, what="compact identity network")

        if architecture != _IR_SE50:
            raise CheckpointError(
                f"its architecture {architecture!r:.60} is neither {_IR_SE50} nor {_COMPACT}"
            )

    return _ir_se50(path, state)


def _from_checkpoint(file: Checkpoint) -> IdentityNetwork:
    return _ir_se50(file.path, file.state(file.weights))


def _ir_se50(path: Path, state: dict[str, Tensor]) -> IdentityNetwork:
    # StyleCLIP's loss holds the network as ``facenet``, DataParallel any as ``module``
    prefix = next((each for each in ("facenet.", "module.") if any(n.startswith(each) for n in state)), "")
    named = {name.removeprefix(prefix): value for name, value in state.items()}

    with refusing(str(path), "give ArcFace's model_ir_se50.pth"):
        return filled(IdentityNetwork, named, what="IR-SE50 identity network")


def save_identity(network: IdentityNetwork | CompactIdentity, path: str | Path) -> None:
    """Write an identity network as safetensors; the weights of a compact one in float16."""
    if isinstance(network, IdentityNetwork):
        save_network(network, path, _FORMAT)
    else:
        config = {"architecture": _COMPACT, **asdict(network.config)}
        save_network(network, path, _FORMAT, config, half=True)
