"""Bulk editing as it is deployed for the soak: slowed down, counted, with faults that a file asks for.

Loaded by the worker's process through its deployment. ``NIGHT_FOLDER`` holds the number of that process
(``pid``), a line for each image it has written (``executions``), and the fault (``fault``), if any.
"""

import itertools
import os
import time
from pathlib import Path

import torch

from styleclip.flows.edit_images import edit_images
from styleclip.tasks.editing import saving
from styleclip.tasks.editing import shards as editing
from styleclip.tasks.storage import listing, temporaries
from styleclip_core.models.stylegan2 import Generator

FOLDER = Path(os.environ["NIGHT_FOLDER"])
(FOLDER / "pid").write_text(str(os.getpid()))
listing._PAGE = 20

_write, _state, _synthesize = saving.write_bytes_atomic, editing.state_of, Generator.synthesize
_save = editing.save_image
_days = itertools.cycle((0.0, 2.0, -2.0))


def _fault() -> str:
    path = FOLDER / "fault"
    return path.read_text() if path.exists() else ""


def _slowly(uri: str, content: bytes) -> None:
    time.sleep(float(os.environ["NIGHT_PAUSE"]))
    _write(uri, content)
    with (FOLDER / "executions").open("a") as log:
        log.write(f"{os.getpid()} {uri}\n")


def _packing(planned, row, image, waiting):
    found = _save(planned, row, image, waiting)
    if planned.saving.packed:  # written much later, with its shard
        time.sleep(float(os.environ["NIGHT_PAUSE"]))
        with (FOLDER / "executions").open("a") as log:
            log.write(f"{os.getpid()} {planned.variant} {row['image_key']}\n")
    return found


def _breaking(planned, latents, shard):
    if _fault() == f"break {shard.number}":
        raise RuntimeError(f"injected: shard {shard.number} always fails")
    return _state(planned, latents, shard)


def _forgetting(generator, styles, *args, **options):
    if _fault() == "memory" and styles.batch_size > 1:
        raise torch.OutOfMemoryError("injected: out of memory")
    return _synthesize(generator, styles, *args, **options)


class _Clock:
    """The time of a machine whose clock is set back and forth by two days."""

    def time(self) -> float:
        return time.time() + (next(_days) * 86_400 if _fault() == "clock" else 0.0)


saving.write_bytes_atomic, editing.state_of, Generator.synthesize = _slowly, _breaking, _forgetting
editing.save_image = _packing
temporaries.time = _Clock()
__all__ = ["edit_images"]
