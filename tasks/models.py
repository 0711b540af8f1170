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
from pathlib import Path
from typing import TypeVar

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
from styleclip_core.models.clip import ClipModel
from styleclip_core.models.encoder import Encoder
from styleclip_core.models.identity import CompactIdentity, IdentityNetwork
from styleclip_core.models.lpips import PerceptualDistance
from styleclip_core.models.mapper import Mapper
from styleclip_core.models.mtcnn import DetectionSettings, Mtcnn, load_face_detector
from styleclip_core.models.psp import PspEncoder
from styleclip_core.models.stylegan2 import Generator
from tasks.overlap import compute_slots
from tasks.settings import Execution
from tasks.storage import copy_to_local, is_local, local_path, version

_T = TypeVar("_T")
_lock = threading.Lock()
_loaded: dict[tuple[str, str, str], object] = {}


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
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // compute_slots(device)))


def generator(uri: str, device: str) -> Generator:
    """Return the generator at ``uri``."""
    return _cached("generator", uri, device, lambda: load_generator(local_weights(uri), device=device))


def encoder(uri: str, device: str) -> Encoder | PspEncoder:
    """Return the encoder at ``uri``."""
    return _cached("encoder", uri, device, lambda: load_encoder(local_weights(uri), device=device))


def identity(uri: str, device: str) -> IdentityNetwork | CompactIdentity:
    """Return the identity network at ``uri``."""
    return _cached("identity", uri, device, lambda: load_identity(local_weights(uri), device=device))


def perceptual(uri: str, device: str) -> PerceptualDistance:
    """Return the perceptual distance at ``uri``."""
    return _cached("perceptual", uri, device, lambda: load_perceptual(local_weights(uri), device=device))


def mapper(uri: str, device: str) -> Mapper:
    """Return the latent mapper at ``uri``."""
    return _cached("mapper", uri, device, lambda: load_mapper(local_weights(uri), device=device))


def clip(name: str, device: str) -> ClipModel:
    """Return the CLIP called ``name`` or stored at that URI."""

    def load() -> ClipModel:
        stored = "://" in name or name.endswith((".pt", ".safetensors"))
        return load_clip(str(local_weights(name)) if stored else name, device=device)

    return _cached("clip", name, device, load)


def face_detector(uri: str, device: str, min_score: float) -> Mtcnn:
    """Return the face detector at ``uri``."""
    settings = DetectionSettings(min_score=min_score)
    kind = f"face detector of {min_score!r}"
    return _cached(
        kind, uri, device, lambda: load_face_detector(local_weights(uri), device, settings=settings)
    )


def _cached(kind: str, uri: str, device: str, load: Callable[[], _T]) -> _T:
    key = (kind, uri, device)
    with _lock:  # two threads must not load one network twice
        if key not in _loaded:
            _loaded[key] = load()
        return _loaded[key]  # type: ignore[return-value]


def local_weights(uri: str) -> Path:
    """Return a local path of a weights file, copied into the cache if it lies elsewhere.

    Raises:
        CheckpointError: If there is no such file.
        StorageError: If it cannot be read.
    """
    if is_local(uri):
        path = local_path(uri)
        if not path.is_file():
            raise CheckpointError(f"no weights at {path}; give the path or URI of an existing file")
        return path
    digest = hashlib.sha256(f"{uri}\n{version(uri)}".encode()).hexdigest()[:32]
    path = cache_folder() / f"{digest}{Path(uri).suffix}"
    if not path.exists():
        copy_to_local(uri, path)
    return path
