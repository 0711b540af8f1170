"""CLIPs of OpenAI's architecture: built by clip-anytorch around a state dict, with the right activation.

Shapes: B images, N texts, D width of the embedding. The ``clip`` package is imported when a model is loaded,
so that the rest of the library works where it is not installed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from styleclip_core.errors import CheckpointError, PromptError
from styleclip_core.files.checkpoint import DAMAGE, file_sha256
from styleclip_core.models.clip_files import ClipFile, describe_other, read_clip_file
from styleclip_core.models.clip_names import Activation
from styleclip_core.models.clip_preprocessing import Preprocessing
from styleclip_core.models.network import is_finite

_MAX_TENSORS, _MAX_CONTEXT = 5_000, 1_024  # of RN50x64 some 1,100 tensors; texts of 77 tokens
_CONTEXT = 77
# clip-anytorch takes heads to be 64 wide, as OpenAI's are; of these widths open_clip's are not
_OTHER_HEADS = {1280: "ViT-H-14", 1408: "ViT-g-14", 1664: "ViT-bigG-14", 1792: "ViT-e-14"}
# trained by this project before its files stated their activation
_KNOWN = {"eb2e61723331ddd2e28f8e970b4f401389bf4f57bdd096cc76e7fc468070d9e0"}


class AssumedActivationWarning(UserWarning):
    """A file does not say which activation its network was trained with, and one was assumed."""


class OpenAiNetwork:
    """OpenAI's network; what ``ClipModel`` needs of one.

    Attributes:
        module: The network.
        activation: What it computes with between the two layers of a block.
        preprocessing: What is done to images.
        multilingual: Always false: OpenAI's vocabulary is of English.
    """

    multilingual = False

    def __init__(self, module: nn.Module, activation: Activation = "quickgelu") -> None:
        self.module, self.activation = module, activation
        self.preprocessing = Preprocessing(int(cast(Any, module.visual).input_resolution))
        self.embedding_dim = int(cast(Tensor, module.text_projection).shape[1])
        self._tower: nn.Module | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Return the precision that it computes in."""
        return cast(torch.dtype, self.module.dtype)

    def prepare(self) -> None:
        """Fold what can be folded, once the weights are where they stay."""
        self._tower = fold_batch_norm(cast(nn.Module, self.module.visual))

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode images, ``[B, 3, R, R]`` -> ``[B, D]``."""
        tower = self._tower or cast(nn.Module, self.module.visual)
        return cast(Tensor, tower(pixels.contiguous(memory_format=torch.channels_last)))

    def encode_images_as_published(self, pixels: Tensor) -> Tensor:
        """Encode images by the tower as it is, ``[B, 3, R, R]`` -> ``[B, D]``."""
        return cast(Tensor, self.module.encode_image(pixels))  # type: ignore[operator]

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode texts, ``[N, 77]`` -> ``[N, D]``."""
        return cast(Tensor, self.module.encode_text(tokens))  # type: ignore[operator]

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens of texts, ``[N, 77]``.

        Raises:
            PromptError: If a text is too long.
        """
        import clip

        try:
            return cast(Tensor, clip.tokenize(list(texts)))
        except RuntimeError as error:
            # characters say little: a long word can be one token, a single emoji several
            longest = texts[int((count_tokens(texts) > _CONTEXT - 2).int().argmax())]
            raise too_long(longest, _CONTEXT) from error


def too_long(text: str, context: int) -> PromptError:
    """Return the error for a text that a CLIP would cut off."""
    return PromptError(
        f"prompt {text[:60]!r}... is longer than CLIP's context of {context} tokens; shorten it"
    )


def count_tokens(texts: Sequence[str]) -> Tensor:
    """Return how many pieces of OpenAI's vocabulary each text is, ``[N]``, without the two ends."""
    import clip

    tokens: Tensor = clip.tokenize(list(texts), context_length=max(map(len, texts)) * 4 + 2)
    return (tokens != 0).sum(dim=1) - 2


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


def load_openai(
    path: Path, device: torch.device, said: Activation | None, assumed: Activation | None
) -> tuple[OpenAiNetwork, str]:
    """Build the network of a file of OpenAI's architecture, of any form.

    Args:
        path: The file.
        device: What it will compute on: float32 on the CPU, as published elsewhere.
        said: The activation that the caller knows.
        assumed: What to take, with a warning, where neither the caller nor the file says it.

    Returns:
        The network, and the SHA-256 of the file.

    Raises:
        CheckpointError: If it is no such file, or nothing says what it was trained with.
    """
    file, digest = read_clip_file(path), file_sha256(path)
    _refuse_others(path, file.state)
    activation = _activation(path, file, digest, said, assumed)

    module = _build(path, file.state, device)
    if activation == "gelu":
        _replace_activations(module)
    return OpenAiNetwork(module, activation), digest


