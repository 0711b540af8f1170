"""CLIP: texts and images -> unit embeddings, with CLIP's own preprocessing on the device.

Shapes: B images, D width of the embedding (read off the model), H W pixels. Embeddings are unit
rows in float32, whatever precision the network runs in. What a family of CLIPs computes is in
``clip_openai``, ``clip_open_clip`` and ``clip_transformers``, whose packages are imported when one is loaded.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from styleclip_core.errors import CheckpointError
from styleclip_core.files.checkpoint import guarded
from styleclip_core.images import pad_square
from styleclip_core.models.clip_names import (
    OPENAI_NAMES,
    Activation,
    ClipChoice,
    nearest_names,
    parse_clip,
)
from styleclip_core.models.clip_openai import OpenAiNetwork, download_openai, load_openai
from styleclip_core.models.clip_openai import count_tokens as count_tokens
from styleclip_core.models.clip_openai import fold_batch_norm as fold_batch_norm
from styleclip_core.models.clip_preprocessing import Preprocessing
from styleclip_core.models.clip_sources import load_published
from styleclip_core.models.weights import save_network

_FORMAT = "styleclip-clip-1"
_TEXTS = 256  # at once, so that memory does not grow with the number of prompts


class ClipNetwork(Protocol):
    """What a family of CLIPs brings: its towers, its tokens, and what it wants done to images."""

    module: nn.Module
    preprocessing: Preprocessing
    multilingual: bool
    embedding_dim: int

    @property
    def activation(self) -> str:
        """Return what it computes with between the two layers of a block."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Return the precision that it computes in."""
        ...

    def prepare(self) -> None:
        """Do what is done once, when the weights are on their device."""
        ...

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode what ``preprocessing`` made, ``[B, 3, R, R]`` -> ``[B, D]``."""
        ...

    def encode_images_as_published(self, pixels: Tensor) -> Tensor:
        """Encode by the published module itself, ``[B, 3, R, R]`` -> ``[B, D]``."""
        ...

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return a row of tokens for each text; raises PromptError if one is too long."""
        ...

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode tokens, a row a text -> ``[N, D]``."""
        ...


class ClipModel:
    """A loaded CLIP.

    Attributes:
        name: What it was loaded by.
        fingerprint: What its results are named by: for OpenAI's way of computing the SHA-256 of the weights
            file, for others a hash of that, of the architecture, its activation and its preprocessing.
        network: Its family's part.
        model: The network, in evaluation mode, its parameters frozen.
        device: Where it runs.
        activation: ``"quickgelu"`` or ``"gelu"``.
        multilingual: Whether it was trained on texts of many languages, by the size of its vocabulary.
        embedding_dim: D.
        input_resolution: Side of the images the network reads, in pixels.
        logit_scale: Its temperature: what cosines are multiplied by before a softmax (100 in OpenAI's).
    """

    def __init__(self, network: ClipNetwork, *, name: str, fingerprint: str, device: torch.device) -> None:
        self.network = network
        self.model = network.module.to(device).eval().requires_grad_(False)
        self.name, self.fingerprint, self.device = name, fingerprint, device
        self.activation, self.multilingual = network.activation, network.multilingual
        self.embedding_dim, self.input_resolution = network.embedding_dim, network.preprocessing.side
        network.prepare()

        # once, as the host would have to wait for the device at every use
        scale = self.model.get_parameter("logit_scale")
        self.logit_scale = float(scale.exp().max())
        mean, std = network.preprocessing.mean, network.preprocessing.std
        self._mean, self._std = (torch.tensor(each, device=device).view(1, 3, 1, 1) for each in (mean, std))

    def preprocess(self, image: Tensor) -> Tensor:
        """Resize, crop and normalize as this CLIP wants it.

        Matches CLIP's PIL preprocessing of the same image as 8-bit pixels to within 2/255 before
        normalization: PIL rounds to 8 bits after each of its two passes, this does not. It resizes
        along the rows first, then along the columns, as did the Pillow that CLIP was published with;
        Pillow 13 swaps the two for some tall images that it shrinks, which then differ by up to
        some 30/255 at hard edges. Square images are not affected.

        Args:
            image: ``[B, 3, H, W]`` in -1..1; values outside are clamped, as 8-bit pixels would be.

        Returns:
            ``[B, 3, R, R]`` normalized, R the input resolution.
        """
        pixels = ((image.float() + 1) / 2).clamp(0, 1)
        return (self.network.preprocessing.resized(pixels) - self._mean) / self._std

    def embed_images(self, image: Tensor) -> Tensor:
        """Embed images.

        An embedding has the same bits in every batch of one size; alone and in a batch, it differs by
        rounding.

        Args:
            image: ``[B, 3, H, W]`` in -1..1; gradients flow back to it.

        Returns:
            Unit rows, ``[B, D]`` float32.
        """
        pixels = self.preprocess(image).contiguous(memory_format=torch.channels_last)
        return F.normalize(self.network.encode_images(pixels.to(self.network.dtype)).float(), dim=1)

    def embed_whole(self, image: Tensor) -> Tensor:
        """Embed images of any shape without cropping them, ``[B, 3, H, W]`` in -1..1 -> ``[B, D]``.

        Square images are embedded as by ``embed_images``; others are put on a gray square first.
        """
        return self.embed_images(pad_square(image))

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Embed what the network shall see as it is, ``[B, 3, R, R]`` -> unit rows ``[B, D]`` float32."""
        encoded = self.network.encode_images_as_published(pixels.to(self.network.dtype))
        return F.normalize(encoded.float(), dim=1)

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Embed texts.

        Args:
            texts: Prompts, each short enough for the context of this CLIP (OpenAI's have 77 tokens).

        Returns:
            Unit rows, ``[len(texts), D]`` float32.

        Raises:
            PromptError: If a text is too long.
        """
        tokens = self.network.tokenize(texts)
        embedded = [self.network.encode_text(part.to(self.device)) for part in tokens.split(_TEXTS)]
        return F.normalize(torch.cat(embedded).float(), dim=1)


def load_clip(
    name_or_path: str | Path,
    device: str | torch.device = "cpu",
    *,
    assume: Activation | None = "quickgelu",
) -> ClipModel:
    """Load a CLIP.

    Args:
        name_or_path: One of OpenAI's names (``"ViT-B/32"``; downloaded and checked by the clip
            package), a name or file of open_clip's or of the Hugging Face hub (``clip_names`` has all
            spellings), or the path of a TorchScript archive like OpenAI's, of a state dict, of a training's
            checkpoint, or of the safetensors that ``save_clip`` writes. Archives are read for their tensors
            and the names of their classes alone.
        device: Where it runs; float32 on the CPU, as published elsewhere.
        assume: The activation that is assumed, with an ``AssumedActivationWarning``, of a file of OpenAI's
            architecture that does not state its own; None refuses such a file, as all flows do.

    Raises:
        CheckpointError: If the name is unknown or cannot be downloaded, a package is missing, or the file is
            missing, damaged, hostile or no CLIP that is known.
    """
    choice, where = parse_clip(str(name_or_path)), torch.device(device)

    # clip-anytorch imports pkg_resources, which warns at every user
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
        import clip.clip  # noqa: F401

    network, fingerprint = _load(choice, where, assume)
    return ClipModel(network, name=choice.given, fingerprint=fingerprint, device=where)


def _load(choice: ClipChoice, device: torch.device, assume: Activation | None) -> tuple[ClipNetwork, str]:
    path = Path(choice.place)
    if choice.kind == "place" and not path.exists():
        _refuse_missing(choice)
    if choice.kind in ("open_clip", "hub") or choice.architecture or (choice.place and path.is_dir()):
        network, about = load_published(choice)
        return network, fingerprint_of(about)

    path = download_openai(choice.given) if choice.kind == "openai" else path
    with guarded(path):
        openai, digest = load_openai(path, device, choice.activation, assume)
    if openai.activation == "quickgelu":
        return openai, digest
    return openai, fingerprint_of({"weights": digest, "activation": openai.activation})


def fingerprint_of(about: dict[str, object]) -> str:
    """Return one hash of all that decides what a CLIP computes."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _refuse_missing(choice: ClipChoice) -> None:
    if choice.place != choice.given:
        raise CheckpointError(f"no weights file at {choice.place}; give the path of an existing file")
    raise CheckpointError(
        f"{choice.given!r} is neither a file nor a CLIP name; the names are {', '.join(OPENAI_NAMES)}, and "
        f"those that begin with open_clip: or hf-hub:{nearest_names(choice.given)}"
    )


def save_clip(model: ClipModel, path: str | Path) -> None:
    """Write a CLIP as safetensors in float16, the precision that OpenAI's are published in.

    Raises:
        CheckpointError: If it is of another architecture than OpenAI's.
    """
    if not isinstance(model.network, OpenAiNetwork):
        raise CheckpointError(
            f"{model.name} is no CLIP of OpenAI's architecture, and there is no other form to write it in; "
            "use it as it is, nothing in it is run either way"
        )
    save_network(model.model, path, _FORMAT, half=True, extra={"activation": model.activation})
