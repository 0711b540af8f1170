"""NVIDIA's StyleGAN2 pickles -> weights under NVIDIA's PyTorch names.

Two families: stylegan2-ada-pytorch (and the StyleGAN2 of stylegan3), whose modules are persistent
objects that carry the source text of their class, and the TensorFlow pickles of StyleGAN2 and
StyleGAN2-ADA. Their published loaders execute that text; here it is left unread, and the network is
rebuilt from the arrays alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from styleclip_core.errors import CheckpointError
from styleclip_core.files.checkpoint import Checkpoint, is_array
from styleclip_core.files.values import Record

_MAX_DEPTH = 32
_Rule = tuple[str, Callable[[re.Match[str]], str], Callable[[Tensor], Tensor]]
_NETWORK = "dnnlib.tflib.network.Network"


def find_generator(file: Checkpoint) -> Record | None:
    """Return the generator of a pickle, the moving average where there are two, or None."""
    content = file.content
    if isinstance(content, Record):
        return content if content.kind == _NETWORK or "_modules" in content.state else None

    # the moving average first: training leaves G noisier, and every published image is drawn by G_ema
    if isinstance(content, dict):
        for name in ("G_ema", "G", "Gs"):
            found = content.get(name)
            if isinstance(found, Record):
                return found

    # TensorFlow: generator, discriminator, average of the generator
    if isinstance(content, list | tuple) and len(content) == 3 and isinstance(content[2], Record):
        return content[2]

    return None


def read_generator(file: Checkpoint, record: Record) -> tuple[dict[str, Tensor], dict[str, float | None]]:
    """Read a generator's weights.

    Returns:
        The weights under NVIDIA's PyTorch names, and what shapes do not tell of its configuration.

    Raises:
        CheckpointError: If it is of an architecture that StyleCLIP has no style space for.
    """
    if record.kind == _NETWORK:
        return _from_tensorflow(file, record)
    return _from_pytorch(file, record)


# ---- PyTorch -----------------------------------------------------------------------------------------


def _from_pytorch(file: Checkpoint, record: Record) -> tuple[dict[str, Tensor], dict[str, float | None]]:
    modules = dict(_modules(file, record, "", 0))

    values = {
        f"{prefix}{name}": value
        for prefix, state in modules.items()
        for part in ("_parameters", "_buffers")
        for name, value in _children(file, state, part).items()
        if is_array(value)
    }

    _refuse_other_kinds(file, record, values)
    _refuse_other_architectures(file, values, modules)

    # the clamp and the mapping's learning rate are in no weight, but the images depend on both
    clamps = {_plain(state.get("conv_clamp")) for state in modules.values() if "conv_clamp" in state}
    if len(clamps) > 1:
        raise CheckpointError(
            f"{file.path}: its layers are clamped at different values, {sorted(map(str, clamps))[:4]}; "
            "fetch it again"
        )

    gains = {
        float(gain)
        for prefix, state in modules.items()
        if re.fullmatch(r"mapping\.fc\d+\.", prefix)
        and isinstance(gain := state.get("bias_gain"), int | float)
    }

    extras: dict[str, float | None] = {"conv_clamp": clamps.pop() if clamps else None}

    if len(gains) == 1:
        extras["mapping_lr"] = gains.pop()

    return {name: file.tensor(value) for name, value in values.items()}, extras


def _modules(
    file: Checkpoint, record: Record, prefix: str, depth: int
) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Walk a module and those in it; loops end at the limits of depth and of visits."""
    if depth > _MAX_DEPTH:
        raise CheckpointError(
            f"{file.path}: its modules are nested more than {_MAX_DEPTH} deep; fetch it again"
        )
    yield prefix, record.state
    for name, child in _children(file, record.state, "_modules").items():
        if isinstance(child, Record):
            yield from _modules(file, child, f"{prefix}{name}.", depth + 1)


