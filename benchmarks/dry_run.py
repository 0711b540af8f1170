"""Dry runs against the runs that follow them: how long each was said to take, and took.

Ten runs of different kinds, sizes and settings in one workspace on the embedded world, each with a dry run
before it. The first ones find no rates and are estimated from a sample, later ones also from what the runs
before them have measured. Each loads its networks, as processes of their own do; what a process imports is
there before the first. Whatever else the machine does changes between a dry run and its run, so the load is
printed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.report import Options, Section
from styleclip import data

if TYPE_CHECKING:
    from styleclip.flows.run import RunResult
    from styleclip.tasks.settings.edits import Edit

CLOSE = 1.5  # an estimate is good within this factor
TARGETS = ("face with glasses", "smiling face", "face with grey hair", "face with a beard", "open mouth")


@dataclass(frozen=True)
class Case:
    """A run.

    Attributes:
        name: What it does, in how much.
        start: Starts it; takes whether it is a dry run.
    """

    name: str
    start: Callable[[bool], RunResult]


def measure(_options: Options) -> Iterator[Section]:
    """Yield a table of ten runs."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    from prefect.testing.utilities import prefect_test_harness

    with tempfile.TemporaryDirectory() as folder, prefect_test_harness(server_startup_timeout=180):
        # the first runs of a process import what all others find: a dry run and a run elsewhere go before
        (elsewhere := Path(folder) / "warm").mkdir()
        _compare(next(_cases(elsewhere)))
        rows = [_compare(case) for case in _cases(Path(folder))]

    good = sum(1 / CLOSE <= ratio <= CLOSE for _, ratio in rows)
    inside = sum(row[-2] == "yes" for row, _ in rows)
    yield Section(
        f"ten runs on the embedded world; {good} of {len(rows)} took what was estimated within a factor of "
        f"{CLOSE}, {inside} were in their range",
        (
            "run", "dry run, s", "estimate, s", "range, s", "sampled", "took, s", "took / estimate",
            "in range", "load before and after",
        ),
        [row for row, _ in rows],
        {"within": float(good), "in range": float(inside), "runs": float(len(rows))},
    )  # fmt: skip


def _compare(case: Case) -> tuple[tuple[str, ...], float]:
    """Return a row about a run and its dry run, and how many times its estimate the run took."""
    from styleclip.tasks.running import networks

    networks._loaded.clear()
    load, began = os.getloadavg()[0], time.monotonic()
    seen = case.start(True).forecast
    looked = time.monotonic() - began
    if seen is None or seen.seconds is None:
        raise RuntimeError(f"the dry run of {case.name} has no time: {seen}")

    networks._loaded.clear()
    began = time.monotonic()
    case.start(False)
    took = time.monotonic() - began
    found, ratio = seen.seconds, took / seen.seconds.middle
    row = (
        case.name, f"{looked:.1f}", f"{found.middle:.1f}", f"{found.low:.1f} to {found.high:.1f}",
        ", ".join(seen.sampled) or "nothing", f"{took:.1f}", f"{ratio:.2f}",
        "yes" if found.low <= took <= found.high else "no", f"{load:.1f}, {os.getloadavg()[0]:.1f}",
    )  # fmt: skip
    print("; ".join(row), flush=True)  # noqa: T201 - a table of ten runs is minutes away
    return row, ratio


def _cases(folder: Path) -> Iterator[Case]:
    """Yield the runs, each in a place of its own, and all in one workspace."""
    from styleclip.flows.build_relevance import build_relevance
    from styleclip.flows.edit_images import edit_images
    from styleclip.flows.invert_images import invert_images
    from styleclip.flows.train_mapper import train_mapper
    from styleclip.tasks.settings import Inversion, MapperTraining, Models, Relevance, Sampling

    workspace = str(folder / "workspace")
    models = Models(
        generator=str(data.GENERATOR), clip=str(data.CLIP), encoder=str(data.ENCODER),
        identity=str(data.IDENTITY),
    )  # fmt: skip
    codes = Sampling(statistics=2000, codes=4)

    def invert(number: int, count: int, steps: int) -> Case:
        photos = _photographs(folder / f"photos-{number}", count)

        def start(dry: bool) -> RunResult:
            return invert_images(models, photos, workspace, Inversion(steps=steps), dry_run=dry)

        return Case(f"invert {count} photographs, {steps} steps", start)

    def edit(number: int, count: int, steps: int, edits: int, table: str = "") -> Case:
        photos = _photographs(folder / f"photos-{number}", count)
        wanted = _edits(edits, instant=not table)

        def start(dry: bool) -> RunResult:
            return edit_images(
                models, photos, str(folder / f"out-{number}"), wanted, workspace, codes,
                inversion=Inversion(steps=steps), table=table, dry_run=dry,
            )  # fmt: skip

        where = "from the table" if table else "instant"
        return Case(f"edit {count} photographs, {steps} steps, {edits} edits {where}", start)

    yield invert(1, 4, 0)
    yield edit(2, 8, 0, 1)
    build = partial(build_relevance, models, workspace, codes, Relevance(samples=1))
    yield Case("build a table of 1 sample", lambda dry: build(dry_run=dry))
    table = str(next((folder / "workspace" / "relevance").glob("*/relevance.parquet")).parent)
    yield edit(4, 24, 10, 3, table)
    yield invert(5, 16, 60)
    yield edit(6, 96, 0, 2, table)
    yield edit(7, 4, 30, 5, table)
    few = MapperTraining(preset="small", steps=12, codes=200, validation=20, validate_every=6)
    train = partial(train_mapper, models, [TARGETS[0]], workspace, few)
    yield Case("train a mapper for 12 steps", lambda dry: train(dry_run=dry))
    yield edit(9, 48, 20, 1, table)
    yield edit(10, 32, 40, 2)


def _edits(count: int, *, instant: bool) -> list[Edit]:
    from styleclip.tasks.settings.edits import Edit

    relevance = {"relevance": "instant"} if instant else {}
    return [
        Edit.model_validate({"target": target, "alpha": 3.0, "top_k": 20, **relevance})
        for target in TARGETS[:count]
    ]


def _photographs(folder: Path, count: int) -> str:
    """Copy some of the embedded photographs into a folder of their own."""
    folder.mkdir()
    for path in sorted(data.PHOTOGRAPHS.glob("*.png"))[:count]:
        shutil.copy(path, folder)
    return str(folder)
