"""A prompt for every image: how a batch grows with its distinct prompts.

The same thousand tiny images with more and more distinct captions, each edited by its own caption, on small
networks that compute next to nothing: what is left is what prompts cost around the computing. One prompt for
all images is the least that such a batch can take.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.report import Options, Section

if TYPE_CHECKING:
    from styleclip.tasks.settings.saving import Form

IMAGES = int(os.environ.get("STYLECLIP_BENCH_IMAGES", "1000"))
PROMPTS = tuple(map(int, os.environ.get("STYLECLIP_BENCH_PROMPTS", "1 200 1000").split()))


def measure(_options: Options) -> Iterator[Section]:
    """Yield a row for each number of prompts and each way to save."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    from prefect.testing.utilities import prefect_test_harness

    from tests.small_networks import write_small_networks

    rows, figures = [], dict[str, float]()
    with tempfile.TemporaryDirectory() as name, prefect_test_harness(server_startup_timeout=180):
        folder = Path(name)
        networks = write_small_networks(folder / "networks")
        _edit(networks, folder, 1, "images")  # the first run of a process loads what all share
        forms: tuple[Form, ...] = ("images", "webdataset")
        for to in forms:
            least = 0.0
            for prompts in PROMPTS:
                row, seconds = _edit(networks, folder, prompts, to)
                least = least or seconds
                rows.append((*row, f"{seconds / least:.2f}"))
                figures[f"{prompts} prompts, {to}: seconds over the first row's"] = seconds / least
    yield Section(
        f"{IMAGES} images of 16 px, an edit of each by its own caption, shards of 250, small networks",
        ("distinct prompts", "saved as", "s", "task runs", "objects in workspace", "in out", "over first"),
        rows,
        figures,
    )


def _edit(networks: dict[str, str], folder: Path, prompts: int, to: Form) -> tuple[tuple[str, ...], float]:
    """Return a row about a run, and its seconds."""
    from styleclip.flows.edit_images import edit_images
    from styleclip.tasks.settings import Execution, Inversion, Models, Relevance, Sampling, Saving
    from styleclip.tasks.settings.edits import Edit

    place = Path(tempfile.mkdtemp(dir=folder))
    _photographs(place / "in", prompts)
    edit = Edit(name="caption", neutral="a face", target="{caption}", alpha=2.0, beta=0.0, templates="none")

    started = time.monotonic()
    result = edit_images(
        Models(**networks), str(place / "in"), str(place / "out"), [edit], str(place / "work"),
        Sampling(statistics=8, codes=4), Relevance(samples=4), Inversion(steps=0),
        Execution(shard_size=250, device="cpu"), saving=Saving(to=to), most_variants=max(PROMPTS),
    )  # fmt: skip
    seconds = time.monotonic() - started

    report = result.report
    if report is None or (report.rows, report.failed) != (IMAGES, 0):
        raise RuntimeError(f"the run did not edit {IMAGES} images: {report}")
    counts = [sum(each.is_file() for each in (place / part).rglob("*")) for part in ("work", "out")]
    row = (f"{prompts:,}", to, f"{seconds:.1f}", f"{_task_runs():,}", *(f"{each:,}" for each in counts))
    print("; ".join(row), flush=True)  # noqa: T201 - the table is minutes away
    return row, seconds


def _photographs(folder: Path, prompts: int) -> None:
    """Write images, and the captions that they share between them."""
    from PIL import Image

    folder.mkdir()
    draw = np.random.default_rng(7)
    lines = ["file_name,caption"]
    for number in range(IMAGES):
        Image.fromarray(draw.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / f"{number:05d}.png")
        lines.append(f"{number:05d}.png,a face with hat {number % prompts}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


def _task_runs() -> int:
    """Return the task runs of the last flow run."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterFlowRunId
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        (last,) = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
        which, found = TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[last.id])), 0
        while mine := client.read_task_runs(task_run_filter=which, limit=200, offset=found):
            found += len(mine)
        return found
