"""CLIPs as transformers stores them (CLIPModel, SiglipModel): a folder or repository with ``config.json``.

Shapes: B images, N texts, C tokens of a text, D width of the embedding. transformers is imported when it is
used. The architecture is transformers' own; weights are read by this project.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from styleclip_core.errors import CheckpointError
from styleclip_core.files.checkpoint import DAMAGE
from styleclip_core.models.clip_openai import OpenAiNetwork, too_long
from styleclip_core.models.clip_preprocessing import Preprocessing
from styleclip_core.models.clip_sources import Source, read_config, read_state_of, short
from styleclip_core.models.network import load_exactly

_KINDS = {"clip": ("CLIPConfig", "CLIPModel"), "siglip": ("SiglipConfig", "SiglipModel")}
_MANY_LANGUAGES = 100_000  # pieces of a vocabulary
_ENGLISH = 49_408  # OpenAI's vocabulary, which is at hand
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
# of a configuration, what says nothing of what is computed
_LEFT = ("transformers_version", "_name_or_path", "torch_dtype", "dtype", "architectures")


class TransformersNetwork:
    """A network of transformers; what ``ClipModel`` needs of one.

    Attributes:
        module: The network, in float32.
        activation: ``"quickgelu"``, or what else its configuration names.
        preprocessing: What is done to images.
        multilingual: Whether its vocabulary is of many languages.
        embedding_dim: D.
    """

    dtype = torch.float32

    def __init__(self, module: nn.Module, preprocessing: Preprocessing, tokens: _Tokens) -> None:
        self.module, self.preprocessing, self._tokens = module, preprocessing, tokens
        config = cast(Any, module).config
        self.activation = str(config.text_config.hidden_act).replace("_", "")
        self.multilingual = config.text_config.vocab_size > _MANY_LANGUAGES
        siglip = config.model_type == "siglip"
        self.embedding_dim = int(config.text_config.projection_size if siglip else config.projection_dim)

    def prepare(self) -> None:
        """Do nothing: there is nothing to fold."""

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode images, ``[B, 3, R, R]`` -> ``[B, D]``."""
        return _pooled(cast(Any, self.module).get_image_features(pixel_values=pixels))

    encode_images_as_published = encode_images

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode texts, ``[N, C]`` -> ``[N, D]``."""
        return _pooled(cast(Any, self.module).get_text_features(input_ids=tokens))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens of texts, ``[N, C]``.

        Raises:
            PromptError: If a text is too long.
        """
        return self._tokens(texts)


def _pooled(found: Any) -> Tensor:  # noqa: ANN401 - a tensor before transformers 5, then a record with one
    return cast(Tensor, found if isinstance(found, Tensor) else found.pooler_output)


class _Tokens:
    """The tokenizer of a folder, or OpenAI's where there is none and the vocabulary is that one."""

    def __init__(self, source: Source, vocabulary: int, context: int) -> None:
        self._context, self._tokenizer = context, None
        self._lock = threading.Lock()  # every call of a fast one sets how the next is padded, for all threads
        name = source.tokenizer()
        if not name and vocabulary == _ENGLISH:
            return
        if not name:
            raise source.missing("tokenizer (tokenizer.json, or spiece.model)")

        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except Exception as error:  # transformers raises whatever its many tokenizers and the hub do
            raise CheckpointError(
                f"the tokenizer of {source.name} cannot be loaded ({short(str(error))}); give the whole "
                "folder, as it was published"
            ) from error

    def describe(self) -> dict[str, object]:
        """Return what decides its tokens, wherever its files lie."""
        if self._tokenizer is None:
            return {"context": self._context, "vocabulary": "openai"}
        content = json.dumps(sorted(self._tokenizer.get_vocab().items()))
        return {"context": self._context, "vocabulary": hashlib.sha256(content.encode()).hexdigest()}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        if self._tokenizer is None:
            return OpenAiNetwork.tokenize(cast(Any, self), texts)

        with self._lock:
            rows = self._tokenizer(list(texts), padding="max_length", max_length=self._context, verbose=False)
        for text, row in zip(texts, rows["input_ids"], strict=True):
            if len(row) > self._context:
                raise too_long(text, self._context)
        return torch.tensor(rows["input_ids"])


