"""Data sets in shards: a million samples indexed, memory against ten thousand, beside webdataset alone.

Every measurement runs in a process of its own, whose peak is the kernel's high-water mark of its resident
memory. The archives of a data set are links to one file, so that all of it lies in the page cache for whoever
reads it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console

from benchmarks.report import Section, hardware

_SHARD = 256


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, nargs="*", default=[10_000, 1_000_000], help="samples listed")
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "PLACE"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        what, place = chosen.child
        sys.stdout.write(json.dumps({"index": _index, "webdataset": _webdataset}[what](place)) + "\n")
        return

    console = Console(width=150)
    console.print("; ".join(f"{name}: {value}" for name, value in hardware().items()))
    with tempfile.TemporaryDirectory(prefix="styleclip-shards-") as folder:
        _table(chosen.samples, Path(folder)).show(console)


def _table(counts: list[int], folder: Path) -> Section:
    rows, figures = [], dict[str, float]()
    for form, write in (("tar shards", _tars), ("Parquet", _parquet)):
        first = 0.0
        for count in counts:
            place = folder / f"{form.replace(' ', '-')}-{count}"
            files = write(place, count)
            found = _child("index", place)
            if found["rows"] != count:
                raise RuntimeError(f"{place} holds {count} samples, {found['rows']} were listed")
            alone = _child("webdataset", place)["seconds"] if form == "tar shards" else 0.0
            first = first or found["peak"]
            rows.append((
                form, f"{count:,} in {files}", f"{count / found['first_s']:,.0f}",
                f"{count / found['again_s']:,.0f}", f"{count / alone:,.0f}" if alone else "",
                f"{found['peak'] / 1e6:.0f} MB", f"{found['peak'] / first:.2f}",
            ))  # fmt: skip
            figures[f"{count} samples in {form}: peak over the smallest"] = found["peak"] / first
            if alone:
                name = f"{count} samples in {form}: webdataset's seconds over ours"
                figures[name] = alone / found["first_s"]
    header = (
        "form", "samples", "indexed per s, first", "again", "read per s by webdataset alone", "peak",
        "peak / first",
    )  # fmt: skip
    return Section(f"data sets in shards, listed into shards of {_SHARD}", header, rows, figures)


def _child(what: str, place: Path) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.shards", "--child", what, str(place)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _image() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (120, 40, 200)).save(buffer, "JPEG")
    return buffer.getvalue()


def _tars(folder: Path, count: int) -> int:
    """Write archives of a thousand samples, an image and a caption each."""
    folder.mkdir()
    image, each = _image(), 1000
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number in range(each):
            for ending, content in (("jpg", image), ("txt", f"a face, number {number}".encode())):
                info = tarfile.TarInfo(f"{number:06d}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return _linked(folder / "00000.tar", count // each)


def _parquet(folder: Path, count: int) -> int:
    """Write tables of ten thousand rows, an image and a caption each, as ``datasets`` does."""
    folder.mkdir()
    image, each = _image(), 10_000
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({
        "image": pa.array([{"bytes": image, "path": f"{number}.jpg"} for number in range(each)], kind),
        "caption": [f"a face, number {number}" for number in range(each)],
    })  # fmt: skip
    pq.write_table(table, folder / "00000.parquet", row_group_size=1000)
    return _linked(folder / "00000.parquet", count // each)


def _linked(path: Path, count: int) -> int:
    for number in range(1, count):
        os.link(path, path.with_name(f"{number:05d}{path.suffix}"))
    return count


# ---- in a process of its own ---------------------------------------------------------------------------


def _index(place: str) -> dict[str, float]:
    import logging
    from functools import partial

    from styleclip.tasks.photographs import images
    from styleclip.tasks.photographs.datasets.front import locate
    from styleclip.tasks.running.run import Run
    from styleclip.tasks.settings import DataSet

    # there is no flow whose log it could be
    images.get_run_logger = partial(logging.getLogger, "images")  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as workspace:
        run, seconds = Run(workspace=workspace), list[float]()
        for _ in range(2):
            started = time.perf_counter()
            index = images.index_images.fn(run, locate(place, DataSet()), _SHARD)
            seconds.append(time.perf_counter() - started)
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
        return {
            "rows": index.rows, "first_s": seconds[0], "again_s": seconds[1],
            "peak": int(peak.split()[1]) * 1024.0,
        }  # fmt: skip


def _webdataset(place: str) -> dict[str, float]:
    import webdataset  # type: ignore[import-untyped]

    urls = [str(path) for path in sorted(Path(place).glob("*.tar"))]
    started = time.perf_counter()
    count = sum(1 for _ in webdataset.WebDataset(urls, shardshuffle=False))
    return {"rows": count, "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    main()
