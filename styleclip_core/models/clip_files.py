"""Weights files of CLIPs -> state dicts, what they say of themselves, and what a file is that is none.

Checkpoints of trainings nest their weights and prefix the names; both is undone here. A state dict cannot say
which activation its network was trained with, and OpenAI's (QuickGELU) and LAION's or DataComp's (GELU) look
the same: an embedding by the wrong one is a little wrong everywhere, which nobody would see. So this module
finds out what a file states, and ``clip_openai`` decides what may be run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import Tensor

from styleclip_core.errors import CheckpointError
from styleclip_core.files.checkpoint import (
    Checkpoint,
    is_array,
    is_safetensors,
    open_checkpoint,
    read_state,
)
from styleclip_core.files.values import Record
from styleclip_core.models.clip_names import ACTIVATIONS, Activation

_MAX_DEPTH, _MAX_NESTING = 32, 3
_SIZES = ("input_resolution", "context_length", "vocab_size")  # beside the weights in OpenAI's archives
_PARAMETERS = {
    "weight", "bias", "in_proj_weight", "in_proj_bias", "proj", "class_embedding", "positional_embedding",
    "text_projection", "logit_scale", "running_mean", "running_var", "num_batches_tracked",
}  # fmt: skip
# where trainings keep their weights, and what their wrappers put before every name
_NESTS = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "ema_state_dict",
    "model_ema",
    "params",
    "clip",
)
_WRAPPERS = ("module.", "_orig_mod.", "model.", "clip_model.", "clip.")


@dataclass(frozen=True, slots=True, eq=False)
class ClipFile:
    """What a weights file of a CLIP holds.

    Attributes:
        state: Its tensors, by the names that the network has for them.
        activation: What it states, in its header, beside its weights or in the names of its classes.
    """

    state: dict[str, Tensor]
    activation: Activation | None


def read_clip_file(path: Path) -> ClipFile:
    """Read a file of any form for its tensors and its activation; nothing in it is run.

    Raises:
        CheckpointError: If it is missing, damaged, hostile, or states an activation that is none.
    """
    if is_safetensors(path):
        state, header = read_state(path)
        return ClipFile(_unwrapped(state), _stated(path, header.get("activation")))

    with open_checkpoint(path) as file:
        if file.kind == "torchscript" and isinstance(file.content, Record):
            found = _Scripted(file, file.content)
            state = file.state(dict(found.tensors()))
            return ClipFile(
                {name: each for name, each in state.items() if name not in _SIZES}, found.activation
            )

        holder, weights = find_weights(file.content)
        stated = _stated(path, holder.get("activation"))
        return ClipFile(_unwrapped(file.state(weights)), stated)


def find_weights(content: object) -> tuple[dict[str, object], dict[str, object]]:
    """Return what holds a checkpoint's weights, and the weights in it; both may be the same."""
    holder = content if isinstance(content, dict) else {}
    weights = holder
    # what lies beside them may be arrays, too: e4e keeps its average latent there
    for _ in range(_MAX_NESTING):
        nested = next((weights[name] for name in _NESTS if isinstance(weights.get(name), dict)), None)
        if nested is None:
            break
        holder, weights = weights, cast("dict[str, object]", nested)
    return holder, weights


def plain_names(names: list[str]) -> list[str]:
    """Return the names of weights without what a training's wrappers put before all of them."""
    while names:
        wrapper = next((each for each in _WRAPPERS if all(name.startswith(each) for name in names)), None)
        if wrapper is None:
            break
        names = [name[len(wrapper) :] for name in names]
    return names


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    plain = plain_names(list(state))
    found = dict(zip(plain, state.values(), strict=True))
    return {name: tensor for name, tensor in found.items() if name not in _SIZES}


def _stated(path: Path, value: object) -> Activation | None:
    if value is None:
        return None
    if value not in ACTIVATIONS:
        raise CheckpointError(
            f"{path} states the activation {str(value)[:40]!r}, which is none of {', '.join(ACTIVATIONS)}; "
            "fetch it again"
        )
    return value


class _Scripted:
    """The parameters of a TorchScript module, by the names that its state dict would have.

    Attributes:
        activation: That of the classes in it, by their names, once all of it was walked through.
    """

    def __init__(self, file: Checkpoint, root: Record) -> None:
        self._file, self._root = file, root
        self.activation: Activation | None = None

    def tensors(self) -> Iterator[tuple[str, object]]:
        pending: list[tuple[str, Record, int]] = [("", self._root, 0)]
        while pending:
            prefix, record, depth = pending.pop()
            if depth > _MAX_DEPTH:
                raise CheckpointError(
                    f"{self._file.path} nests modules more than {_MAX_DEPTH} deep; fetch it again"
                )

            # QuickGELU is a class of OpenAI's own, GELU one of torch's
            kind = record.kind.rpartition(".")[2].lower()
            if kind in ACTIVATIONS:
                self.activation = kind

            # a module can hold itself, or a million others: each is paid for before it is walked
            self._file.visit(record.state)
            for name, value in record.state.items():
                if isinstance(value, Record):
                    pending.append((f"{prefix}{name}.", value, depth + 1))
                # others are constants, such as the attention mask, which the network makes itself
                elif is_array(value) and name in _PARAMETERS:
                    yield prefix + name, value


def describe_other(names: Mapping[str, object] | list[str]) -> tuple[str, str]:
    """Tell what weights are that are no CLIP of OpenAI's architecture, and how they are given instead.

    Args:
        names: Of the tensors, without wrappers.

    Returns:
        What they are, and what takes them; both empty where they are of no known kind.
    """
    found = list(names)

    def has(*beginnings: str) -> bool:
        return all(any(name.startswith(each) for name in found) for each in beginnings)

    # from the surest sign to the vaguest
    if has("vision_model.", "text_model."):
        kind = "a SigLIP" if has("logit_bias") else "a CLIP"
        folder = "give the folder with its config.json, or hf-hub:ORGANIZATION/NAME"
        return f"{kind} as transformers stores it", folder
    if has("image_encoder.", "text_encoder."):
        return (
            "a MobileCLIP as Apple publishes it",
            "write open_clip:MobileCLIP-S1@ before its place, or S2 or B",
        )
    if has("text_decoder.") or has("visual_encoder."):
        return (
            "a model that writes captions (CoCa, BLIP)",
            "if it is a CoCa, write open_clip:coca_ViT-B-32@...",
        )
    if has("visual.trunk.", "text."):
        kind = (
            "a SigLIP"
            if has("logit_bias")
            else "a CLIP with an image tower of timm (SigLIP, MobileCLIP, EVA)"
        )
        return kind, "write open_clip:ARCHITECTURE@ before its place, as open_clip:ViT-B-16-SigLIP@..."
    if has("visual.", "text.transformer."):
        return "a CLIP with a text tower of its own", "write open_clip:ARCHITECTURE@ before its place"
    if has("visual.", "transformer.", "token_embedding.") and has("logit_bias"):
        return "a CLIP trained by SigLIP's loss", "write open_clip:ARCHITECTURE@ before its place"

    sees = any(map(has, ("visual.", "vision_model.", "class_embedding", "patch_embed.")))
    reads = any(map(has, ("token_embedding.", "text_model.", "embeddings.word_embeddings", "text.")))
    if sees != reads:
        return f"{'an image' if sees else 'a text'} tower alone", "give a file of both towers"
    return "", ""