def from_transformers(
    source: Source, config: dict[str, Any], weights: Path
) -> tuple[TransformersNetwork, dict[str, object]]:
    """Build what ``config.json`` of a folder or repository describes.

    Raises:
        CheckpointError: If it is of another kind, or its files do not fit each other.
    """
    kind = str(config.get("model_type", ""))
    if kind not in _KINDS:
        raise CheckpointError(
            f"{source.name} holds a model of the kind {short(kind) or 'none'!r}; of transformers' there is a "
            f"way to use {' and '.join(_KINDS)}, give one of those or a model of open_clip's"
        )

    made = _configured(source, kind, config)
    module, digest = read_state_of(
        weights, source.name, lambda state: _filled(kind, made, state, source.name)
    )
    preprocessing = _preprocessing(source, int(made.vision_config.image_size))
    text = made.text_config
    tokens = _Tokens(source, int(text.vocab_size), int(text.max_position_embeddings))

    about: dict[str, object] = {
        "family": "transformers", "weights": digest, "preprocessing": preprocessing.describe(),
        "model": {name: value for name, value in config.items() if name not in _LEFT},
        "tokens": tokens.describe(),
    }  # fmt: skip
    return TransformersNetwork(module, preprocessing, tokens), about


def _configured(source: Source, kind: str, config: Mapping[str, Any]) -> Any:  # noqa: ANN401
    import transformers

    try:
        return getattr(transformers, _KINDS[kind][0]).from_dict(
            {name: value for name, value in config.items() if name not in _LEFT}
        )
    except Exception as error:  # its checks raise errors of several packages
        raise CheckpointError(
            f"config.json of {source.name} cannot be read ({short(str(error))}); fetch it again"
        ) from error


def _filled(kind: str, config: Any, state: dict[str, Tensor], name: str) -> nn.Module:  # noqa: ANN401
    import transformers

    # on no device: what does not fit is refused before memory is taken for it
    with torch.device("meta"):
        module = cast(nn.Module, getattr(transformers, _KINDS[kind][1])(config))
    held = set(module.state_dict())
    kept = {each: value for each, value in state.items() if each in held or not each.endswith("position_ids")}
    for each in ("logit_scale", "logit_bias"):
        if each in kept and each in held:
            kept[each] = kept[each].reshape(module.get_parameter(each).shape)
    load_exactly(module, kept, what=name)

    # positions are counted, and no file holds them
    for each, buffer in list(module.named_buffers()):
        if buffer.is_meta:
            owner, _, last = each.rpartition(".")
            if last != "position_ids":
                raise CheckpointError(f"{each} is neither stored nor counted")
            setattr(module.get_submodule(owner), last, torch.arange(buffer.shape[-1]).expand(buffer.shape))
    return module


def _preprocessing(source: Source, side: int) -> Preprocessing:
    """Read how images are to be made.

    Raises:
        CheckpointError: If it is not there, or is done in a way that is not known here.
    """
    path = source.find("preprocessor_config.json") or source.find("processor_config.json")
    if path is None:
        raise source.missing("preprocessor_config.json")
    found = read_config(path)
    found = found.get("image_processor", found)

    try:
        size, crop = _extent(found["size"]), _extent(found.get("crop_size", side))
        cropped = bool(found.get("do_center_crop", False))
        # other ways there are: a short side that is longer than what is cut out of it
        if not found.get("do_resize", True) or (cropped and crop != (side, side)):
            raise ValueError(f"images are resized to {found['size']} and cropped to {found.get('crop_size')}")
        if size == (side, side):
            mode = "squash"
        elif size == (side,) and cropped:
            mode = "shortest"
        else:
            raise ValueError(f"images are resized to {found['size']}, and the network reads {side} px")
        mean, std = (tuple(map(float, found[each])) for each in ("image_mean", "image_std"))
        return Preprocessing(side, mean, std, _INTERPOLATIONS[found.get("resample", 3)], mode)  # type: ignore[arg-type]
    except DAMAGE as error:
        raise CheckpointError(
            f"{path} describes no preprocessing that is known ({short(str(error))}); give another model"
        ) from error


def _extent(size: Any) -> tuple[int, ...]:  # noqa: ANN401
    if isinstance(size, int):
        return (size, size)
    return (
        (int(size["shortest_edge"]),)
        if "shortest_edge" in size
        else (int(size["height"]), int(size["width"]))
    )
