"""Weights files -> networks, without running anything that a file contains.

Read are our safetensors (their header says what they are) and rosinality's ``.pt`` through torch's
``weights_only`` unpickler. A file is named by the SHA-256 of its content, its fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from styleclip_core.errors import CheckpointError
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig

_FORMAT, _HEADER = "styleclip-generator-1", "styleclip"
_W_AVG_SAMPLES, _W_AVG_SEED = 10_000, 0
# what unpicklers and constructors raise on damaged content; all of it means "not these weights"
_DAMAGE = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)


def load_generator(path: str | Path, device: str | torch.device = "cpu") -> Generator:
    """Read a StyleGAN2 generator.

    Args:
        path: Our ``.safetensors``, or rosinality's ``.pt`` (a dict with ``g_ema``). Sizes are
            inferred from the shapes; a missing ``latent_avg`` is estimated from 10,000 seeded z.
        device: Where the weights go.

    Returns:
        The generator in evaluation mode; ``fingerprint`` is the file's SHA-256.

    Raises:
        CheckpointError: If the file is missing, damaged, or of another kind.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        generator = _from_safetensors(path)
    elif path.suffix in (".pt", ".pth"):
        generator = _from_rosinality(path)
    else:
        raise CheckpointError(
            f"{path}: a generator is read from .safetensors (this project's) or .pt (rosinality's); "
            f"{path.suffix or 'no suffix'} is neither. NVIDIA's .pkl must be exported to one of them first"
        )
    generator.fingerprint = file_sha256(path)
    return generator.to(device)


def save_generator(generator: Generator, path: str | Path) -> None:
    """Write a generator as safetensors with its configuration in the header."""
    metadata = {"format": _FORMAT, "config": json.dumps(generator.config.to_dict(), sort_keys=True)}
    write_state(path, generator.state_dict(), metadata)


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, 64 hex digits."""
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def read_state(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file.

    Returns:
        Its tensors and the metadata of its header.

    Raises:
        CheckpointError: If the file is missing or damaged.
    """
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
            if not isinstance(metadata, dict):
                raise ValueError(f"its header is {metadata!r:.40}, not an object")
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise _unreadable(path, error) from error


