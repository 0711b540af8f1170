"""Print what was measured, on what: ``make bench``."""

from __future__ import annotations

import os
import platform

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.loading import measure_loading
from benchmarks.optimization import measure_optimization
from benchmarks.orchestration import measure_orchestration
from benchmarks.relevance import measure_growth, measure_relevance


def main() -> None:
    """Run every benchmark and print its table."""
    torch.set_num_threads(1)
    console = Console(width=140)
    console.print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, one thread; "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )
    table = Table("what", "reference loop", "ours", "ratio (median of 3)", "difference to it")
    for row in (*measure_relevance(), *measure_optimization()):
        table.add_row(*row)
    console.print(table)
    table = Table("exact relevance of b8.conv1, generated weights", "seconds", "ms per image")
    for row in measure_growth():
        table.add_row(*row)
    console.print(table)
    table = Table("what", "loop of core calls", "flow", "overhead", "largest difference")
    for row in measure_orchestration():
        table.add_row(*row)
    console.print(table)
    table = Table("file", "size", "peak memory / size", "median of 3", "time / torch.load")
    for row in measure_loading():
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
