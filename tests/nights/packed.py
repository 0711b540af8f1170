"""Nights over tars and tables, some of them broken, into tars and tables: runs are killed in mid-shard."""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tests.nights.installation import ALPHAS, PHOTOS, SHARD, Account, Nights
from tests.operations.running import wait_until
from tests.pipeline.test_flows import encoded, portrait

Broken = dict[str, int]
_EACH, _GARBAGE = 15, b"\x89PNG\r\n\x1a\n is no picture"


def packed_kills(count: int, seed: int, form: str) -> Callable[[Nights, Account], None]:
    """Return the night in which a run over tars, or over tables, is killed while a shard is worked on.

    Args:
        count: How often.
        seed: Of the moments.
        form: What is read and written: ``webdataset`` or ``parquet``.
    """
    draw = random.Random(seed)

    def night(nights: Nights, account: Account) -> None:
        place = f"packed-{form}"
        done, broken = {"webdataset": _tars, "parquet": _tables}[form](nights, f"photographs/{place}")
        given = {"photos": f"s3://photographs/{place}", "saving": {"to": form}}

        # undisturbed: every broken sample is a row, and says of what kind
        nights.clear()
        nights.finish(nights.start(**given))
        calm = nights.files()
        if (found := _broken_rows(calm)) != broken:
            account.wrong += 1
            account.remarks.append(f"{found} rows are not done, {broken} samples are broken")

        nights.clear()
        run = nights.start(**given)
        for _ in range(count):
            # some images of a shard are encoded then, and its tar or table is not written
            for number in _await_images(nights, run, draw.randint(1, 3 * SHARD)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            account.disturbances += 1
            wait_until(partial(_has_ended, nights, run), "the run has crashed", 120, nights.prefect.tail)
            (nights.folder / "executions").unlink(missing_ok=True)
            nights.retry(run)
        nights.recover(run, account)
        nights.judge(account, calm, rows=done * len(ALPHAS))

    return night


def _await_images(nights: Nights, run: str, images: int, seconds: float = 300) -> set[int]:
    """Wait until so many images are encoded, pressing Retry where the run has ended without.

    Returns:
        The processes that did.
    """
    log, deadline = nights.folder / "executions", time.monotonic() + seconds
    while len(lines := log.read_text().splitlines() if log.exists() else []) < images:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {images} images in {seconds:.0f} s\n{nights.prefect.tail()}")
        # a crash may be told a second time, after Retry
        if _has_ended(nights, run):
            nights.retry(run)
        time.sleep(0.3)
    return {int(line.split()[0]) for line in lines}


def _has_ended(nights: Nights, run: str) -> bool:
    return nights.state(run) in ("Failed", "Crashed", "Cancelled")


def _broken_rows(files: dict[str, bytes]) -> Broken:
    """Return how many images of a batch are not done, by the kind of error."""
    (manifest,) = (content for key, content in files.items() if key.endswith("/manifest.parquet"))
    rows = pd.read_parquet(io.BytesIO(manifest))
    images = rows[rows.status != "ok"].drop_duplicates("image_key")
    return dict(Counter(images.error_type))


def _tars(nights: Nights, place: str) -> tuple[int, Broken]:
    """Write tars with a broken image, two samples of one key, and a last one that is cut off.

    Returns:
        How many images can be edited, and how many cannot, by the kind of error.
    """
    images = [(f"{number:05d}", encoded(portrait(number))) for number in range(PHOTOS)]
    cut = images[:3]
    shards = [images[first : first + _EACH] for first in range(0, PHOTOS, _EACH)]
    shards[0] = [*shards[0], ("broken", _GARBAGE)]
    shards[1] = [*shards[1], shards[1][0]]

    for number, samples in enumerate(shards):
        nights.fs.pipe_file(f"{place}/{number:05d}.tar", _tar(samples))
    # in the middle of its last image: what is whole is edited
    whole = _tar(cut)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        last = tar.getmembers()[-1]
    nights.fs.pipe_file(f"{place}/{len(shards):05d}.tar", whole[: last.offset_data + last.size // 2])
    return PHOTOS + len(cut) - 1, {"BrokenSampleError": 2, "ImageDecodeError": 1}


def _tar(samples: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in samples:
            member = tarfile.TarInfo(f"{name}.png")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _tables(nights: Nights, place: str) -> tuple[int, Broken]:
    """Write tables as ``datasets`` does, with a row without bytes and one with a broken image.

    Returns:
        As of ``_tars``.
    """
    images: list[bytes | None] = [encoded(portrait(number)) for number in range(PHOTOS)]
    images[7:7], images[31:31] = [None], [_GARBAGE]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for number, first in enumerate(range(0, len(images), _EACH)):
        mine = [{"bytes": each, "path": None} for each in images[first : first + _EACH]]
        buffer = io.BytesIO()
        pq.write_table(pa.table({"image": pa.array(mine, kind)}), buffer, row_group_size=4)
        nights.fs.pipe_file(f"{place}/{number:05d}.parquet", buffer.getvalue())
    return PHOTOS, {"BrokenSampleError": 1, "ImageDecodeError": 1}
