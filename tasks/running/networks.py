"""Networks, loaded once per worker process and kept.

Weights may lie on any file system; remote ones are copied once into a local cache, under the hash
of their content's location and version. Several tasks of one process share a network: inference
does not change it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from styleclip.tasks.artifacts import ChangedInputError
from styleclip.tasks.running.overlap import compute_slots, cores
from styleclip.tasks.running.weights import cache_folder as cache_folder
from styleclip.tasks.running.weights import clip_version, local_clip
from styleclip.tasks.running.weights import local_weights as local_weights
from styleclip.tasks.settings import Execution
from styleclip.tasks.storage import version
from styleclip_core import (
    load_clip,
    load_encoder,
    load_generator,
    load_identity,
    load_mapper,
    load_perceptual,
)
from styleclip_core.models.clip_names import clip_place, parse_clip
from styleclip_core.models.mtcnn import DetectionSettings, load_face_detector

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
        uri: Where its weights lie; for a CLIP any spelling of ``clip_names``.
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
    def place(self) -> str:
        """Return where its file or folder lies; nothing for the name of a published CLIP."""
        return clip_place(self.uri) if self.kind == "clip" else self.uri

    def version(self) -> str:
        """Return what changes when the file is replaced."""
        if not self.place:
            return ""
        return clip_version(self.place) if self.kind == "clip" else version(self.place)


@dataclass(frozen=True)
class _Kept:
    network: Network
    version: str  # of the file that it was loaded from


_loaded: dict[tuple[str, str, str, float], _Kept] = {}


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
    if wanted.kind == "clip":
        return _read_clip(wanted)

    # the version first: of a file that is replaced meanwhile, the next look sees another one
    path, found = local_weights(wanted.uri), wanted.version()
    if wanted.kind == "detector":
        settings = DetectionSettings(min_score=wanted.min_score)
        return _Kept(load_face_detector(path, wanted.device, settings=settings), found)
    return _Kept(_LOADERS[wanted.kind](path, device=wanted.device), found)


def _read_clip(wanted: Wanted) -> _Kept:
    chosen = parse_clip(wanted.uri)
    local, found = str(local_clip(wanted.place)) if wanted.place else "", wanted.version()
    given = chosen.at(local).given if local else wanted.uri

    # nobody reads a warning of a batch: what a file does not say is said by who runs it
    return _Kept(load_clip(given, device=wanted.device, assume=None), found)


_LOADERS: dict[str, Callable[..., Network]] = {
    "generator": load_generator, "encoder": load_encoder, "identity": load_identity,
    "perceptual": load_perceptual, "mapper": load_mapper,
}  # fmt: skip
