"""Measure a GPU: ``python -m benchmarks.gpu --out build/gpu``.

Needs the repository, torch with CUDA, numpy, Pillow and safetensors. Writes gpu.json and gpu.md, anew after
every part. Ends with status 1 if a part failed, and with 0 if some only ran out of their time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu import correctness, descent, relevance, throughput
from benchmarks.gpu.networks import Bench
from benchmarks.gpu.output import TABLE_NAME, machine, table, write
from benchmarks.gpu.parts import Outcome, Part, run

# in this order, as shares of the limits need the limits, and ratios what they are ratios of
PARTS = (
    Part("agreement", "The device beside the CPU, by precision", 0.10, correctness.agreement),
    Part("golden", "The device beside the published code's outputs, in float32", 0.06, correctness.golden),
    Part("limits", "What the machine does at most, measured now", 0.03, throughput.limits),
    Part("synthesis", "Images of style codes", 0.10, throughput.synthesis),
    Part("clip", "Embeddings of images, resizing included", 0.05, throughput.clip),
    Part("exact", "Exact relevance tables, extrapolated", 0.19, relevance.exact),
    Part("loop", "The published loop, one image at a time through PIL, extrapolated", 0.09, relevance.loop),
    Part("fast", "Fast relevance tables, extrapolated", 0.15, relevance.fast),
    Part("optimization", "Latent optimization as published, extrapolated", 0.07, descent.optimization),
    Part("mapper", "Training of a latent mapper as published, extrapolated", 0.05, descent.mapper),
    Part("pivotal", "Pivotal tuning, extrapolated", 0.04, descent.pivotal),
    Part("edits", "Edits from style codes to files in memory", 0.07, throughput.edits),
)


def _arguments() -> argparse.Namespace:
    listed = "\n".join(f"  {part.name:<14} {part.share:4.0%}  {part.title}" for part in PARTS)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=f"What a GPU does with the hot paths.\n\nparts, and their shares of the time:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="parts to run [default: all]")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder for results [build/gpu]")
    parser.add_argument("--device", default="cuda", help="what is measured [cuda]")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for all parts together [9]")
    parser.add_argument("--small", action="store_true", help="rehearse with tiny networks, in seconds")
    chosen = parser.parse_args()

    unknown = sorted(set(chosen.parts) - {part.name for part in PARTS})
    if unknown:
        known = ", ".join(part.name for part in PARTS)
        parser.error(f"unknown part {', '.join(unknown)}; there are {known}")
    if not chosen.minutes > 0:
        parser.error(f"--minutes must be more than 0, got {chosen.minutes:g}")
    if chosen.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; rehearse on the CPU: --device cpu --small")
    return chosen


def _tell(say: Callable[[str], object], outcomes: list[Outcome]) -> None:
    last = outcomes[-1]
    ended = last.state if last.state == "done" else f"{last.state}: {last.why}"
    say(f"{last.part.name}: {last.seconds:.1f} of {last.limit:.0f} s, {len(last.rows)} figures, {ended}\n")


def main() -> int:
    """Run the parts that are asked for, and return the exit status."""
    chosen = _arguments()
    bench = Bench(torch.device(chosen.device), small=chosen.small)
    about = machine(bench.device) | {"minutes": f"{chosen.minutes:g}"}
    parts = [part for part in PARTS if part.name in (chosen.parts or {each.name for each in PARTS})]

    def note(outcomes: list[Outcome]) -> None:
        write(chosen.out, bench, about, outcomes)
        _tell(sys.stderr.write, outcomes)

    outcomes = run(bench, parts, chosen.minutes, note)
    sys.stdout.write(table(bench, about, outcomes))
    sys.stdout.write(f"\n{chosen.out / TABLE_NAME}\n")
    return int(any(each.state == "failed" for each in outcomes))


if __name__ == "__main__":
    sys.exit(main())
