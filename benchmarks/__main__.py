"""Print what was measured, on what: ``make bench``, or ``python -m benchmarks PART ...`` for some parts.

Each part prints its tables when it is done and writes them to build/bench/PART.json.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import (
    bulk,
    cost,
    dry_run,
    fast,
    growth,
    instant,
    limits,
    loading,
    optimization,
    orchestration,
    packed,
    pivotal,
    precision,
    prompts,
    relevance,
    report_pages,
    sampling,
)
from benchmarks.report import Options, Section, hardware, write

# in this order, as later ones take the exact table from the orchestrated build's loop
PARTS: dict[str, tuple[str, Callable[[Options], Iterator[Section]]]] = {
    "relevance": ("exact relevance against the reference loop", relevance.measure),
    "limits": ("images/s and fraction of the machine's matrix-product and copy rates", limits.measure),
    "cost": ("what the hot paths ask of a machine: kernels, bytes, products; nothing is timed", cost.measure),
    "orchestration": ("Prefect's overhead on a build of five minutes", orchestration.measure),
    "fast": ("fast relevance: time, agreement of directions, edits", fast.measure),
    "instant": ("instant relevance: time, agreement of directions, edits", instant.measure),
    "growth": ("time and memory against channels, codes, resolution", growth.measure),
    "sampling": ("100,000 style codes and their statistics", sampling.measure),
    "optimization": ("many pairs optimized at once against one after the other", optimization.measure),
    "bulk": ("editing from bucket to bucket, and what storage costs", bulk.measure),
    "packed": ("tars in and out beside files in and out, PNG beside JPEG", packed.measure),
    "prompts": (
        "a prompt for every image: time, tasks and objects by prompts",
        prompts.measure,
    ),
    "pivotal": ("tuning the generator to images: PSNR, KB and what edits make of it", pivotal.measure),
    "precision": ("exact relevance in 16 bits: agreement of directions, edits", precision.measure),
    "pages": ("the page of 10,000 images: time, memory, size", report_pages.measure),
    "dry-run": ("what dry runs say that runs take, and what these took", dry_run.measure),
    "loading": ("published files of their real sizes", loading.measure),
}
_GPU_PARTS = ("relevance", "limits", "cost", "fast", "instant", "sampling")


def _arguments() -> argparse.Namespace:
    listed = "\n".join(f"  {name:<14} {what}" for name, (what, _) in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"Benchmarks as ratios measured in one run.\n\nparts:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = os.environ.get("STYLECLIP_BENCH") or "world"
    parser.add_argument("parts", nargs="*", metavar="PART", help="parts to run [default: all]")
    parser.add_argument(
        "--networks",
        choices=("world", "config-f"),
        default=default,
        help="embedded models, or the published architecture with generated weights and ViT-B/32 "
        f"[default: STYLECLIP_BENCH, or world; now {default}]",
    )
    parser.add_argument(
        "--resolution", type=int, action="append", help="config-f: side in pixels; repeatable [256, 1024]"
    )
    parser.add_argument("--width", type=int, default=512, help="config-f: most channels of a layer [512]")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="[cuda for config-f if there is one]")
    parser.add_argument("--codes", type=int, default=100, help="style codes of a relevance table [100]")
    parser.add_argument(
        "--channels", type=int, default=24, help="channels of every layer beside the reference; 0: all [24]"
    )
    parser.add_argument("--rounds", type=int, default=3, help="measurements behind a median [3]")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads [1]")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder for results as JSON")
    chosen = parser.parse_args()
    unknown = sorted(set(chosen.parts) - PARTS.keys())
    if unknown:
        parser.error(f"unknown part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if chosen.codes < 4 or chosen.rounds < 1:
        parser.error("--codes must be at least 4 and --rounds at least 1")
    return chosen


def main() -> None:
    """Run the parts that are asked for and print their tables."""
    chosen = _arguments()
    torch.set_num_threads(chosen.threads)
    on_gpu = chosen.networks == "config-f" and torch.cuda.is_available()
    options = Options(
        networks=chosen.networks,
        resolutions=tuple(chosen.resolution or Options.resolutions),
        width=chosen.width,
        device=chosen.device or ("cuda" if on_gpu else "cpu"),
        codes=chosen.codes,
        channels=chosen.channels,
        rounds=chosen.rounds,
    )
    console = Console(width=160)
    console.print("; ".join(f"{name}: {value}" for name, value in hardware().items()))
    usual = PARTS if options.networks == "world" else _GPU_PARTS
    for name in [part for part in PARTS if part in (chosen.parts or usual)]:
        started = time.monotonic()
        sections = []
        for section in PARTS[name][1](options):
            section.show(console)
            sections.append(section)
        seconds = time.monotonic() - started
        path = write(chosen.out, name, options, sections, seconds)
        console.print(f"{name}: {seconds:.0f} s, {path}\n")


if __name__ == "__main__":
    main()
