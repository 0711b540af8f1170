"""How time and memory of exact relevance grow with channels, codes, resolution and batch.

Every measurement runs in a process of its own. Its peak is the kernel's high-water mark of resident
memory, less what was resident before the call, in a second call whose memory goes back to the system as
soon as it is free. Weights are generated, CLIP is the embedded one.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.report import Options, Section

_CHILD = """
import ctypes, gc, json, sys, time, torch
from pathlib import Path
torch.set_num_threads(1)
from styleclip import data
from styleclip_core import load_clip
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig
from styleclip_core.relevance import RelevanceSettings, measure_channels
from styleclip_core.sampling import sample_styles
def status(name):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name))
    return int(line.split()[1]) * 1024
resolution, channels, codes, batch, with_memory = map(int, sys.argv[1:])
torch.manual_seed(0)
config = GeneratorConfig(resolution, 64, 128, 0, 4, 2304 * resolution // 64, 96)
generator, clip = Generator(config).eval().requires_grad_(False), load_clip(data.CLIP)
((_, _, sampled),) = sample_styles(generator, seed=5, sample_ids=range(codes), truncation_psi=1.0)
def run(count, sampled):
    std = torch.ones(96)
    return measure_channels(
        generator, clip.embed_images, sampled, layer="b8.conv1", channels=range(count), mean=std, std=std,
        settings=RelevanceSettings(batch_size=batch),
    )
run(2, sampled.select(slice(0, 1)))  # whatever is allocated once
started = time.process_time()
found = run(channels, sampled)
seconds, peak = time.process_time() - started, 0
if with_memory:
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 65536)  # M_MMAP_THRESHOLD: tensors get pages of their own
    libc.malloc_trim(0)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    run(channels, sampled)
    peak = status("VmHWM") - before
print(json.dumps([seconds, peak, bool(found.direction.isfinite().all())]))
"""
BASE = (64, 24, 4, 32)  # resolution, channels, codes, batch
STEPS = (
    ("base", BASE), ("channels doubled", (64, 48, 4, 32)), ("channels doubled again", (64, 96, 4, 32)),
    ("codes doubled", (64, 24, 8, 32)), ("codes doubled twice more", (64, 24, 32, 32)),
    ("resolution doubled", (128, 24, 4, 32)), ("resolution doubled again", (256, 24, 4, 32)),
    ("batch halved", (64, 24, 4, 16)),
)  # fmt: skip


def measure(options: Options) -> Iterator[Section]:
    """Yield a row per size of the work."""
    rows, figures, first = list[tuple[str, ...]](), dict[str, float](), (0.0, 0.0)
    for name, (resolution, channels, codes, batch) in STEPS:
        found = [_child(resolution, channels, codes, batch, round_ == 0) for round_ in range(options.rounds)]
        seconds, memory = statistics.median(each[0] for each in found), found[0][1]
        first = first if first[0] else (seconds, memory)
        images = 2 * channels * codes
        rows.append((
            name, f"{resolution} px, {channels} channels x {codes} codes, batch {batch}", f"{seconds:.2f} s",
            f"{seconds / first[0]:.2f}", f"{seconds / images * 1e3:.2f}", f"{memory / 1e6:.0f} MB",
            f"{memory / first[1]:.2f}",
        ))  # fmt: skip
        figures |= {f"{name}: time": seconds / first[0], f"{name}: memory": memory / first[1]}
    yield Section(
        f"exact relevance of b8.conv1, generated weights; times are medians of "
        f"{options.rounds} processes",
        ("size", "work", "time", "over base", "ms per image", "peak memory", "over base"), rows, figures,
    )  # fmt: skip


def _child(*sizes: int) -> tuple[float, float]:
    command = [sys.executable, "-W", "ignore", "-c", _CHILD, *(str(int(each)) for each in sizes)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, memory, finite = json.loads(done.stdout.splitlines()[-1])
    if not finite:
        raise RuntimeError(f"directions that are not finite at {sizes}")
    return seconds, memory
