"""CLIP: texts and images -> unit embeddings, with CLIP's own preprocessing on the device.

Shapes: B images, D width of the embedding (read off the model), H W pixels. Embeddings are unit
rows in float32, whatever precision the network runs in. The ``clip`` package is imported when a
model is loaded, so that the rest of the library works where it is not installed.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from styleclip_core.errors import CheckpointError, PromptError
from styleclip_core.models.checkpoints import file_sha256, read_plain_pickle

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class ClipModel:
    """A loaded CLIP.

    Attributes:
        name: Name or path it was loaded by.
        fingerprint: SHA-256 of its weights file.
        model: OpenAI's network, in evaluation mode, its parameters frozen.
        device: Where it runs.
        embedding_dim: D.
        input_resolution: Side of the images the network reads, in pixels.
    """

    def __init__(self, model: nn.Module, *, name: str, fingerprint: str, device: torch.device) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self.name, self.fingerprint, self.device = name, fingerprint, device
        self.input_resolution = int(cast(Any, model.visual).input_resolution)
        self.embedding_dim = int(cast(Tensor, model.text_projection).shape[1])

    def preprocess(self, image: Tensor) -> Tensor:
        """Resize, crop and normalize as CLIP does.

        Matches CLIP's PIL preprocessing of the same image as 8-bit pixels to within 2/255 before
        normalization: PIL rounds to 8 bits after each of its two passes, this does not. The passes
        go over the rows, then over the columns, as in the Pillow that CLIP was published with;
        Pillow 13 turns them round for some tall images that it shrinks, which then differ by up to
        some 30/255 at hard edges. Square images are not affected.

        Args:
            image: ``[B, 3, H, W]`` in -1..1; values outside are clamped, as 8-bit pixels would be.

        Returns:
            ``[B, 3, R, R]`` normalized, R the input resolution.
        """
        pixels = ((image.float() + 1) / 2).clamp(0, 1)
        side = self.input_resolution
        height, width = pixels.shape[-2:]
        if min(height, width) != side:
            short, long = min(height, width), max(height, width)
            scaled = int(side * long / short)
            size = (side, scaled) if height <= width else (scaled, side)
            # PIL goes over the rows, clips to 8 bits, then over the columns
            for step in ((height, size[1]), size):
                pixels = F.interpolate(pixels, size=step, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (round((extent - side) / 2) for extent in pixels.shape[-2:])
        pixels = pixels[..., top : top + side, left : left + side]
        mean = torch.tensor(_MEAN, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(_STD, device=pixels.device).view(1, 3, 1, 1)
        return (pixels - mean) / std

    def embed_images(self, image: Tensor) -> Tensor:
        """Embed images.

        Args:
            image: ``[B, 3, H, W]`` in -1..1; gradients flow back to it.

        Returns:
            Unit rows, ``[B, D]`` float32.
        """
        pixels = self.preprocess(image).contiguous(memory_format=torch.channels_last)
        return F.normalize(self.model.encode_image(pixels.to(self.model.dtype)).float(), dim=1)  # type: ignore[operator, arg-type]

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Embed texts.

        Args:
            texts: Prompts, each short enough for CLIP's context of 77 tokens.

        Returns:
            Unit rows, ``[len(texts), D]`` float32.

        Raises:
            PromptError: If a text is too long.
        """
        import clip

        try:
            tokens = clip.tokenize(list(texts))
        except RuntimeError as error:
            raise PromptError(
                f"prompt {_first_too_long(texts)[:60]!r}... is longer than CLIP's context of 77 tokens; "
                "shorten it"
            ) from error
        embedded = [self.model.encode_text(part.to(self.device)) for part in tokens.split(256)]  # type: ignore[operator]
        return F.normalize(torch.cat(embedded).float(), dim=1)


def _first_too_long(texts: Sequence[str]) -> str:
    # characters say little: a long word can be one token, a single emoji several
    import clip

    tokens = clip.tokenize(list(texts), context_length=max(map(len, texts)) * 4 + 2)
    return texts[int(((tokens != 0).sum(dim=1) > 77).int().argmax())]


def load_clip(name_or_path: str | Path, device: str | torch.device = "cpu") -> ClipModel:
    """Load a CLIP.

    Args:
        name_or_path: One of OpenAI's names (``"ViT-B/32"``; downloaded and checked by the clip
            package), or the path of a state dict or of one of OpenAI's TorchScript archives.
        device: Where it runs; float32 on the CPU, as published elsewhere.

    Raises:
        CheckpointError: If the name is unknown or cannot be downloaded, or the file is missing,
            damaged or untrusted.
    """
    with warnings.catch_warnings():  # clip-anytorch imports pkg_resources, which warns at every user
        warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
        import clip
        import clip.clip
        from clip.model import build_model

    name, where = str(name_or_path), torch.device(device)
    if name in clip.available_models():
        path = _download(name)
    else:
        path = Path(name)
        if not path.is_file():
            names = ", ".join(clip.available_models())
            raise CheckpointError(f"{name!r} is neither a file nor a CLIP name; the names are {names}")
    fingerprint = file_sha256(path)
    published = {part for url in clip.clip._MODELS.values() for part in re.findall(r"[0-9a-f]{64}", url)}
    if fingerprint in published:  # TorchScript: opened only because this very file is OpenAI's
        state = torch.jit.load(str(path), map_location="cpu").state_dict()
    else:
        content = read_plain_pickle(path)
        state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or "text_projection" not in state:
        raise CheckpointError(
            f"{path} holds no CLIP weights ('text_projection' is missing); give the state dict of a CLIP"
        )
    try:
        model = build_model(dict(state))
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} is no CLIP of OpenAI's architecture ({reason}); give the state dict of one"
        ) from error
    model = model.float() if where.type == "cpu" else model
    return ClipModel(model, name=name, fingerprint=fingerprint, device=where)


def _download(name: str) -> Path:
    import clip.clip

    try:
        return Path(clip.clip._download(clip.clip._MODELS[name], str(Path.home() / ".cache" / "clip")))
    except (OSError, RuntimeError) as error:  # no network, or a download whose hash is wrong
        raise CheckpointError(
            f"CLIP {name!r} cannot be downloaded ({error}); check the network or give the path of its file"
        ) from error
