"""CLIPs of open_clip: its architectures, preprocessing and tokenizers around weights that are read safely.

Shapes: B images, N texts, C tokens of a text, D width of the embedding. open_clip is imported when used.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from styleclip_core.errors import CheckpointError
from styleclip_core.files.checkpoint import DAMAGE
from styleclip_core.models.clip_openai import fold_batch_norm, too_long
from styleclip_core.models.clip_preprocessing import Preprocessing, Triple
from styleclip_core.models.clip_sources import Repository, Source, read_state_of, short
from styleclip_core.models.network import load_exactly

if TYPE_CHECKING:
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

MANY_LANGUAGES = 100_000  # pieces: vocabularies of English have some 50,000, those of many languages 250,000
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
# what a configuration may ask of a tokenizer; others of transformers' options import code
_TOKENIZER_OPTIONS = {"clean", "strip_sep_token", "language", "additional_special_tokens", "reduction_mask"}


class OpenClipNetwork:
    """A network of open_clip; what ``ClipModel`` needs of one.

    Attributes:
        module: The network, in float32.
        activation: What it computes with between the two layers of a block.
        preprocessing: What is done to images.
        multilingual: Whether its vocabulary is of many languages.
        embedding_dim: D.
    """

    dtype = torch.float32

    def __init__(
        self, module: nn.Module, config: Mapping[str, Any], preprocessing: Preprocessing, tokens: Tokens
    ) -> None:
        self.module, self.preprocessing, self._tokens = module, preprocessing, tokens
        self.activation = "quickgelu" if config.get("quick_gelu") else "gelu"
        self.embedding_dim = int(config["embed_dim"])
        self.multilingual = tokens.size > MANY_LANGUAGES
        self._tower: Callable[[Tensor], Tensor] | None = None

    def prepare(self) -> None:
        """Fold what can be folded, once the weights are where they stay."""
        from open_clip.modified_resnet import ModifiedResNet

        visual = cast(nn.Module, self.module.visual)
        if isinstance(visual, ModifiedResNet):
            self._tower = fold_batch_norm(visual)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode images, ``[B, 3, R, R]`` -> ``[B, D]``."""
        return self._tower(pixels) if self._tower else self.encode_images_as_published(pixels)

    def encode_images_as_published(self, pixels: Tensor) -> Tensor:
        """Encode images by the network as it is, ``[B, 3, R, R]`` -> ``[B, D]``."""
        return cast(Tensor, self.module.encode_image(pixels))  # type: ignore[operator]

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode texts, ``[N, C]`` -> ``[N, D]``."""
        return cast(Tensor, self.module.encode_text(tokens))  # type: ignore[operator]

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens of texts, ``[N, C]``.

        Raises:
            PromptError: If a text is too long, which open_clip would cut off.
        """
        return self._tokens(texts)


class Tokens:
    """A tokenizer of open_clip that refuses what it would cut off.

    Attributes:
        size: Of its vocabulary.
    """

    def __init__(self, tokenizer: HFTokenizer | SimpleTokenizer, context: int) -> None:
        self._tokenizer, self._context = tokenizer, context
        self._lock = threading.Lock()  # every call of a fast one sets how the next is padded, for all threads
        inner = getattr(tokenizer, "tokenizer", None)  # of transformers, where it is not OpenAI's
        self._vocabulary: dict[str, int] = inner.get_vocab() if inner is not None else tokenizer.encoder
        self.size = len(self._vocabulary)

    def describe(self) -> dict[str, object]:
        """Return what decides its tokens, wherever its files lie."""
        content = json.dumps(sorted(self._vocabulary.items()))
        mode = getattr(self._tokenizer, "tokenizer_mode", "")
        clean = getattr(self._tokenizer.clean_fn, "__name__", "")
        digest = hashlib.sha256(content.encode()).hexdigest()
        return {"context": self._context, "vocabulary": digest, "clean": clean, "mode": mode}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens of texts, ``[N, C]``.

        Raises:
            PromptError: If a text is too long.
        """
        with self._lock:
            for text in texts:
                if self._length(text) > self._context:
                    raise too_long(text, self._context)
            return cast(Tensor, self._tokenizer(list(texts), context_length=self._context))

    def _length(self, text: str) -> int:
        if not hasattr(self._tokenizer, "tokenizer"):
            return len(self._tokenizer.encode(text)) + 2
        clean = self._tokenizer.clean_fn(text)
        if self._tokenizer.tokenizer_mode == "clips":  # which adds three of its own
            return len(self._tokenizer.tokenizer(clean, add_special_tokens=False).input_ids) + 3
        return len(self._tokenizer.tokenizer(clean, verbose=False).input_ids)


def from_architecture(
    name: str, config: dict[str, Any], published: Mapping[str, Any], weights: Path
) -> tuple[OpenClipNetwork, dict[str, object]]:
    """Build one of open_clip's architectures.

    Args:
        name: Of the architecture.
        config: Its configuration.
        published: What open_clip says of the published weights: preprocessing and activation; empty for
            weights of another place, which are taken to be as the architecture's name says.
        weights: Their file.
    """
    if published:
        config["quick_gelu"] = bool(published.get("quick_gelu"))
    preprocessing = dict(published) or _usual_preprocessing(name)
    return _build(name, config, preprocessing, weights, config["text_cfg"].get("hf_tokenizer_name") or "")


def _usual_preprocessing(name: str) -> dict[str, Any]:
    """Return how all published weights of an architecture want images, if they agree; else as OpenAI's do."""
    from open_clip import factory
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    tags = [factory.get_pretrained_cfg(name, tag) for tag in factory.list_pretrained_tags_by_model(name)]
    kept = [merge_preprocess_dict(PreprocessCfg(), tag) for tag in tags]
    return kept[0] if kept and all(each == kept[0] for each in kept) else {}


