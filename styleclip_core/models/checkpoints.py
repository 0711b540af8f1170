"""Generator files of every published form -> a generator, without running anything that a file contains.

The form is told from the content. Sizes that a file does not store are inferred from the shapes; what
does not fit the architecture is refused, never guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from styleclip_core.errors import CheckpointError
from styleclip_core.files.checkpoint import DAMAGE, Checkpoint, is_array, written_aside
from styleclip_core.models import nvidia, rosinality
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig, fir_kernel
from styleclip_core.models.weights import read_network, refusing, save_network

_FORMAT = "styleclip-generator-1"


def load_generator(path: str | Path, device: str | torch.device = "cpu") -> Generator:
    """Read a StyleGAN2 generator.

    Read are this project's safetensors; NVIDIA's pickles (stylegan2-ada-pytorch, StyleGAN2 of stylegan3,
    and TensorFlow's StyleGAN2 and StyleGAN2-ADA); rosinality's ``.pt`` (a dict with ``g_ema``, or the
    decoder inside an e4e, pSp or mapper checkpoint); and state dicts under either project's names.

    Args:
        path: The file.
        device: Where the weights go.

    Returns:
        The generator in evaluation mode, in float32; ``fingerprint`` is the file's SHA-256. Sizes come
        from the shapes; an average w that is not stored is estimated from 10,000 seeded z.

    Raises:
        CheckpointError: If the file is missing, damaged, hostile or of another kind.
    """
    return read_network(path, device, ours=_from_safetensors, theirs=_from_checkpoint)


def save_generator(generator: Generator, path: str | Path) -> None:
    """Write a generator as safetensors with its configuration in the header."""
    save_network(generator, path, _FORMAT, dict(sorted(generator.config.to_dict().items())))


def export_rosinality(generator: Generator, path: str | Path) -> None:
    """Write a generator as rosinality's code reads it: a dict of ``g_ema`` and ``latent_avg``.

    Raises:
        CheckpointError: If the generator is conditional or clamps, which rosinality's code does not.
    """
    if generator.config.conv_clamp is not None:
        raise CheckpointError(
            f"this generator clamps its activations at {generator.config.conv_clamp:g}, which rosinality's "
            "code does not: images would differ. Convert it to .safetensors"
        )

    state = {name: tensor.cpu() for name, tensor in generator.state_dict().items()}
    content = {"g_ema": rosinality.from_nvidia(state), "latent_avg": state["mapping.w_avg"].clone()}
    with written_aside(path) as aside:
        torch.save(content, aside)


def check_published_class(config: GeneratorConfig) -> None:
    """Refuse sizes that rosinality's ``Generator`` cannot be made with: nobody could load the file there.

    Its channels are a table: 512 up to 32 px, above that 16384 over the side, times a multiplier. Two
    multipliers are published, 1 and 2.

    Raises:
        CheckpointError: If its channels are others, it is not square, or z and w differ in width.
    """
    wanted = [
        [512 if side <= 32 else multiplier * 16384 // side for side in config.resolutions]
        for multiplier in (1, 2)
    ]
    channels = [config.channels(side) for side in config.resolutions]

    wrong = ""
    if config.const_width != 4:
        wrong = "its images are not square"
    elif config.z_dim != config.w_dim:
        wrong = f"z is {config.z_dim} wide and w {config.w_dim}"
    elif channels not in wanted:
        wrong = f"its blocks have {', '.join(map(str, channels))} channels"
    if wrong:
        raise CheckpointError(
            f"no class of rosinality's code takes this generator: {wrong}. Convert it to .safetensors"
        )


def _from_safetensors(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> Generator:
    if not metadata and (found := _foreign_state(state)):
        return _build(path, found, {})

    if metadata.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path} is no generator of this project (format {metadata.get('format')!r}, expected "
            f"{_FORMAT!r}); give the file that `styleclip convert` or save_generator wrote"
        )

    with refusing(f"{path} has a damaged configuration"):
        config = GeneratorConfig(**json.loads(metadata["config"]))
    return _construct(path, config, state)


def _from_checkpoint(file: Checkpoint) -> Generator:
    record = nvidia.find_generator(file)
    if record is not None:
        state, extras = nvidia.read_generator(file, record)
        return _build(file.path, state, extras)

    content = file.content
    if not isinstance(content, dict):
        raise CheckpointError(f"{file.path} has no 'g_ema' weights (it holds one {type(content).__name__}); "
                              "give a StyleGAN2 generator")  # fmt: skip

    # an encoder or a mapper carries its generator along; what is left is a bare state dict
    nested = content.get("state_dict")
    if isinstance(content.get("g_ema"), dict):
        found = file.state(content["g_ema"])
    elif isinstance(nested, dict) and any(str(name).startswith("decoder.") for name in nested):
        found = file.state(nested, "decoder.")
    elif rosinality.looks_like_rosinality(content) or "synthesis.b4.const" in content:
        found = file.state(content)
    else:
        held = ", ".join(sorted(str(name)[:40] for name in content)[:8])
        raise CheckpointError(
            f"{file.path} has no 'g_ema' weights (it holds: {held[:200]}); give a StyleGAN2 generator: "
            "NVIDIA's .pkl, rosinality's .pt or this project's .safetensors"
        )

    average = content.get("latent_avg")
    state = _foreign_state(found, file.path)

    # one row, or one for each row of w_plus, all alike
    if is_array(average):
        rows = file.tensor(average)  # one, or one for each row of w_plus
        state["mapping.w_avg"] = rows.reshape(-1, *rows.shape[-1:])[0]
    elif average is not None:
        raise CheckpointError(f"{file.path}: its 'latent_avg' is no tensor; fetch it again")

    return _build(file.path, state, {})


def generator_from_rosinality(path: Path, state: dict[str, Tensor]) -> Generator:
    """Build the generator that another checkpoint carries along under rosinality's names.

    Raises:
        CheckpointError: If its weights are incomplete.
    """
    return _build(path, _foreign_state(state, path), {})


def _foreign_state(state: dict[str, Tensor], path: Path | None = None) -> dict[str, Tensor]:
    """Return weights under NVIDIA's names; nothing if they are of neither project."""
    if "synthesis.b4.const" in state:
        return dict(state)
    if path is None and not rosinality.looks_like_rosinality(state):
        return {}
    try:
        return rosinality.to_nvidia(state)
    except (CheckpointError, *DAMAGE) as error:
        raise CheckpointError(
            f"{path}: 'g_ema' is no rosinality StyleGAN2 ({error}); fetch it again"
        ) from error


def _build(path: Path, state: dict[str, Tensor], extras: Mapping[str, float | None]) -> Generator:
    # nothing is wrong with such a file, so that fetching it again would not help
    torgb = state.get("synthesis.b4.torgb.weight")
    colors = torgb.shape[0] if torgb is not None and torgb.ndim == 4 else 3
    if colors != 3:
        kind = "a grey-scale generator, of 1 channel" if colors == 1 else f"a generator of {colors} channels"
        raise CheckpointError(
            f"{path} is {kind}; 3 are needed (red, green, blue), as CLIP and encoders read them: give one "
            "that was trained on colour images"
        )

    try:
        config = _infer_config(state, extras)
    except (CheckpointError, *DAMAGE) as error:
        reason = f"the tensor {error} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"{path} holds no usable StyleGAN2 generator: {reason}; fetch it again"
        ) from error

    # the filter is a constant of the architecture, which most files leave out
    kernel = state.pop("resample_filter", None)
    for name in _kernel_names(config):
        state.setdefault(name, fir_kernel() if kernel is None else kernel)

    # a model trained or saved without noise draws as one whose noise has no strength
    for layer in _convs(config):
        side = int(re.search(r"\d+", layer)[0])  # type: ignore[index]
        if f"{layer}.noise_const" not in state:  # trained without noise, or saved without it
            state[f"{layer}.noise_const"] = torch.zeros(side, side * config.const_width // 4)
            state.setdefault(f"{layer}.noise_strength", torch.zeros([]))

    estimated = "mapping.w_avg" not in state
    state.setdefault("mapping.w_avg", torch.zeros(config.w_dim))

    generator = _construct(path, config, state)

    # of a conditional generator there is one average per class, and nobody said which is meant
    if estimated:
        if config.c_dim:
            raise CheckpointError(
                f"{path} is conditional and holds no average w; convert it with its own code"
            )
        average = rosinality.estimated_average(generator.mapping, config.z_dim)
        if not average.isfinite().all():
            raise CheckpointError(f"{path} maps z to values that are not finite; fetch it again")
        generator.mapping.w_avg.copy_(average)

    return generator


def _infer_config(state: Mapping[str, Tensor], extras: Mapping[str, float | None]) -> GeneratorConfig:
    """Infer the constructor's arguments from the shapes; files do not store them, or not all."""
    sides = sorted(
        int(match[1]) for name in state if (match := re.fullmatch(r"synthesis\.b(\d+)\.torgb\.weight", name))
    )

    const = state["synthesis.b4.const"]
    if sides != [4 << index for index in range(len(sides))] or const.ndim != 3 or const.shape[1] != 4:
        raise CheckpointError(f"its blocks have the sides {sides} and begin with {list(const.shape)}")

    # channels(side) = min(base / side, max), so any layer below the maximum gives the base
    widths = {side: state[f"synthesis.b{side}.conv1.weight"].shape[0] for side in sides}
    widest = max(widths.values())
    narrower = {side * width for side, width in widths.items() if width < widest}
    base = narrower.pop() if len(narrower) == 1 else widest * sides[-1]

    w_dim = state["synthesis.b4.conv1.affine.weight"].shape[1]
    c_dim = state["mapping.embed.weight"].shape[1] if "mapping.embed.weight" in state else 0

    config = GeneratorConfig(
        resolution=sides[-1],
        z_dim=state["mapping.fc0.weight"].shape[1] - (state["mapping.embed.weight"].shape[0] if c_dim else 0),
        w_dim=w_dim,
        c_dim=c_dim,
        mapping_layers=sum(bool(re.fullmatch(r"mapping\.fc\d+\.weight", name)) for name in state),
        channel_base=base,
        channel_max=widest,
        conv_clamp=extras.get("conv_clamp"),
        const_width=const.shape[2],
        mapping_lr=extras.get("mapping_lr") or 0.01,
    )

    # a file that lost layers, or has widths of its own, must not pass for a network it is not
    if any(config.channels(side) != width for side, width in widths.items()):
        raise CheckpointError(
            f"its layers have the channels {widths}, which no channel_base and channel_max of StyleGAN2 give"
        )

    return config


def _convs(config: GeneratorConfig) -> list[str]:
    return [
        f"synthesis.b{side}.{part}"
        for side in config.resolutions
        for part in (("conv1",) if side == 4 else ("conv0", "conv1"))
    ]


def _kernel_names(config: GeneratorConfig) -> list[str]:
    owners = [*_convs(config), *(f"synthesis.b{side}" for side in config.resolutions)]
    return [f"{owner}.resample_filter" for owner in owners]


def _construct(path: Path, config: GeneratorConfig, state: dict[str, Tensor]) -> Generator:
    with refusing(f"{path} holds no usable generator"):
        return Generator.from_state(config, state)
