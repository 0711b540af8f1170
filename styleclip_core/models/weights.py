"""How our networks are stored: as safetensors whose header names a format and the network's sizes.

Every loader reads two kinds of file: the one that its own ``save_*`` writes, and checkpoints as others
published them; the content tells which. Whatever does not fit is refused in one line that names the file,
the reason and the remedy.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from styleclip_core.errors import CheckpointError
from styleclip_core.files.checkpoint import (
    DAMAGE,
    Checkpoint,
    file_sha256,
    guarded,
    is_safetensors,
    open_checkpoint,
    read_state,
    write_state,
)
from styleclip_core.models.network import NetworkT


def read_network(
    path: str | Path,
    device: str | torch.device,
    *,
    ours: Callable[[Path, dict[str, Tensor], dict[str, str]], NetworkT],
    theirs: Callable[[Checkpoint], NetworkT],
) -> NetworkT:
    """Read a network and name it after its file.

    Args:
        path: The file.
        device: Where the weights go.
        ours: Builds the network from the path, the tensors and the header of safetensors.
        theirs: Builds it from an open checkpoint.

    Raises:
        CheckpointError: If the file is missing, damaged, hostile or of another kind.
    """
    path = Path(path)
    with guarded(path):
        if is_safetensors(path):
            network = ours(path, *read_state(path))
        else:
            with open_checkpoint(path) as file:
                network = theirs(file)

    # of the file, not of the tensors: what artifacts name is what a user can hash
    network.fingerprint = file_sha256(path)
    return network.to(device)


def save_network(
    network: nn.Module,
    path: str | Path,
    form: str,
    config: Mapping[str, object] | None = None,
    *,
    half: bool = False,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write a network as safetensors.

    Args:
        network: What to write.
        path: Where to.
        form: Name of the format, which the loader looks for.
        config: What fixes the architecture, where the shapes do not.
        half: Whether the weights are rounded to float16.
        extra: What else the header says.
    """
    state = network.state_dict()
    if half:
        state = {name: each.half() if each.is_floating_point() else each for name, each in state.items()}

    # the header is what makes a file ours: tensors alone say neither what they are nor how they fit
    header = {"format": form, **(extra or {})}
    if config is not None:
        header["config"] = json.dumps(config)
    write_state(path, state, header)


@contextlib.contextmanager
def refusing(what: str, remedy: str = "fetch it again") -> Iterator[None]:
    """Turn any failure to build a network from a file into one line: the file, the reason, the remedy.

    Raises:
        CheckpointError: If the block raises anything that weights of another architecture can cause.
    """
    try:
        yield
    except (CheckpointError, *DAMAGE) as error:
        raise CheckpointError(f"{what}: {error}; {remedy}") from error
