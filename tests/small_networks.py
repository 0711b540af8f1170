"""Networks that compute next to nothing, as files: for tests and benchmarks of all that is around them."""

from __future__ import annotations

from pathlib import Path

import torch

from styleclip_core import save_generator
from styleclip_core.models.encoder import Encoder, EncoderConfig, save_encoder
from styleclip_core.models.identity import CompactIdentity, IdentityConfig, save_identity
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig


def write_small_networks(folder: Path) -> dict[str, str]:
    """Write a generator of 16 x 16 px, a CLIP of 8 dimensions and an encoder; returns their paths by name."""
    from clip.model import CLIP

    folder.mkdir(parents=True, exist_ok=True)
    found = {
        name: str(folder / f"{name}.{'pt' if name == 'clip' else 'safetensors'}")
        for name in ("generator", "clip", "encoder")
    }
    torch.manual_seed(0)
    config = GeneratorConfig(16, 8, 8, mapping_layers=2, channel_base=64, channel_max=6)
    save_generator(Generator(config).eval(), Path(found["generator"]))
    write_clip(CLIP(16, 32, (1, 1, 1, 1), 8, None, 77, 49408, 64, 1, 1), found["clip"])
    encoder = Encoder(EncoderConfig(16, 6, 8, widths=(4, 4, 4, 4), hidden=8)).eval()
    save_encoder(encoder, Path(found["encoder"]))
    return found


def write_clip(network: torch.nn.Module, path: Path | str) -> None:
    """Write a CLIP of OpenAI's architecture as a file that states its activation."""
    torch.save({"state_dict": network.state_dict(), "activation": "quickgelu"}, path)


def write_small_judges(folder: Path) -> dict[str, str]:
    """Write an identity network and AlexNet's backbone, with random weights; returns their paths by name."""
    from torchvision.models import alexnet  # type: ignore[import-untyped]

    found = {"identity": str(folder / "identity.safetensors"), "perceptual": str(folder / "alexnet.pth")}
    torch.manual_seed(0)
    save_identity(CompactIdentity(IdentityConfig(16, (4, 6), 10, 5)).eval(), Path(found["identity"]))
    with torch.device("meta"):
        shapes = alexnet(weights=None).features.state_dict(prefix="features.")
    state = {name: torch.randn(value.shape) * value[0].numel() ** -0.5 for name, value in shapes.items()}
    torch.save(state, found["perceptual"])
    return found