def _children(file: Checkpoint, state: Mapping[str, object], part: str) -> dict[str, object]:
    found = state.get(part)
    file.visit(found)
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def _plain(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _word(value: object, most: int = 20) -> str | None:
    """Return a setting that is a word; of anything else that a file might hold, only what kind it is."""
    return value[:most] if isinstance(value, str) else None if value is None else type(value).__name__


def _refuse_other_kinds(file: Checkpoint, record: Record, values: Mapping[str, object]) -> None:
    """Refuse a generator that shares NVIDIA's training code alone, such as the FastGAN of Projected GAN."""
    if any(name.startswith(("synthesis.b", "synthesis.input.")) for name in values):
        return

    # what its own code calls it; of a StyleGAN2 without a block, or of no generator, more is wrong than that
    synthesis = _children(file, record.state, "_modules").get("synthesis")
    kind = _word(synthesis.kind, 40) if isinstance(synthesis, Record) else None
    if kind and kind != "SynthesisNetwork":
        raise CheckpointError(
            f"{file.path} draws with a {kind!r}, which is no StyleGAN2 and has no style space; give a "
            "StyleGAN2"
        )


def _refuse_other_architectures(
    file: Checkpoint, values: Mapping[str, object], modules: Mapping[str, Mapping[str, object]]
) -> None:
    if any(name.startswith("synthesis.input.") for name in values):
        raise CheckpointError(
            f"{file.path} is a StyleGAN3 generator, whose style space is another; give a StyleGAN2 model"
        )

    # 'resnet' and 'orig' have other layers under the same names, and would load as a wrong 'skip'
    named = {_word(state.get("architecture")) for state in modules.values()} - {None, "skip"}
    if any(".skip." in name for name in values) or named:
        kind = ", ".join(sorted(map(str, named))[:4]) or "resnet"
        raise CheckpointError(
            f"{file.path} is a StyleGAN2 of architecture {kind!r}; StyleCLIP's style space is that of 'skip' "
            "(config-f and every published model): give one of those"
        )

    activations = {_word(state.get("activation")) for state in modules.values()} - {None, "lrelu", "linear"}
    if activations:
        raise CheckpointError(
            f"{file.path} uses the activation {min(map(str, activations))!r}; only 'lrelu' is known: give a "
            "generator of that"
        )


# ---- TensorFlow ---------------------------------------------------------------------------------------


def _from_tensorflow(file: Checkpoint, record: Record) -> tuple[dict[str, Tensor], dict[str, float | None]]:
    variables = dict(_variables(file, record, "", 0))
    settings = record.state.get("static_kwargs")
    settings = settings if isinstance(settings, dict) else {}

    architecture = _word(settings.get("architecture", "skip"))
    if architecture != "skip" or any("/Skip/" in name or "ToRGB_lod" in name for name in variables):
        raise CheckpointError(
            f"{file.path} is a TensorFlow StyleGAN2 of architecture {architecture!r}; StyleCLIP's "
            "style space is that of 'skip' (config-f and every published model): give one of those"
        )

    state: dict[str, Tensor] = {}
    for name, value in variables.items():
        for pattern, target, change in _TENSORFLOW:
            match = re.fullmatch(pattern, name)
            if match:
                state[target(match)] = change(file.tensor(value))

    # noise images are numbered through the whole network, two of each block but one of the first
    sides = sorted({int(name.split(".")[1][1:]) for name in state if name.startswith("synthesis.b")})

    for side in sides:
        for conv in ("conv0", "conv1"):
            number = 2 * side.bit_length() - (7 if conv == "conv0" else 6)  # 2 log2(side) - 5 or - 4
            noise = variables.get(f"synthesis/noise{number}")
            if f"synthesis.b{side}.{conv}.weight" in state and noise is not None:
                state[f"synthesis.b{side}.{conv}.noise_const"] = file.tensor(noise)[0, 0]

    return state, {
        "conv_clamp": _plain(settings.get("conv_clamp")),
        "mapping_lr": _plain(settings.get("mapping_lrmul")) or 0.01,
    }


def _variables(file: Checkpoint, record: Record, prefix: str, depth: int) -> Iterator[tuple[str, object]]:
    if depth > _MAX_DEPTH:
        raise CheckpointError(
            f"{file.path}: its networks are nested more than {_MAX_DEPTH} deep; fetch it again"
        )

    variables = record.state.get("variables")
    file.visit(variables)

    # what is no pair of a name and an array is a setting, which no weight hangs on
    for pair in variables if isinstance(variables, list) else []:
        if (
            isinstance(pair, list | tuple)
            and len(pair) == 2
            and isinstance(pair[0], str)
            and is_array(pair[1])
        ):
            yield prefix + pair[0], pair[1]

    components = record.state.get("components")
    file.visit(components)
    for name, child in components.items() if isinstance(components, dict) else ():
        if isinstance(child, Record):
            yield from _variables(file, child, f"{prefix}{name}/", depth + 1)


def _same(x: Tensor) -> Tensor:
    return x


def _transposed(x: Tensor) -> Tensor:
    return x.t().contiguous()


def _kernel(x: Tensor) -> Tensor:
    return x.permute(3, 2, 0, 1).contiguous()  # height, width, in, out -> out, in, height, width


def _flipped_kernel(x: Tensor) -> Tensor:
    return _kernel(x.flip(0, 1))


def _block(part: str, name: str) -> Callable[[re.Match[str]], str]:
    return lambda match: f"synthesis.b{match[1]}.{part}.{name}"


def _layer_rules() -> Iterator[_Rule]:
    layers = {
        (r"(4)x4/Conv", "conv1", _kernel), (r"(\d+)x\d+/Conv0_up", "conv0", _flipped_kernel),
        (r"(\d+)x\d+/Conv1", "conv1", _kernel), (r"(\d+)x\d+/ToRGB", "torgb", _kernel),
    }  # fmt: skip

    # Conv0_up is a transposed convolution, whose kernel TensorFlow stores the other way round
    for scope, part, kernel in layers:
        # TensorFlow adds the 1 of a style that changes nothing at run time, PyTorch stores it in the bias
        parameters = {
            "weight": ("weight", kernel), "bias": ("bias", _same),
            "mod_weight": ("affine.weight", _transposed), "mod_bias": ("affine.bias", lambda x: x + 1),
        }  # fmt: skip
        for theirs, (ours, change) in parameters.items():
            yield rf"synthesis/{scope}/{theirs}", _block(part, ours), change

        if part != "torgb":
            yield (
                rf"synthesis/{scope}/noise_strength",
                _block(part, "noise_strength"),
                lambda x: x.reshape([]),
            )


_TENSORFLOW: list[_Rule] = [
    ("dlatent_avg", lambda match: "mapping.w_avg", _same),
    (r"mapping/LabelEmbed/weight", lambda match: "mapping.embed.weight", _transposed),
    (r"mapping/LabelEmbed/bias", lambda match: "mapping.embed.bias", _same),
    (r"mapping/Dense(\d+)/weight", lambda match: f"mapping.fc{match[1]}.weight", _transposed),
    (r"mapping/Dense(\d+)/bias", lambda match: f"mapping.fc{match[1]}.bias", _same),
    (r"synthesis/4x4/Const/const", lambda match: "synthesis.b4.const", lambda x: x[0]),
    *_layer_rules(),
]
