"""What was measured, as JSON and as a table to read: written anew after every part, whole or not at all."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu.networks import Bench
from benchmarks.gpu.parts import Outcome, Row
from benchmarks.report import hardware

JSON_NAME, TABLE_NAME = "gpu.json", "gpu.md"
_REHEARSAL = "A rehearsal with tiny networks: these figures say that everything runs, and nothing else."


def machine(device: torch.device) -> dict[str, str]:
    """Return what this runs on, and with which versions."""
    found = {"device": str(device)} | hardware()
    if device.type == "cuda":
        found["cudnn"] = str(torch.backends.cudnn.version())
        found["driver"] = _driver()
    return found


def _driver() -> str:
    """Return the driver's version, as its own tool says it."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"not known ({type(error).__name__})"
    return answer.stdout.strip().splitlines()[0]


def write(folder: Path, bench: Bench, about: dict[str, str], outcomes: Sequence[Outcome]) -> None:
    """Write both files of a run so far."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "rehearsal": bench.small,
        "machine": about,
        "parts": [_plain(each) for each in outcomes],
    }
    _replace(folder / JSON_NAME, json.dumps(content, indent=2, allow_nan=False) + "\n")
    _replace(folder / TABLE_NAME, table(bench, about, outcomes))


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text)
    aside.replace(path)


def _plain(outcome: Outcome) -> dict[str, object]:
    return {
        "name": outcome.part.name, "title": outcome.part.title, "state": outcome.state, "why": outcome.why,
        "seconds": round(outcome.seconds, 2), "limit_seconds": round(outcome.limit, 1),
        "peak_bytes": outcome.peak,
        "rows": [
            {
                "what": row.what, "value": _number(row.value), "unit": row.unit,
                "standard_error": None if row.error is None else _number(row.error), "note": row.note,
                "goal": None if row.goal is None else row.goal.bound,
                "met": None if row.goal is None else row.goal.met(row.value),
            }
            for row in outcome.rows
        ],
    }  # fmt: skip


def _number(value: float) -> float | None:
    """Return a number that JSON knows; None for what is none, or infinite."""
    return value if math.isfinite(value) else None


def table(bench: Bench, about: dict[str, str], outcomes: Sequence[Outcome]) -> str:
    """Return a run as Markdown."""
    lines = ["# What a GPU does with it", ""]
    if bench.small:
        lines += [_REHEARSAL, ""]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    for each in outcomes:
        peak = "" if each.peak is None else f", {each.peak / 2**30:.2f} GiB at most"
        ended = "" if each.state == "done" else f" **{each.state}**: {each.why}"
        lines += [
            "", f"## {each.part.name}", "", f"{each.part.title}.", "",
            f"{each.seconds:.1f} of {each.limit:.0f} s{peak}.{ended}",
        ]  # fmt: skip
        if each.rows:
            lines += ["", "| what | measured | ± | goal | reached | how |", "|---|---|---|---|---|---|"]
            lines += [_line(row) for row in each.rows]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    error = "" if row.error is None or not math.isfinite(row.error) else f"{row.error:.2g}"
    goal = reached = ""
    if row.goal:
        goal = f"{'at most' if row.goal.at_most else 'at least'} {row.goal.bound:g} {row.unit}"
        reached = "yes" if row.goal.met(row.value) else "no"
    cells = (row.what, f"{row.value:.4g} {row.unit}".strip(), error, goal, reached, row.note)
    return "| " + " | ".join(each.replace("|", "\\|") for each in cells) + " |"