def from_config(
    source: Source, config: Mapping[str, Any], weights: Path
) -> tuple[OpenClipNetwork, dict[str, object]]:
    """Build what ``open_clip_config.json`` of a folder or repository describes."""
    model, preprocessing = config.get("model_cfg"), config.get("preprocess_cfg") or {}
    if not isinstance(model, dict) or not isinstance(preprocessing, dict):
        raise source.missing("model_cfg of open_clip_config.json")

    # a folder is whole or names where the rest is
    named = _checked(source.name, model)
    tokenizer = source.tokenizer() if named else ""
    return _build(source.name, deepcopy(model), preprocessing, weights, named, tokenizer)


def _checked(name: str, model: dict[str, Any]) -> str:
    """Refuse a configuration that would fetch or import something; returns the name of its tokenizer."""
    from open_clip import factory

    towers = [model.get(each) for each in ("vision_cfg", "text_cfg")]
    if not all(isinstance(each, dict) for each in towers):
        raise CheckpointError(f"{name} describes no CLIP: vision_cfg or text_cfg is missing; fetch it again")
    vision, text = cast("list[dict[str, Any]]", towers)

    # timm and transformers would take a name with a scheme, or one of any repository, for something to fetch
    known = {
        factory.get_model_config(each)["text_cfg"].get("hf_model_name") for each in factory.list_models()
    }
    trunk, tower = vision.get("timm_model_name"), text.get("hf_model_name")
    trunks = [trunk] if trunk and not re.fullmatch(r"[a-z0-9_.]+", str(trunk)) else []
    if odd := [*trunks, *([tower] if tower and tower not in known else [])]:
        raise CheckpointError(
            f"{name} has a tower {short(str(odd[0]))!r} that none of open_clip's architectures has; "
            "nothing was fetched, give another model"
        )

    options, tokenizer = text.get("tokenizer_kwargs") or {}, text.get("hf_tokenizer_name") or ""
    odd = sorted(set(options) - _TOKENIZER_OPTIONS)
    if odd or not isinstance(tokenizer, str) or (tokenizer and not _HUB_NAME.fullmatch(tokenizer)):
        raise CheckpointError(
            f"{name} asks for a tokenizer with {short(', '.join(odd) or repr(tokenizer))}, which can "
            "run code; nothing was run, give another model"
        )
    return tokenizer


def _build(
    name: str,
    config: dict[str, Any],
    preprocessing: Mapping[str, Any],
    weights: Path,
    tokenizer: str,
    folder: str = "",
) -> tuple[OpenClipNetwork, dict[str, object]]:
    # weights come from the file alone: none of ImageNet's or of a language model's before
    if config["vision_cfg"].get("timm_model_name"):
        config["vision_cfg"]["timm_model_pretrained"] = False
    if config["text_cfg"].get("hf_model_name"):
        config["text_cfg"]["hf_model_pretrained"] = False

    module, digest = read_state_of(weights, name, lambda state: _filled(name, config, state))
    wanted = _preprocessing(name, module, preprocessing)
    tokens = _tokens(name, config["text_cfg"], tokenizer, folder)

    about: dict[str, object] = {
        "family": "open_clip", "weights": digest, "model": _described(config),
        "preprocessing": wanted.describe(), "tokens": tokens.describe(),
    }  # fmt: skip
    return OpenClipNetwork(module, config, wanted, tokens), about


