"""What a benchmark hands back, and where it goes: a table on the screen, the same in a file."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Options:
    """What one run measures.

    Attributes:
        networks: ``world`` for the embedded models, ``config-f`` for the published architecture with
            generated weights.
        resolutions: Sides of the config-f generators in pixels.
        width: Most channels of a config-f layer; fewer than 512 for a trial run.
        device: Where to compute.
        codes: Style codes of a relevance table.
        channels: Channels of every layer that the engine measures beside the reference loop; 0 for all.
        rounds: Measurements behind a median.
    """

    networks: str = "world"
    resolutions: tuple[int, ...] = (256, 1024)
    width: int = 512
    device: str = "cpu"
    codes: int = 100
    channels: int = 24
    rounds: int = 3


@dataclass(frozen=True)
class Section:
    """One table of results.

    Attributes:
        title: What was measured, on what.
        header: Names of the columns.
        rows: Texts as they are printed.
        figures: The main numbers, by name, for a file.
    """

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    figures: dict[str, float] = field(default_factory=dict)

    def show(self, console: Console) -> None:
        """Print the table."""
        from rich.table import Table  # here, as what only counts or measures needs no screen

        table = Table(*self.header, title=self.title, title_justify="left")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)


def hardware() -> dict[str, str]:
    """Return what this runs on, and with which versions."""
    found = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "torch threads": str(torch.get_num_threads()),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
    }
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        found |= {"gpu": f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB", "cuda": str(torch.version.cuda)}
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write(folder: Path, part: str, options: Options, sections: list[Section], seconds: float) -> Path:
    """Write the results of a part as JSON and return where to."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "part": part,
        "hardware": hardware(),
        "options": asdict(options),
        "seconds": round(seconds, 1),
        "sections": [asdict(section) for section in sections],
    }
    path = folder / f"{part}.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path
