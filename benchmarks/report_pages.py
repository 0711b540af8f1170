"""What the page of a batch costs: time, memory and size for 1,000 and for 10,000 images.

The images are drawn and small, and lie on this machine; editing them is not part of the time. Each size runs
in a process of its own. Memory is the kernel's high-water mark of what is resident, less what was resident
before the first step. A second page of the same batch finds its thumbnails made.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.batches import make_batch
from benchmarks.report import Options, Section
from styleclip.tasks.settings.edits import Edit

SIZES = (1_000, 10_000)
_FACES, _SIDE = 64, 64
_SIZES_OF = {
    "memory": "peak memory", "index.html": "index.html", "largest": "largest file beside it",
    "beside": "all files beside it",
}  # fmt: skip
EDITS = [
    Edit(name="grey-hair", target="face with grey hair", alpha=(2.0, 4.0), beta=0.1),
    Edit(name="red-hair", target="face with red hair", alpha=2.0, beta=0.2),
]
_CHILD = """
import json, sys, time
from pathlib import Path
from styleclip.tasks.reports.page.page import build_page
from styleclip.tasks.reports.page.thumbnails import plan_page, thumbnail_chunk
from styleclip.tasks.running.run import Run
manifest, workspace = sys.argv[1:]
def status(name):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name))
    return int(line.split()[1]) * 1024
def timed(work):
    started = time.perf_counter(), time.process_time()
    found = work()
    return found, time.perf_counter() - started[0], time.process_time() - started[1]
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
plan, *planning = timed(lambda: plan_page.fn(Run(workspace=workspace), manifest))
made, *thumbnails = timed(lambda: [thumbnail_chunk.fn(plan.source, chunk) for chunk in plan.chunks])
(uri, files), *page = timed(lambda: build_page(plan, sum(each.size for each in made), []))
peak = status("VmHWM") - before
_, *again = timed(lambda: [thumbnail_chunk.fn(plan.source, chunk) for chunk in plan.chunks])
beside = [path.stat().st_size for path in (Path(uri).parent / "pages").rglob("*.js")]
print(json.dumps({
    "plan": planning, "thumbnails": thumbnails, "page": page, "thumbnails found made": again, "memory": peak,
    "images": sum(each.rows for each in made), "failed": sum(each.failed for each in made),
    "index.html": Path(uri).stat().st_size, "files": files, "largest": max(beside, default=0),
    "beside": sum(beside),
}))
"""  # fmt: skip


def measure(options: Options) -> Iterator[Section]:
    """Yield time, memory and size of a page for each number of images."""
    found = {size: _child(size) for size in SIZES}
    small, large = found[SIZES[0]], found[SIZES[1]]
    rows, figures = list[tuple[str, ...]](), dict[str, float]()
    for name in ("plan", "thumbnails", "page", "thumbnails found made"):
        (wall, cpu), (most, most_cpu) = small[name], large[name]
        times = (f"{wall:.1f} s ({cpu:.1f} CPU)", f"{most:.1f} s ({most_cpu:.1f} CPU)")
        rows.append((name, *times, f"{most_cpu / cpu:.1f}"))
        figures |= {f"{name}: seconds": most, f"{name}: CPU ratio": most_cpu / cpu}
    for name, unit in _SIZES_OF.items():
        ratio = large[name] / small[name] if small[name] else float("nan")
        rows.append((unit, f"{small[name] / 1e6:.2f} MB", f"{large[name] / 1e6:.2f} MB", f"{ratio:.1f}"))
        figures[unit] = large[name]
    rows.append(("files beside it", str(small["files"]), str(large["files"]), ""))
    yield Section(
        f"a page of {len(EDITS) + 1} edits of {_SIDE}-px images, with photographs and inversions",
        ("part", f"{SIZES[0]:,} images", f"{SIZES[1]:,} images", "ratio"), rows, figures,
    )  # fmt: skip


def _child(images: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        keys = [f"{number // 1000:03d}/{number:06d}.png" for number in range(images)]
        made = make_batch(folder, keys, EDITS, size=_SIDE, copies=_FACES)
        command = [sys.executable, "-W", "ignore", "-c", _CHILD, made.manifest, made.workspace]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1]
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if found["failed"] or found["images"] != images * (2 + 3):
        raise RuntimeError(f"{found['images']} thumbnails of {images} images, {found['failed']} failed")
    return found
