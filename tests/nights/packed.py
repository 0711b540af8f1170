"""Nights over tars and tables, some of them broken, into tars and tables: runs are killed in mid-shard."""

from __future__ import annotations

import io
import os
import random
import signal
import tarfile
from collections import Counter
from collections.abc import Callable

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tests.nights.installation import ALPHAS, PHOTOS, SHARD, Account, Nights
from tests.operations.running import wait_until
from tests.pipeline.test_flows import encoded, portrait

Broken = dict[str, int]
_EACH, _GARBAGE = 15, b"\x89PNG\r\n\x1a\n is no picture"


def packed_kills(count: int, seed: int) -> Callable[[Nights, Account], None]:
    """Return the nights in which runs over tars, and over tables, are killed while a shard is worked on."""
    draw = random.Random(seed)

    def night(nights: Nights, account: Account) -> None:
        for write, saving in ((_tars, "webdataset"), (_tables, "parquet")):
            place = f"packed-{saving}"
            broken = write(nights, f"photographs/{place}")
            given = {"photos": f"s3://photographs/{place}", "saving": {"to": saving}}

            # undisturbed: every broken sample is a row, and says of what kind
            nights.clear()
            nights.finish(nights.start(**given))
            calm = nights.files()
            found = _broken_rows(calm)
            if found != broken:
                account.wrong += 1
                account.remarks.append(f"{saving}: {found} rows are not done, {broken} samples are broken")

            nights.clear()
            run = nights.start(**given)
            for _ in range(count):
                # some images of a shard are encoded then, and its tar or table is not written
                nights.await_work(draw.randint(1, 3 * SHARD))
                os.kill(int((nights.folder / "pid").read_text()), signal.SIGKILL)
                account.disturbances += 1
                wait_until(
                    lambda run=run: nights.state(run) == "Crashed", "the run has crashed", 120,
                    nights.prefect.tail,
                )  # fmt: skip
                for name in ("pid", "executions"):
                    (nights.folder / name).unlink(missing_ok=True)
                nights.retry(run)
            nights.recover(run, account)
            nights.judge(account, calm, rows=PHOTOS * len(ALPHAS))

    return night


def _broken_rows(files: dict[str, bytes]) -> Broken:
    """Return how many images of a batch are not done, by the kind of error."""
    (manifest,) = (content for key, content in files.items() if key.endswith("/manifest.parquet"))
    rows = pd.read_parquet(io.BytesIO(manifest))
    images = rows[rows.status != "ok"].drop_duplicates("image_key")
    return dict(Counter(images.error_type))


def _tars(nights: Nights, place: str) -> Broken:
    """Write tars with a broken image, two samples of one key, and a last one that is cut off."""
    images = [(f"{number:05d}", encoded(portrait(number))) for number in range(PHOTOS)]
    cut = images[:3]
    shards = [images[first : first + _EACH] for first in range(0, PHOTOS, _EACH)]
    shards[0] = [*shards[0], ("broken", _GARBAGE)]
    shards[1] = [*shards[1], shards[1][0]]

    for number, samples in enumerate(shards):
        nights.fs.pipe_file(f"{place}/{number:05d}.tar", _tar(samples))
    # in the middle of its last image: what is whole is edited
    whole = _tar(cut)
    nights.fs.pipe_file(f"{place}/{len(shards):05d}.tar", whole[: len(whole) - 10_240 - 700])
    return {"BrokenSampleError": 2, "ImageDecodeError": 1}


def _tar(samples: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in samples:
            member = tarfile.TarInfo(f"{name}.png")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _tables(nights: Nights, place: str) -> Broken:
    """Write tables as ``datasets`` does, with a row without bytes and one with a broken image."""
    images: list[bytes | None] = [encoded(portrait(number)) for number in range(PHOTOS)]
    images[7:7], images[31:31] = [None], [_GARBAGE]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for number, first in enumerate(range(0, len(images), _EACH)):
        mine = [{"bytes": each, "path": None} for each in images[first : first + _EACH]]
        buffer = io.BytesIO()
        pq.write_table(pa.table({"image": pa.array(mine, kind)}), buffer, row_group_size=4)
        nights.fs.pipe_file(f"{place}/{number:05d}.parquet", buffer.getvalue())
    return {"BrokenSampleError": 1, "ImageDecodeError": 1}
