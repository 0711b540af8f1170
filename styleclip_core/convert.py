"""One weights file of any published form -> safetensors, once, so that nothing later reads a pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from styleclip_core.errors import CheckpointError
from styleclip_core.files.checkpoint import (
    Checkpoint,
    file_sha256,
    is_safetensors,
    open_checkpoint,
    read_header,
    read_names,
    written_aside,
)
from styleclip_core.files.values import Record
from styleclip_core.models import nvidia, psp, rosinality
from styleclip_core.models.checkpoints import (
    check_published_class,
    export_rosinality,
    load_generator,
    save_generator,
)
from styleclip_core.models.clip import ClipModel, load_clip, save_clip
from styleclip_core.models.clip_files import describe_other, find_weights, plain_names
from styleclip_core.models.clip_names import parse_clip
from styleclip_core.models.encoder import load_encoder, save_encoder
from styleclip_core.models.identity import load_identity, save_identity
from styleclip_core.models.lpips import load_perceptual, save_perceptual
from styleclip_core.models.mapper import load_mapper, save_mapper

Kind = Literal["generator", "encoder", "identity", "clip", "mapper", "perceptual"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_MAPPER_NAMES = (
    "mapper.", "mapper_", "course_mapping.", "medium_mapping.", "fine_mapping.", "mapping.mapping.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was converted.

    Attributes:
        kind: What network it is.
        source_sha256: SHA-256 of the file that was read.
        sha256: SHA-256 of the file that was written, the fingerprint that artifacts name it by.
        description: Its sizes, as plain values.
    """

    kind: Kind
    source_sha256: str
    sha256: str
    description: Mapping[str, object]


def identify(path: str | Path) -> Kind:
    """Tell what network a file holds, from its content.

    An e4e or pSp checkpoint holds its generator too and counts as an encoder.

    Raises:
        CheckpointError: If the file is missing, damaged, hostile or holds none of ``KINDS``.
    """
    # ours says what it is
    if is_safetensors(path):
        named = str(read_header(path).get("format", ""))
        kind = "encoder" if named == psp.FORMAT else named.removeprefix("styleclip-").rpartition("-")[0]
        if kind in KINDS:
            return kind
        names = read_names(path)
    else:
        with open_checkpoint(path) as file:
            found = _identify_content(path, file)
            if isinstance(found, str):
                return found
            names = found

    # from the surest name to the vaguest: an encoder's or mapper's file holds a generator too
    if "text_projection" in plain_names(names):
        return "clip"
    if any(name.startswith(_MAPPER_NAMES) for name in names):
        return "mapper"
    if any(name.startswith(("encoder.", "styles.0.")) for name in names):
        return "encoder"
    if any(name.endswith("output_layer.3.weight") for name in names):
        return "identity"
    if "features.0.weight" in names:
        return "perceptual"

    known = dict.fromkeys(names)
    if "g_ema" in known or "synthesis.b4.const" in known or rosinality.looks_like_rosinality(known):
        return "generator"

    raise _unknown(path, names)


def _identify_content(path: str | Path, file: Checkpoint) -> Kind | list[str]:
    """Tell by its structure what a checkpoint is; return the names of its weights where that does not say."""
    if nvidia.find_generator(file) is not None:
        return "generator"
    if isinstance(file.content, Record) and file.kind == "torchscript":
        return "clip"
    if not isinstance(file.content, dict):
        raise _unknown(path)
    return [str(name) for name in find_weights(file.content)[1]]


def convert(
    source: str | Path, target: str | Path, *, kind: Kind | None = None, encoder_kind: psp.Kind | None = None
) -> Conversion:
    """Convert a weights file.

    Args:
        source: Any file that one of the ``load_`` functions reads; a CLIP that does not state its activation
            behind ``quickgelu@`` or ``gelu@``.
        target: A ``.safetensors`` file, or for generators a ``.pt`` as rosinality's code reads it. A
            ``.json`` of the same name, with what was converted, is written beside it.
        kind: What to take from the file; told from its content if None. ``"generator"`` takes the
            generator out of an encoder's or mapper's checkpoint.
        encoder_kind: For encoders that do not say whether they are e4e or pSp.

    Raises:
        CheckpointError: If the file cannot be read, or the target's form does not fit its kind.
    """
    target = Path(target)
    said = parse_clip(str(source))
    found = kind or ("clip" if said.activation else identify(source))

    # rosinality's form, for other projects' code; everything else here reads the safetensors
    if target.suffix == ".pt" and found == "generator":
        generator = load_generator(source)
        check_published_class(generator.config)
        export_rosinality(generator, target)
        digest = generator.fingerprint
        description: Mapping[str, object] = generator.config.to_dict()
    elif target.suffix == ".safetensors":
        load, save, describe = _FORMS[found]
        network = load_encoder(source, kind=encoder_kind) if found == "encoder" else load(source)
        save(network, target)
        digest, description = network.fingerprint, describe(network)
    else:
        raise CheckpointError(
            f"cannot write a {found} to {target}: the target of a conversion ends in .safetensors, for "
            "generators also in .pt"
        )

    # written last: the note says what is there, never what was going to be
    done = Conversion(found, digest, file_sha256(target), description)
    with written_aside(target.with_suffix(".json")) as aside:
        aside.write_text(json.dumps(_record(done), indent=2, sort_keys=True) + "\n")

    return done


def _record(done: Conversion) -> dict[str, object]:
    return {
        "kind": done.kind,
        "config": dict(done.description),
        "source_sha256": done.source_sha256,
        "sha256": done.sha256,
    }


def _save_encoder(network: Any, path: Path) -> None:  # noqa: ANN401 - either kind of encoder
    save = psp.save_psp if isinstance(network, psp.PspEncoder) else save_encoder
    save(network, path)


def _load_clip(source: str | Path) -> ClipModel:
    # what is written states its activation for good, so nothing is assumed
    return load_clip(source, assume=None)


def _sizes(network: Any) -> dict[str, object]:  # noqa: ANN401
    config = network.config
    return {name: getattr(config, name) for name in config.__slots__}


_FORMS: dict[Kind, tuple[Callable[..., Any], Callable[..., None], Callable[[Any], Mapping[str, object]]]] = {
    "generator": (load_generator, save_generator, lambda network: network.config.to_dict()),
    "encoder": (load_encoder, _save_encoder, _sizes),
    "identity": (load_identity, save_identity, lambda network: {"embedding_dim": network.embedding_dim}),
    "clip": (
        _load_clip,
        save_clip,
        lambda network: {
            "embedding_dim": network.embedding_dim,
            "input_resolution": network.input_resolution,
            "activation": network.activation,
        },
    ),
    "mapper": (load_mapper, save_mapper, _sizes),
    "perceptual": (load_perceptual, save_perceptual, lambda network: {"variant": network.variant}),
}


def _unknown(path: str | Path, names: list[str] | None = None) -> CheckpointError:
    what, remedy = describe_other(names or [])
    if what:
        return CheckpointError(f"{path} is {what}, which is used as it is, not converted; {remedy}")
    return CheckpointError(
        f"{path} holds none of {', '.join(KINDS)} that is known; say which (--kind) or give another file"
    )
