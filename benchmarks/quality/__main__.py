"""Quality of edits against the truth of the embedded world, at matched moves of the target.

    python -m benchmarks.quality --help

Forty prompts; every way to edit is swept over its strength, and compared where the target factor has
moved half of the way it can go, and three quarters. What is done lies under ``--out``, a file per way and
prompt, and a later call goes on from there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.quality.baselines import component, linear
from benchmarks.quality.colours import colour_section
from benchmarks.quality.dictionary import learnt_rows
from benchmarks.quality.estimators import by, plain, projected, whitened
from benchmarks.quality.prompts import PROMPTS, tunes
from benchmarks.quality.report import markdown, sections
from benchmarks.quality.sweep import Portraits, sweep
from benchmarks.quality.truth import Marks, Truths, judge_way, marks, truth_sections
from benchmarks.quality.ways import (
    BETAS,
    Way,
    automatic,
    automatic_matched,
    by_gradients,
    by_table,
    default,
    mapped,
    matched,
    optimized,
)
from benchmarks.quality.world import Counts, QualityWorld
from benchmarks.report import hardware
from styleclip import data
from styleclip.data.world.quality import Prompt
from styleclip_core.editing import Weights
from styleclip_core.files.checkpoint import read_state, write_state
from styleclip_core.mapper_training import PRESETS as MAPPER_PRESETS
from styleclip_core.optimization import PRESETS

Sets = Callable[[QualityWorld], Portraits]
WAYS: dict[str, tuple[Way, Sets]] = {
    "exact, validation": (by_table(lambda world: world.exact_table), lambda world: world.chosen_on),
    "exact": (by_table(lambda world: world.exact_table), lambda world: world.judged),
    "automatic": (automatic("least-squares"), lambda world: world.judged),
    "automatic, relevance": (automatic("relevance"), lambda world: world.judged),
    "matched": (matched, lambda world: world.judged),
    "automatic, matched": (automatic_matched, lambda world: world.judged),
    "default": (default, lambda world: world.judged),
    "fast": (by_table(lambda world: world.fast_table[0]), lambda world: world.judged),
    "instant": (by_gradients, lambda world: world.judged),
    "reference": (by_table(lambda world: world.reference_table[0]), lambda world: world.judged),
    "linear": (linear, lambda world: world.judged),
    "components": (component, lambda world: world.judged),
    "projected text": (by(projected), lambda world: world.judged),
    "whitened rows": (by(whitened), lambda world: world.judged),
    "least squares": (by_table(lambda world: world.exact_table, "least-squares"), lambda world: world.judged),
    "learnt dictionary": (by(plain, learnt_rows), lambda world: world.judged),
    "mapper": (mapped("small"), lambda world: world.judged),
    "mapper, faithful": (mapped("faithful"), lambda world: world.judged),
    "optimization": (optimized("gentle"), lambda world: world.slow),
    "optimization, faithful": (optimized("faithful"), lambda world: world.slow),
}


CHOICES: dict[str, Weights | Literal["matched"]] = {
    "automatic": "least-squares", "automatic, relevance": "relevance", "automatic, matched": "matched",
}  # fmt: skip


def place(out: Path, counts: Counts) -> Path:
    """Return the folder of these settings and models, so that none of them are mixed."""
    files = (data.GENERATOR, data.CLIP, data.ENCODER, data.REGRESSOR, data.IDENTITY)
    models = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    decided = {
        "models": models, "counts": asdict(counts), "betas": BETAS,
        "mapper": [asdict(MAPPER_PRESETS[name]) for name in ("small", "faithful")],
        "optimization": [asdict(PRESETS[name]) for name in ("gentle", "faithful")],
        "prompts": [asdict(each) for each in PROMPTS],
    }  # fmt: skip
    return out / hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:12]


Cell = dict[str, dict[str, Tensor]]  # setting -> what a sweep measured


def measure(world: QualityWorld, folder: Path, way: str, prompt: Prompt) -> Cell:
    """Return the sweeps of a way for a prompt; measured now if no earlier call has."""
    path = _path(folder, way, prompt)
    if not path.exists():
        started = time.process_time()
        edits, chosen = WAYS[way]
        start = chosen(world)
        found = {
            each.setting: sweep(world, start, prompt, each.move, each.first, most=1 if each.once else 8)
            for each in edits(world, prompt, start)
        }
        flat = {
            f"{setting}/{name}": value for setting, parts in found.items() for name, value in parts.items()
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_state(path, {**flat, "seconds": torch.tensor(time.process_time() - started)}, {})
    return _read(path)


def judge(world: QualityWorld, folder: Path, way: str, prompt: Prompt) -> Truths:
    """Return how far a way's edits are from the true pictures; measured now if no earlier call has.

    ``way`` may be a mark, which is measured together with the other one.
    """
    path = _truth(folder, way, prompt)
    if not path.exists():
        if way in Marks:
            found = marks(world, prompt)
        else:
            edits, chosen = WAYS[way]
            start = chosen(world)
            own = world.choice(prompt, CHOICES[way])[0] if way in CHOICES else None
            found = {way: judge_way(world, prompt, start, edits(world, prompt, start), own)}
        for name, truths in found.items():
            _truth(folder, name, prompt).parent.mkdir(parents=True, exist_ok=True)
            write_state(_truth(folder, name, prompt), {**truths, "seconds": torch.zeros(1)}, {})
    return _truths(path)


def _truth(folder: Path, way: str, prompt: Prompt) -> Path:
    return folder / "truth" / way.replace(", ", "-") / f"{prompt.name}.safetensors"


def _truths(path: Path) -> Truths:
    return {name: value for name, value in read_state(path)[0].items() if "/" in name}


def _path(folder: Path, way: str, prompt: Prompt) -> Path:
    return folder / "cells" / way.replace(", ", "-") / f"{prompt.name}.safetensors"


def _read(path: Path) -> Cell:
    found: Cell = {}
    for key, value in read_state(path)[0].items():
        setting, _, name = key.rpartition("/")
        if name != "seconds":
            found.setdefault(setting, {})[name] = value
    return found


def in_order(prompts: tuple[Prompt, ...]) -> Iterator[Prompt]:
    """Yield every second prompt, then the others: half of them name nearly all factors."""
    yield from prompts[::2]
    yield from prompts[1::2]


def _jobs(ways: list[str], *, truth_alone: bool) -> Iterator[tuple[Callable[..., object], str]]:
    """Yield what to measure of which way, then against the true pictures, the marks last."""
    if not truth_alone:
        yield from ((measure, name) for name in ways)
    yield from ((judge, name) for name in ways if name != "exact, validation")
    yield judge, Marks[0]


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/quality"), help="folder for results")
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), help="ways to measure [default: all]")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="of the 40, how many")
    parser.add_argument("--truth", action="store_true", help="measure against the true pictures alone")
    parser.add_argument("--show", action="store_true", help="print what there is and measure nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    counts, console = Counts(), Console(width=150)
    folder = place(given.out, counts)
    world = QualityWorld(counts, folder)
    ordered = list(in_order(PROMPTS))[: given.prompts]
    for work, name in () if given.show else _jobs(given.ways or list(WAYS), truth_alone=given.truth):
        for prompt in ordered:
            started = time.process_time()
            work(world, folder, name, prompt)
            console.print(f"{name}, {prompt.name}: {time.process_time() - started:.1f} s", highlight=False)

    def cells(way: str, prompt: Prompt) -> Cell | None:
        path = _path(folder, way, prompt)
        return _read(path) if path.exists() else None

    def truths(way: str, prompt: Prompt) -> Truths | None:
        path = _truth(folder, way, prompt)
        return _truths(path) if path.exists() else None

    untuned = [each for each in PROMPTS if not tunes(each)]
    found = sections(world, list(WAYS), cells) + truth_sections(list(WAYS), untuned, truths)
    if not given.show or (folder / "colours").exists():
        found.append(colour_section(world))
    text = markdown(found)
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    content = {"hardware": hardware(), "counts": asdict(counts), "sections": [asdict(each) for each in found]}
    (folder / "quality.md").write_text(text)
    (folder / "quality.json").write_text(json.dumps(content, indent=2) + "\n")
    console.print(f"every measurement in {folder}, this table in quality.md and quality.json there")


if __name__ == "__main__":
    main()
