"""Loading published files of their real sizes: peak memory against the file's size, time against torch's own.

The files are written here with random weights: a 1024-px config-f generator in three forms, and an e4e
checkpoint of 18 heads with its generator. Every load runs in a process of its own; its peak is the
kernel's high-water mark of resident memory, less what was resident before.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.report import Options, Section
from styleclip_core import save_generator
from styleclip_core.models import rosinality
from styleclip_core.models.checkpoints import export_rosinality
from styleclip_core.models.psp import PspConfig, PspEncoder
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig

_CHILD = """
import gc, json, sys, time, torch
from pathlib import Path
from styleclip_core import load_encoder, load_generator
def status(name):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name))
    return int(line.split()[1]) * 1024
def measured(work):
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before, started = status("VmRSS"), time.perf_counter()
    kept = work()
    seconds = time.perf_counter() - started
    return status("VmHWM") - before, seconds
path, load = sys.argv[1], {"generator": load_generator, "encoder": load_encoder}[sys.argv[2]]
load_generator(sys.argv[3])  # whatever is imported and allocated once
ours = measured(lambda: load(path))
theirs = (0, 0.0)
if path.endswith(".pt"):
    gc.collect()
    theirs = measured(lambda: torch.load(path, weights_only=True))
print(json.dumps([*ours, *theirs]))
"""


def measure(_: Options) -> Iterator[Section]:
    """Yield a row per file: its form, its size, peak memory over its size, seconds, ratio to torch.load."""
    header = ("file", "size", "peak memory / size", "median of 3", "time / torch.load")
    yield Section("loading of published files", header, list(_rows()))


def _rows() -> Iterator[tuple[str, ...]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = folder / "small.safetensors"
        save_generator(Generator(GeneratorConfig(8, 8, 8, 0, 2, 64, 8)), small)
        for form, path, kind in _files(folder):
            rows = [_load(path, kind, small) for _ in range(3)]
            rows.sort(key=lambda row: row[1])
            _, seconds, _, theirs = rows[1]
            size = path.stat().st_size
            yield (
                form, f"{size / 1e6:.0f} MB", f"{max(row[0] for row in rows) / size:.2f}", f"{seconds:.2f} s",
                f"{seconds / theirs:.1f}" if theirs else "-",
            )  # fmt: skip
            path.unlink()


def _load(path: Path, kind: str, small: Path) -> tuple[int, float, int, float]:
    command = [sys.executable, "-W", "ignore", "-c", _CHILD, str(path), kind, str(small)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    peak, seconds, their_peak, theirs = json.loads(done.stdout.splitlines()[-1])
    return peak, seconds, their_peak, theirs


def _files(folder: Path) -> Iterator[tuple[str, Path, str]]:
    config = GeneratorConfig(resolution=1024)
    generator = Generator(config).eval().requires_grad_(False)
    save_generator(generator, folder / "g.safetensors")
    yield "1024-px generator, safetensors", folder / "g.safetensors", "generator"
    export_rosinality(generator, folder / "g.pt")
    yield "1024-px generator, rosinality .pt", folder / "g.pt", "generator"
    writers = Path(__file__).parent.parent / "tests" / "core"
    sys.path.insert(0, str(writers))
    from published_files import write_nvidia  # type: ignore[import-not-found]

    state = generator.state_dict()
    write_nvidia(folder / "g.pkl", state, config, canary=folder / "canary")
    yield "1024-px generator, NVIDIA .pkl with G and G_ema", folder / "g.pkl", "generator"
    decoder = {f"decoder.{k}": v for k, v in rosinality.from_nvidia(state).items()}
    del generator, state
    encoder = PspEncoder(PspConfig("e4e", 18))
    named = {f"encoder.{k}": v for k, v in encoder.state_dict().items() if k != "latent_avg"} | decoder
    content = {
        "state_dict": named,
        "latent_avg": torch.zeros(18, 512),
        "opts": {"encoder_type": "Encoder4Editing"},
    }
    torch.save(content, folder / "e4e.pt")
    del encoder, named, content, decoder
    gc.collect()
    yield "e4e with its generator", folder / "e4e.pt", "encoder"