def _described(config: Mapping[str, Any]) -> dict[str, object]:
    """Return what of a configuration decides what is computed; where a tokenizer lies does not."""
    left = {"hf_tokenizer_name", "tokenizer_kwargs", "hf_model_pretrained", "timm_model_pretrained"}
    return {
        key: {name: each for name, each in value.items() if name not in left}
        if isinstance(value, dict)
        else value
        for key, value in config.items()
        if value is not False  # an architecture that does not say quick_gelu has none
    }


def _make(name: str, config: Mapping[str, Any]) -> nn.Module:
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP, CustomTextCLIP

    parts = deepcopy(dict(config))
    own_text = parts.pop("custom_text", False) or "hf_model_name" in parts["text_cfg"]
    kind = CLIP if not own_text else CoCa if "multimodal_cfg" in parts else CustomTextCLIP
    try:
        return cast(nn.Module, kind(**parts))
    except (AssertionError, ImportError, *DAMAGE) as error:
        raise CheckpointError(
            f"the architecture of {name} cannot be built ({short(str(error))}); check its configuration, and "
            "the network where a text tower of transformers is part of it"
        ) from error


def _filled(name: str, config: Mapping[str, Any], state: dict[str, Tensor]) -> nn.Module:
    # on no device: what does not fit is refused before memory is taken for it
    with torch.device("meta"):
        module = _make(name, config)
    load_exactly(module, _converted(module, state), what=name)

    # what no file holds, such as the mask of attention, a network computes when it is made
    left = [each for each, buffer in module.named_buffers() if buffer.is_meta]
    if left:
        with _undrawn():
            made = _make(name, config)
        for each in left:
            owner, _, last = each.rpartition(".")
            setattr(module.get_submodule(owner), last, made.get_buffer(each))
    return module


class _Undrawn(TorchFunctionMode):
    """Leaves weights as they lie in memory, that are replaced anyway."""

    _DRAWS = (torch.Tensor.normal_, torch.Tensor.uniform_, torch.nn.init.trunc_normal_)

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401 - torch's signature
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        return args[0] if func in self._DRAWS else func(*args, **(kwargs or {}))


@contextmanager
def _undrawn() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), _Undrawn():
        yield


def _converted(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict by the names that open_clip has now, as its own loader does."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    state = dict(convert_state_dict(module, state))
    if "positional_embedding" in state and not hasattr(module, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)

    # a number in some files, a row of one in others
    for name in ("logit_scale", "logit_bias"):
        own = getattr(module, name, None)
        if name in state and own is not None:
            state[name] = state[name].reshape(own.shape)
    if getattr(module, "logit_bias", None) is not None:
        state.setdefault("logit_bias", torch.zeros_like(state["logit_scale"]))

    # counters that older versions stored
    held = set(module.state_dict())
    return {
        name: each
        for name, each in state.items()
        if name in held or not name.endswith(("position_ids", "attn_mask"))
    }


def _preprocessing(name: str, module: nn.Module, given: Mapping[str, Any]) -> Preprocessing:
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    merged = merge_preprocess_dict(PreprocessCfg(), dict(given))
    size = getattr(module.visual, "image_size", merged["size"])
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    if height != width:
        raise CheckpointError(
            f"{name} reads images of {width} x {height} px; give one that reads square images"
        )

    try:
        mean, std = (
            cast(Triple, tuple(map(float, value if isinstance(value, list | tuple) else (value,) * 3)))
            for value in (merged["mean"], merged["std"])
        )
        # which of both "random" is when nothing is trained is what open_clip says
        bilinear = merged["interpolation"] == "bilinear"
        return Preprocessing(
            int(height), mean, std, "bilinear" if bilinear else "bicubic", merged["resize_mode"],
            int(merged["fill_color"]),
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the preprocessing of {name} cannot be read ({short(str(error))})") from error


def _tokens(name: str, text: Mapping[str, Any], tokenizer: str, folder: str) -> Tokens:
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    context, options = int(text.get("context_length", 77)), dict(text.get("tokenizer_kwargs") or {})
    if not tokenizer:
        return Tokens(SimpleTokenizer(context_length=context, **options), context)

    # as files, so that transformers has nothing to fetch: it would take code, too
    if not folder:
        repository = Repository(tokenizer, "")
        folder = repository.tokenizer()
        if not folder:
            raise repository.missing("tokenizer")

    try:
        made = HFTokenizer(
            folder, context_length=context, tokenizer_mode=text.get("tokenizer_mode"),
            trust_remote_code=False, **options,
        )  # fmt: skip
    except Exception as error:  # transformers raises whatever its many tokenizers and the hub do
        raise CheckpointError(
            f"the tokenizer {tokenizer!r} of {name} cannot be loaded ({short(str(error))}); give a folder "
            "with open_clip_config.json, the weights and the tokenizer's files, as they were published"
        ) from error
    return Tokens(made, context)