def write_state(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and text metadata as safetensors; the file appears whole or not at all."""
    path = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    # one entry: several would come in an order of their own in every process
    data = safetensors.torch.save(tensors, {_HEADER: json.dumps(dict(metadata), sort_keys=True)})
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(aside).chmod(0o644)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def read_plain_pickle(path: str | Path) -> object:
    """Read a ``.pt`` file of tensors and plain containers; nothing in it is ever executed.

    Raises:
        CheckpointError: If the file is missing, damaged, or holds anything else.
    """
    try:
        if _is_torchscript(path):
            raise CheckpointError(
                f"{path} cannot be read as weights: it is a TorchScript archive, which holds code; "
                "save its state dict instead"
            )
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError, *_DAMAGE) as error:
        raise _unreadable(path, error) from error


def _is_torchscript(path: str | Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _unreadable(path: str | Path, error: Exception) -> CheckpointError:
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"no weights file at {path}; give the path of an existing file")
    reason = " ".join(str(error).split())[:200]
    return CheckpointError(
        f"{path} cannot be read as weights ({reason}); it is damaged, incomplete or of another kind: "
        "fetch it again"
    )


def _from_safetensors(path: Path) -> Generator:
    state, metadata = read_state(path)
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path} is no generator of this project (format {metadata.get('format')!r}, expected "
            f"{_FORMAT!r}); write it with save_generator"
        )
    try:
        config = GeneratorConfig(**json.loads(metadata["config"]))
    except (KeyError, TypeError, ValueError, CheckpointError) as error:
        raise CheckpointError(f"{path} has a damaged configuration: {error}; fetch it again") from error
    return _build(path, config, state)


def _build(path: Path, config: GeneratorConfig, state: dict[str, Tensor]) -> Generator:
    try:
        return Generator.from_state(config, state)
    except (CheckpointError, *_DAMAGE) as error:
        raise CheckpointError(f"{path} holds no usable generator: {error}; fetch it again") from error


def _from_rosinality(path: Path) -> Generator:
    content = read_plain_pickle(path)
    if not isinstance(content, dict) or not isinstance(content.get("g_ema"), dict):
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"{path} has no 'g_ema' weights (it holds: {found[:200]}); give a rosinality snapshot"
        )
    theirs = content["g_ema"]
    average = content.get("latent_avg")
    try:
        config = _rosinality_config(theirs)
        state = rosinality_to_nvidia(theirs, config)
        state["mapping.w_avg"] = torch.zeros(config.w_dim) if average is None else average.reshape(-1)
    except KeyError as error:
        raise CheckpointError(
            f"{path}: 'g_ema' is no rosinality StyleGAN2, {error} is missing; fetch it again"
        ) from error
    except (CheckpointError, *_DAMAGE) as error:
        raise CheckpointError(
            f"{path}: 'g_ema' is no rosinality StyleGAN2 ({error}); fetch it again"
        ) from error
    generator = _build(path, config, state)
    if average is None:
        source = torch.Generator().manual_seed(_W_AVG_SEED)
        with torch.no_grad():
            z = torch.randn(_W_AVG_SAMPLES, config.z_dim, generator=source)
            generator.mapping.w_avg.copy_(generator.mapping(z).mean(dim=0))
    return generator


def _rosinality_config(state: Mapping[str, Tensor]) -> GeneratorConfig:
    """Infer the constructor's arguments from the shapes; they are not stored."""
    layers = [name for name in state if re.fullmatch(r"style\.\d+\.weight", name)]
    doublings = [name for name in state if re.fullmatch(r"to_rgbs\.\d+\.bias", name)]
    width = state[f"convs.{2 * len(doublings) - 1}.conv.weight"].shape[1]
    config = GeneratorConfig(
        resolution=4 * 2 ** len(doublings),
        z_dim=state["style.1.weight"].shape[1],
        w_dim=state["style.1.weight"].shape[0],
        mapping_layers=len(layers),
        channel_base=width * 4 * 2 ** len(doublings),
        channel_max=state["input.input"].shape[1],
    )
    widest = [state[f"convs.{2 * index}.conv.weight"].shape[1] for index in range(len(doublings))]
    if widest != [config.channels(8 * 2**index) for index in range(len(doublings))]:
        base = (
            max(c * 8 * 2**i for i, c in enumerate(widest) if c < config.channel_max)
            if min(widest) < config.channel_max
            else 512 * config.resolution
        )
        return GeneratorConfig(**{**config.to_dict(), "channel_base": base})  # type: ignore[arg-type]
    return config


def rosinality_to_nvidia(state: Mapping[str, Tensor], config: GeneratorConfig) -> dict[str, Tensor]:
    """Return rosinality's generator weights under NVIDIA's names, without ``mapping.w_avg``.

    Raises:
        KeyError: If a tensor is missing.
        CheckpointError: If one is left over; sizes are inferred from names, so a file that lost its
            last layer would otherwise pass for a smaller generator.
    """
    ours: dict[str, Tensor] = {}
    left = dict(state)
    for index in range(config.mapping_layers):
        for part in ("weight", "bias"):
            ours[f"mapping.fc{index}.{part}"] = left.pop(f"style.{index + 1}.{part}")
    ours["synthesis.b4.const"] = left.pop("input.input")[0]
    kernel = _fir_of(state)
    for index, resolution in enumerate(config.resolutions):
        block = f"synthesis.b{resolution}"
        ours[f"{block}.resample_filter"] = kernel
        convs = {"conv1": ("conv1", 0)} if index == 0 else {
            "conv0": (f"convs.{2 * index - 2}", 2 * index - 1),
            "conv1": (f"convs.{2 * index - 1}", 2 * index),
        }  # fmt: skip
        for name, (source, noise) in convs.items():
            target = f"{block}.{name}"
            ours[f"{target}.weight"] = left.pop(f"{source}.conv.weight")[0]
            ours[f"{target}.affine.weight"] = left.pop(f"{source}.conv.modulation.weight")
            ours[f"{target}.affine.bias"] = left.pop(f"{source}.conv.modulation.bias")
            ours[f"{target}.bias"] = left.pop(f"{source}.activate.bias")
            ours[f"{target}.noise_strength"] = left.pop(f"{source}.noise.weight").reshape([])
            ours[f"{target}.noise_const"] = left.pop(f"noises.noise_{noise}")[0, 0]
            ours[f"{target}.resample_filter"] = kernel
        source, target = "to_rgb1" if index == 0 else f"to_rgbs.{index - 1}", f"{block}.torgb"
        ours[f"{target}.weight"] = left.pop(f"{source}.conv.weight")[0]
        ours[f"{target}.bias"] = left.pop(f"{source}.bias").reshape(-1)
        ours[f"{target}.affine.weight"] = left.pop(f"{source}.conv.modulation.weight")
        ours[f"{target}.affine.bias"] = left.pop(f"{source}.conv.modulation.bias")
    unused = sorted(name for name in left if not name.endswith(".kernel"))
    if unused:
        raise CheckpointError(f"{', '.join(unused[:4])} belongs to no layer; a neighbor of it is missing")
    return ours


def _fir_of(state: Mapping[str, Tensor]) -> Tensor:
    stored = state.get("convs.0.conv.blur.kernel")
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = taps[:, None] * taps[None, :] if stored is None else stored
    return kernel / kernel.sum()  # rosinality stores it times the upsampling gain
