"""StyleCLIP as a library: StyleGAN2, CLIP, channel relevance, style directions, inversion.

    G = load_generator("ffhq.safetensors")
    w_plus = G.map(z, truncation_psi=0.7)
    image = G.synthesize(G.styles(w_plus))

One letter per axis, everywhere: B batch, L rows of w_plus, N editable style channels, M all style
channels, C channels of one layer, D width of the CLIP embedding, H W pixels. Images are
``[B, 3, H, W]`` float32 in -1..1. Knows nothing of Prefect, storage or Parquet.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from styleclip_core.models.checkpoints import load_generator, save_generator
    from styleclip_core.models.clip import load_clip
    from styleclip_core.models.encoder import load_encoder
    from styleclip_core.models.identity import load_identity
    from styleclip_core.models.lpips import load_perceptual
    from styleclip_core.models.mapper import load_mapper
    from styleclip_core.studio import Studio

__version__ = "0.1.0"

__all__ = [
    "Studio", "__version__", "load_clip", "load_encoder", "load_generator", "load_identity", "load_mapper",
    "load_perceptual", "save_generator",
]  # fmt: skip

# imported when they are asked for: they bring torch, for which settings and errors have no use
_MODULES = {
    "Studio": "studio",
    "load_clip": "models.clip",
    "load_encoder": "models.encoder",
    "load_generator": "models.checkpoints",
    "load_identity": "models.identity",
    "load_mapper": "models.mapper",
    "load_perceptual": "models.lpips",
    "save_generator": "models.checkpoints",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"styleclip_core.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
