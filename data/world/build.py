"""Rebuild the embedded models and photographs from their seeds: ``make models``.

Stages run two at a time, each on its own core (one thread each is faster than two threads for
networks this small), and every stage resumes where it was stopped:

    CLIP           |  generator, structure
    regressor      |  generator, detail (needs CLIP)
    identity       |  encoder (needs the generator)
    photographs
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from styleclip import data
from styleclip.data.world import (
    photographs,
    regressor,
    train_clip,
    train_encoder,
    train_generator,
    train_identity,
)
from styleclip.data.world.dataset import RenderedPortraits
from styleclip_core import load_generator, save_generator

logger = logging.getLogger("styleclip.world")
DEFAULT_BUILD = Path("build/world")


def build_clip(build: Path) -> None:
    """Train CLIP."""
    if not (build / "clip.pt").exists():
        train_clip.train(build)


def build_structure(build: Path) -> None:
    """Train the first half of the generator."""
    if not (build / "generator.safetensors").exists():
        train_generator.train(build, until=train_generator.STRUCTURE_STEPS)


def build_generator(build: Path) -> None:
    """Train the second half of the generator."""
    path = build / "generator.safetensors"
    if not path.exists():
        save_generator(train_generator.finish(train_generator.train(build)), path)


def build_regressor(build: Path) -> None:
    """Train the factor regressor."""
    if not (build / "regressor.safetensors").exists():
        regressor.train(build)


def build_encoder(build: Path) -> None:
    """Train the encoder."""
    if not (build / "encoder.safetensors").exists():
        train_encoder.train(build, load_generator(build / "generator.safetensors"))


def build_identity(build: Path) -> None:
    """Train the identity network."""
    if not (build / "identity.safetensors").exists():
        train_identity.train(build)


def _stage(work: Callable[[Path], None], build: Path) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    torch.set_num_threads(1)
    work(build)


def _side_by_side(build: Path, *stages: Callable[[Path], None]) -> None:
    context = multiprocessing.get_context("spawn")
    running = [context.Process(target=_stage, args=(stage, build), name=stage.__name__) for stage in stages]
    for process in running:
        process.start()
    for process in running:
        process.join()
    broken = [process.name for process in running if process.exitcode != 0]
    if broken:
        raise SystemExit(f"{' and '.join(broken)} stopped; run `make models` again to resume")


def install(build: Path) -> None:
    """Copy the finished models into the package and write the photographs."""
    data.WEIGHTS.mkdir(parents=True, exist_ok=True)
    for target in (data.GENERATOR, data.CLIP, data.ENCODER, data.REGRESSOR, data.IDENTITY):
        shutil.copy(build / target.name, target)
    factors = photographs.held_out_factors(photographs.PHOTOGRAPH_SEED, photographs.COUNT)
    photographs.write_photographs(data.PHOTOGRAPHS, factors)
    photographs.write_labels(data.PHOTOGRAPHS, factors)


def main() -> None:
    """Build everything that is not built yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=DEFAULT_BUILD, help="folder for checkpoints")
    build = parser.parse_args().build
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    where = "a GPU" if torch.cuda.is_available() else "the CPU: about 80 minutes on 2 cores"
    logger.info("training on %s; stop at any time, the next call resumes", where)
    started = time.monotonic()
    RenderedPortraits.prepare(build)
    _side_by_side(build, build_clip, build_structure)
    _side_by_side(build, build_generator, build_regressor)
    _side_by_side(build, build_identity, build_encoder)
    install(build)
    logger.info(
        "models in %s after %.0f s; measure them with `make world-quality`",
        data.WEIGHTS,
        time.monotonic() - started,
    )


if __name__ == "__main__":
    main()
