"""Weights of any place as files of this machine: copied once into the cache, by their place and version.

A CLIP of open_clip or transformers is a folder: its configuration, its weights and its tokenizer's files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from styleclip.tasks.storage import (
    StorageError,
    StoreFullError,
    copy_to_local,
    exists,
    here,
    is_local,
    join,
    local_path,
    version,
    versions_of,
)
from styleclip_core.errors import CheckpointError
from styleclip_core.models.catalog import catalog
from styleclip_core.models.clip_sources import FILES, OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG, WEIGHTS


def cache_folder() -> Path:
    """Return where downloads are kept: ``STYLECLIP_CACHE``, or ``~/.cache/styleclip``."""
    return Path(os.environ.get("STYLECLIP_CACHE") or Path.home() / ".cache" / "styleclip").expanduser()


def _remedy(name: str) -> str:
    """Return where weights of a name are to be had."""
    # people write the name that the list of published models has, as they do of a CLIP
    if name in catalog():
        return (
            f"{name} is a published model, of which the file is wanted: 'styleclip models fetch {name}' "
            "downloads it and says where it lies"
        )
    return f"give the path or URI of a file that exists where the run is executed ({here()})"


def local_weights(uri: str) -> Path:
    """Return a local path of a weights file, copied into the cache if it lies elsewhere.

    Raises:
        CheckpointError: If there is no such file.
        StorageError: If it cannot be read.
    """
    if is_local(uri):
        path = local_path(uri)
        if not path.is_file():
            raise CheckpointError(f"no weights at {path}; {_remedy(path.name)}")
        return path

    # its version is part of the name, so that a file that is replaced is copied anew
    digest = hashlib.sha256(f"{uri}\n{version(uri)}".encode()).hexdigest()[:32]
    path = cache_folder() / f"{digest}{Path(uri).suffix}"
    if not path.exists():
        _keep(uri, path)
    return path


def local_clip(place: str) -> Path:
    """Return a local path of a CLIP's file or folder, copied into the cache if it lies elsewhere.

    Raises:
        CheckpointError: If there is nothing there.
        StorageError: If it cannot be read.
    """
    if not is_folder(place):
        return local_weights(place)
    if is_local(place):
        return local_path(place)

    # all versions together are the name: files of two publications must not lie in one folder
    found = _files(place)
    digest = hashlib.sha256(f"{place}\n{sorted(found.items())}".encode()).hexdigest()[:32]
    folder = cache_folder() / digest
    for name in found:
        if not (folder / name).exists():
            _keep(join(place, name), folder / name)
    return folder


def clip_version(place: str) -> str:
    """Return what changes when a CLIP's file, or one of those of its folder, is replaced."""
    return str(sorted(_files(place).items())) if is_folder(place) else version(place)


def is_folder(place: str) -> bool:
    """Return whether a CLIP is a folder with its configuration, not one file of weights."""
    if is_local(place):
        return local_path(place).is_dir()
    return not exists(place) and bool(versions_of(place, (OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG)))


def _files(place: str) -> Mapping[str, str]:
    """Return the versions of the files of a folder that a CLIP is made of."""
    found = versions_of(place, (*FILES, *WEIGHTS))
    # repositories hold the same weights in several forms
    unused = [name for name in WEIGHTS if name in found][1:]
    return {name: each for name, each in found.items() if name not in unused}


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