def _activation(
    path: Path, file: ClipFile, digest: str, said: Activation | None, assumed: Activation | None
) -> Activation:
    known: Activation | None = "quickgelu" if digest in _published_hashes() else file.activation
    if said and known and said != known:
        raise CheckpointError(
            f"{path} was trained with {known}, as it says itself, not with {said}; give it without '{said}@'"
        )
    if found := said or known:
        return found

    # what else there is to say is the same for a warning and a refusal
    why = (
        f"{path} does not say which activation it was trained with: OpenAI's, DFN's and MetaCLIP's compute "
        "with QuickGELU, LAION's and DataComp's with GELU, and the other one gives wrong embeddings"
    )
    if assumed is None:
        raise CheckpointError(
            f"{why}; say it: quickgelu@PATH, gelu@PATH, or open_clip:ARCHITECTURE@PATH, once and for all by "
            "styleclip convert quickgelu@PATH clip.safetensors"
        )
    warnings.warn(
        f"{why}; {assumed} is assumed, say it as in '{assumed}@{path}'",
        AssumedActivationWarning,
        stacklevel=4,
    )
    return assumed


def _published_hashes() -> set[str]:
    import clip.clip

    # the addresses of OpenAI's nine files hold their hashes
    return {url.split("/")[-2] for url in clip.clip._MODELS.values()} | _KNOWN


def _replace_activations(module: nn.Module) -> None:
    """Put GELU in the place of every QuickGELU of OpenAI's network."""
    from clip.model import QuickGELU

    for part in list(module.modules()):
        for name, child in part.named_children():
            if isinstance(child, QuickGELU):
                setattr(part, name, nn.GELU())


def _refuse_others(path: Path, state: Mapping[str, Tensor]) -> None:
    """Refuse weights of another architecture, saying what they are and what takes them."""
    what, remedy = describe_other(state)
    if what:
        raise CheckpointError(f"{path} is no CLIP of OpenAI's architecture: it is {what}; {remedy}")
    if "text_projection" not in state:
        raise CheckpointError(
            f"{path} holds no CLIP weights ('text_projection' is missing); give the state dict of a CLIP"
        )

    # clip-anytorch would build it, with heads of another width, and it would embed at random
    first = state.get("visual.conv1.weight")
    if first is not None and first.ndim == 4 and (name := _OTHER_HEADS.get(first.shape[0])):
        raise CheckpointError(
            f"{path} is a {name}, whose heads are of another width than OpenAI's; write open_clip:{name}@ "
            f"before its place (open_clip:{name}-quickgelu@ for DFN's and MetaCLIP's)"
        )

    positions = state.get("positional_embedding")
    if positions is not None and positions.ndim == 2 and positions.shape[0] not in (_CONTEXT, 0):
        if positions.shape[0] > _MAX_CONTEXT:  # a square of it is built as a mask
            raise CheckpointError(
                f"{path} reads texts of {positions.shape[0]} tokens, more than any CLIP; "
                "give the state dict of one"
            )
        raise CheckpointError(
            f"{path} reads texts of {positions.shape[0]} tokens, OpenAI's CLIPs read 77; write "
            "open_clip:ARCHITECTURE@ before its place"
        )


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

    width = state["ln_final.weight"].shape[0]
    for name, axis in (("positional_embedding", 1), ("token_embedding.weight", 1), ("text_projection", 0)):
        tensor = state[name]
        if tensor.ndim != 2 or tensor.shape[axis] != width:
            raise CheckpointError(f"{name} has the shape {list(tensor.shape)} beside a width of {width}")


def download_openai(name: str) -> Path:
    """Return the path of one of OpenAI's nine, downloaded and checked by the clip package if need be.

    Raises:
        CheckpointError: If it cannot be downloaded, or is not what OpenAI publishes.
    """
    import clip.clip

    try:
        return Path(clip.clip._download(clip.clip._MODELS[name], str(Path.home() / ".cache" / "clip")))
    except (OSError, RuntimeError) as error:  # no network, or a download whose hash is wrong
        raise CheckpointError(
            f"CLIP {name!r} cannot be downloaded ({error}); check the network or give the path of its file"
        ) from error
