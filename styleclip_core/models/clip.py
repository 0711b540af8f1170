"""CLIP: texts and images -> unit embeddings, with CLIP's own preprocessing on the device.

Shapes: B images, D width of the embedding (read off the model), H W pixels. Embeddings are unit
rows in float32, whatever precision the network runs in. The ``clip`` package is imported when a
model is loaded, so that the rest of the library works where it is not installed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from styleclip_core.errors import CheckpointError, PromptError
from styleclip_core.files.checkpoint import (
    DAMAGE,
    Checkpoint,
    file_sha256,
    guarded,
    is_array,
    is_safetensors,
    open_checkpoint,
    read_state,
)
from styleclip_core.files.values import Record
from styleclip_core.images import pad_square
from styleclip_core.models.network import is_finite
from styleclip_core.models.weights import save_network

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_FORMAT = "styleclip-clip-1"
_MAX_DEPTH, _MAX_TENSORS, _MAX_CONTEXT = 32, 5_000, 1_024  # of RN50x64 some 1,100 tensors; texts of 77 tokens
_SIZES = ("input_resolution", "context_length", "vocab_size")  # beside the weights in OpenAI's archives
_PARAMETERS = {
    "weight", "bias", "in_proj_weight", "in_proj_bias", "proj", "class_embedding", "positional_embedding",
    "text_projection", "logit_scale", "running_mean", "running_var", "num_batches_tracked",
}  # fmt: skip


class ClipModel:
    """A loaded CLIP.

    Attributes:
        name: Name or path it was loaded by.
        fingerprint: SHA-256 of its weights file.
        model: OpenAI's network, in evaluation mode, its parameters frozen.
        device: Where it runs.
        embedding_dim: D.
        input_resolution: Side of the images the network reads, in pixels.
        logit_scale: Its temperature: what cosines are multiplied by before a softmax (100 in OpenAI's).
    """

    def __init__(self, model: nn.Module, *, name: str, fingerprint: str, device: torch.device) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self.name, self.fingerprint, self.device = name, fingerprint, device
        self.input_resolution = int(cast(Any, model.visual).input_resolution)

        self._image_tower = fold_batch_norm(cast(nn.Module, self.model.visual))
        self.embedding_dim = int(cast(Tensor, model.text_projection).shape[1])

        # once, as the host would have to wait for the device at every use
        self.logit_scale = float(cast(Tensor, self.model.logit_scale).exp())
        self._mean, self._std = (torch.tensor(each, device=device).view(1, 3, 1, 1) for each in (_MEAN, _STD))

    def preprocess(self, image: Tensor) -> Tensor:
        """Resize, crop and normalize as CLIP does.

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

        side = self.input_resolution
        height, width = pixels.shape[-2:]

        if min(height, width) != side:
            short, long = min(height, width), max(height, width)
            scaled = int(side * long / short)
            size = (side, scaled) if height <= width else (scaled, side)
            # PIL goes over the rows, clips to 8 bits, then over the columns
            for step in ((height, size[1]), size):
                pixels = F.interpolate(pixels, size=step, mode="bicubic", antialias=True).clamp(0, 1)

        # rounded as torchvision's CenterCrop does, to the even neighbor
        top, left = (round((extent - side) / 2) for extent in pixels.shape[-2:])
        pixels = pixels[..., top : top + side, left : left + side]

        return (pixels - self._mean) / self._std

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
        return F.normalize(self._image_tower(pixels.to(self.model.dtype)).float(), dim=1)  # type: ignore[arg-type]

    def embed_whole(self, image: Tensor) -> Tensor:
        """Embed images of any shape without cropping them, ``[B, 3, H, W]`` in -1..1 -> ``[B, D]``.

        Square images are embedded as by ``embed_images``; others are put on a gray square first.
        """
        return self.embed_images(pad_square(image))

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

        # in parts, so that memory does not grow with the number of prompts
        embedded = [self.model.encode_text(part.to(self.device)) for part in tokens.split(256)]  # type: ignore[operator]
        return F.normalize(torch.cat(embedded).float(), dim=1)


def fold_batch_norm(tower: nn.Module) -> nn.Module:
    """Fold the normalizations of a residual image tower into the weights of its convolutions.

    The function stays the same with a tenth less work. A vision transformer is returned as it is, and so
    is a tower in half precision, whose folded weights would be rounded again.
    """
    layers = list(tower.modules())

    normalized = any(isinstance(each, nn.BatchNorm2d) for each in layers)
    if not normalized or any(each.dtype != torch.float32 for each in tower.parameters()):
        return tower

    # a copy: the published tower stays as it is for who asks for it
    folded = deepcopy(tower)
    for module in folded.modules():
        children = dict(module.named_children())
        # OpenAI's names: conv1, bn1 of a block; 0, 1 of a down-sampling
        for name in [name for name, child in children.items() if isinstance(child, nn.BatchNorm2d)]:
            before = "0" if name == "1" else name.replace("bn", "conv")
            setattr(
                module,
                before,
                fuse_conv_bn_eval(cast(nn.Conv2d, children[before]), cast(nn.BatchNorm2d, children[name])),
            )
            setattr(module, name, nn.Identity())

    return folded


def _first_too_long(texts: Sequence[str]) -> str:
    # characters say little: a long word can be one token, a single emoji several
    return texts[int((count_tokens(texts) > 75).int().argmax())]


def count_tokens(texts: Sequence[str]) -> Tensor:
    """Return how many pieces of CLIP's vocabulary each text is, ``[len(texts)]``, without the two ends."""
    import clip

    tokens: Tensor = clip.tokenize(list(texts), context_length=max(map(len, texts)) * 4 + 2)
    return (tokens != 0).sum(dim=1) - 2


def load_clip(name_or_path: str | Path, device: str | torch.device = "cpu") -> ClipModel:
    """Load a CLIP.

    Args:
        name_or_path: One of OpenAI's names (``"ViT-B/32"``; downloaded and checked by the clip
            package), or the path of a TorchScript archive like OpenAI's, of a state dict, or of the
            safetensors that ``save_clip`` writes. Archives are read for their tensors alone.
        device: Where it runs; float32 on the CPU, as published elsewhere.

    Raises:
        CheckpointError: If the name is unknown or cannot be downloaded, or the file is missing,
            damaged, hostile or no CLIP of OpenAI's architecture.
    """
    with warnings.catch_warnings():  # clip-anytorch imports pkg_resources, which warns at every user
        warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
        import clip
        import clip.clip

    name, where = str(name_or_path), torch.device(device)
    if name in clip.available_models():
        path = _download(name)
    else:
        path = Path(name)
        if not path.is_file():
            names = ", ".join(clip.available_models())
            raise CheckpointError(f"{name!r} is neither a file nor a CLIP name; the names are {names}")

    with guarded(path):
        model = _build(path, _read_weights(path), where)
    return ClipModel(model, name=name, fingerprint=file_sha256(path), device=where)


def save_clip(model: ClipModel, path: str | Path) -> None:
    """Write a CLIP as safetensors in float16, the precision that OpenAI's are published in."""
    save_network(model.model, path, _FORMAT, half=True)


def _read_weights(path: Path) -> dict[str, Tensor]:
    if is_safetensors(path):
        state, _ = read_state(path)
    else:
        with open_checkpoint(path) as file:
            weights = file.weights
            if file.kind == "torchscript" and isinstance(weights, Record):
                weights = dict(_scripted_tensors(file, weights))
            state = file.state(weights) if isinstance(weights, dict) else {}

    if "text_projection" not in state:
        raise CheckpointError(
            f"{path} holds no CLIP weights ('text_projection' is missing); give the state dict of a CLIP"
        )

    return {name: tensor for name, tensor in state.items() if name not in _SIZES}


def _scripted_tensors(file: Checkpoint, root: Record) -> Iterator[tuple[str, object]]:
    """Yield the parameters of a TorchScript module by the names that its state dict would have."""
    pending: list[tuple[str, Record, int]] = [("", root, 0)]
    while pending:
        prefix, record, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise CheckpointError(f"{file.path} nests modules more than {_MAX_DEPTH} deep; fetch it again")

        # a module can hold itself, or a million others: each is paid for before it is walked
        file.visit(record.state)
        for name, value in record.state.items():
            if isinstance(value, Record):
                pending.append((f"{prefix}{name}.", value, depth + 1))
            # others are constants, such as the attention mask, which the network makes itself
            elif is_array(value) and name in _PARAMETERS:
                yield prefix + name, value


def _build(path: Path, state: dict[str, Tensor], device: torch.device) -> nn.Module:
    from clip.model import build_model

    try:
        _check_sizes(state)
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing is copied
            build_model(dict(state))  # refuses what does not fit before memory is taken for it
        model: nn.Module = build_model(dict(state))
        if device.type == "cpu":  # build_model rounds to float16; what a file holds in float32 stays so
            model = model.float()
            model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    except (CheckpointError, AssertionError, *DAMAGE) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"{path} is no CLIP of OpenAI's architecture ({reason}); give the state dict of one"
        ) from error

    # one such value makes every embedding none
    broken = [name for name, tensor in state.items() if not is_finite(tensor)]
    if broken:
        raise CheckpointError(f"{path} holds values that are not finite, in {broken[0]}; fetch it again")
    return model


def _check_sizes(state: Mapping[str, Tensor]) -> None:
    """Refuse a file whose few size-giving tensors promise a network that its others cannot fill."""
    if len(state) > _MAX_TENSORS:
        raise CheckpointError(f"it has {len(state)} tensors, more than any CLIP")

    if state["positional_embedding"].shape[0] > _MAX_CONTEXT:  # a square of it is built as a mask
        raise CheckpointError(f"it reads texts of {state['positional_embedding'].shape[0]} tokens")

    width = state["ln_final.weight"].shape[0]
    for name, axis in (("positional_embedding", 1), ("token_embedding.weight", 1), ("text_projection", 0)):
        tensor = state[name]
        if tensor.ndim != 2 or tensor.shape[axis] != width:
            raise CheckpointError(f"{name} has the shape {list(tensor.shape)} beside a width of {width}")


def _download(name: str) -> Path:
    import clip.clip

    try:
        return Path(clip.clip._download(clip.clip._MODELS[name], str(Path.home() / ".cache" / "clip")))
    except (OSError, RuntimeError) as error:  # no network, or a download whose hash is wrong
        raise CheckpointError(
            f"CLIP {name!r} cannot be downloaded ({error}); check the network or give the path of its file"
        ) from error
