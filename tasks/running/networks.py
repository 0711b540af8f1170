"""Networks, loaded once per worker process and kept.

Weights may lie on any file system; remote ones are copied once into a local cache, under the hash
of their content's location and version. Several tasks of one process share a network: inference
does not change it.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from styleclip_core import (
    load_clip,
    load_encoder,
    load_generator,
    load_identity,
    load_mapper,
    load_perceptual,
)
from styleclip_core.errors import CheckpointError
from styleclip_core.models.mtcnn import DetectionSettings, load_face_detector
from tasks.artifacts import ChangedInputError
from tasks.running.overlap import compute_slots, cores
from tasks.settings import Execution, is_clip_name
from tasks.storage import (
    StorageError,
    StoreFullError,
    copy_to_local,
    here,
    is_local,
    local_path,
    version,
)

_lock = threading.Lock()


class ChangedWeightsError(ChangedInputError):
    """Weights are no longer those that name what a run makes."""


class Network(Protocol):
    """A network that knows what it is made of."""

    @property
    def fingerprint(self) -> str:
        """Return the hash of its weights."""


@dataclass(frozen=True)
class Wanted:
    """A network as somebody needs it.

    Attributes:
        kind: What it is for: generator, clip, encoder, identity, perceptual, mapper or detector.
        uri: Where its weights lie; for a published CLIP, its name.
        device: Where it computes.
        expected: Content hash that its user's results are named after; empty where what is found names them.
        min_score: Of a face detector, the lowest score of a face.
    """

    kind: str
    uri: str
    device: str
    expected: str = ""
    min_score: float = 0.0

    @property
    def key(self) -> tuple[str, str, str, float]:
        """Return what a loaded network is kept under, by the number of its GPU: a process may be moved."""
        place = f"cuda:{torch.cuda.current_device()}" if self.device == "cuda" else self.device
        return self.kind, self.uri, place, self.min_score

    @property
    def is_file(self) -> bool:
        """Return whether it is given as a file, not by the name of a published CLIP."""
        return self.kind != "clip" or not is_clip_name(self.uri)

    def version(self) -> str:
        """Return what changes when the file is replaced."""
        return version(self.uri) if self.is_file else ""


@dataclass(frozen=True)
class _Kept:
    network: Network
    version: str  # of the file that it was loaded from


_loaded: dict[tuple[str, str, str, float], _Kept] = {}


def cache_folder() -> Path:
    """Return where downloads are kept: ``STYLECLIP_CACHE``, or ``~/.cache/styleclip``."""
    return Path(os.environ.get("STYLECLIP_CACHE") or Path.home() / ".cache" / "styleclip").expanduser()


def any_device() -> str:
    """Return ``"cuda"`` if there is a GPU, else ``"cpu"``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def pick_device(execution: Execution) -> str:
    """Return ``"cuda"`` or ``"cpu"``."""
    return any_device() if execution.device == "auto" else execution.device


def share_cores(device: str) -> None:
    """Give every computing thread its share of the cores; more threads than cores slow torch down."""
    if device == "cpu":
        torch.set_num_threads(max(1, cores() // compute_slots(device)))


def current(wanted: Wanted) -> Network:
    """Return a network as its file is now, loaded anew if the file has been replaced since."""
    with _lock:
        known = _loaded.get(wanted.key)
        if known and known.version != wanted.version():
            del _loaded[wanted.key]

    # outside of the lock, which loading takes itself
    return load(wanted)


def load(wanted: Wanted) -> Network:
    """Return a network, loaded once; refuse one that its user's results are not named after.

    Raises:
        CheckpointError: If there is no such network.
        ChangedWeightsError: If its content hash is not the expected one.
    """
    expected = wanted.expected
    with _lock:  # two threads must not load one network twice
        known = _loaded.get(wanted.key)

        # a run that began after the file was replaced may find the old weights kept here
        if known is None or (expected and known.network.fingerprint != expected):
            known = _loaded[wanted.key] = _read(wanted)

    found = known.network.fingerprint
    if expected and found != expected:
        raise ChangedWeightsError(
            f"the {wanted.kind} at {wanted.uri} has changed since this run began: it is {found[:16]}, "
            f"results are named after {expected[:16]}; put the old weights back and retry, or start a new run"
        )
    return known.network


def _read(wanted: Wanted) -> _Kept:
    if not wanted.is_file:
        return _Kept(load_clip(wanted.uri, device=wanted.device), "")

    # the version first: of a file that is replaced meanwhile, the next look sees another one
    path, found = local_weights(wanted.uri), wanted.version()
    if wanted.kind == "detector":
        settings = DetectionSettings(min_score=wanted.min_score)
        return _Kept(load_face_detector(path, wanted.device, settings=settings), found)
    return _Kept(_LOADERS[wanted.kind](path, device=wanted.device), found)


_LOADERS: dict[str, Callable[..., Network]] = {
    "generator": load_generator, "clip": load_clip, "encoder": load_encoder, "identity": load_identity,
    "perceptual": load_perceptual, "mapper": load_mapper,
}  # fmt: skip


def local_weights(uri: str) -> Path:
    """Return a local path of a weights file, copied into the cache if it lies elsewhere.

    Raises:
        CheckpointError: If there is no such file.
        StorageError: If it cannot be read.
    """
    if is_local(uri):
        path = local_path(uri)
        if not path.is_file():
            raise CheckpointError(
                f"no weights at {path}; give the path or URI of a file that exists where the run is executed "
                f"({here()})"
            )
        return path

    # its version is part of the name, so that a file that is replaced is copied anew
    digest = hashlib.sha256(f"{uri}\n{version(uri)}".encode()).hexdigest()[:32]
    path = cache_folder() / f"{digest}{Path(uri).suffix}"
    if not path.exists():
        _keep(uri, path)
    return path


def _keep(uri: str, path: Path) -> None:
    """Copy weights into the cache; what is wrong with the cache must not look like a fault of the store."""
    try:
        copy_to_local(uri, path)
    except StoreFullError as error:
        raise StoreFullError(
            f"cannot keep {uri} in the cache {path.parent}: no space is left on its disk; make room there, "
            "or set STYLECLIP_CACHE to a folder on another disk, then press Retry"
        ) from error
    except OSError as error:
        raise StorageError(
            f"cannot use the cache {path.parent}: {error.strerror or error}; set STYLECLIP_CACHE to a folder "
            "that can be written"
        ) from error
