"""Bad nights of a real object store: nothing is lost, doubled or half-written, and a later run completes.

Between the flows and SeaweedFS stands a proxy that fails as it is told. Every disturbed night ends with the
same bytes as the calm one, after as many runs as it takes.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import s3fs
import torch
from PIL import Image

from styleclip.flows.build_relevance import build_relevance
from styleclip.flows.edit_images import edit_images
from styleclip.flows.run import task_runner
from styleclip.tasks.artifacts import Provenance, write_table, write_tables
from styleclip.tasks.editing import shards as editing
from styleclip.tasks.photographs import images, reading
from styleclip.tasks.running.progress import ShardsFailedError
from styleclip.tasks.settings import Execution, Inversion, Models, Relevance, Sampling
from styleclip.tasks.settings.edits import Edit
from styleclip.tasks.storage import (
    ObjectInfo,
    StorageError,
    copy_from_local,
    copy_to_local,
    delete_objects,
    exists,
    list_objects,
    listing,
    outages,
    read_bytes,
    temporaries,
    write_bytes_atomic,
)
from styleclip.tasks.storage.outages import CredentialsError, StoreFullError, StoreUnavailableError, patience
from styleclip_core.errors import ArtifactConflictError
from styleclip_core.models.stylegan2 import Generator
from tests.faulty_proxy import (
    Answer,
    CutAnswer,
    CutUpload,
    FaultyProxy,
    LoseAnswer,
    Refuse,
    Request,
    Wait,
    faulty_proxy,
)
from tests.left import files_of
from tests.pipeline.test_flows import encoded, portrait

PLACE = "s3://results/faults"


def every(count: int, action, *methods: str):
    """Return the rule that one request of ``count`` fails, of those methods if any are named."""

    def rule(request: Request):
        mine = not methods or request.method in methods
        return action if mine and request.number % count == 1 else None

    return rule


def for_a_time(seconds: float, action):
    """Return the rule that everything fails until so many seconds after the first request."""
    started: list[float] = []

    def rule(_request: Request):
        started.append(time.monotonic())
        return action if time.monotonic() - started[0] < seconds else None

    return rule


def from_request(number: int, action):
    """Return the rule that a request and all later ones fail."""
    return lambda request: action if request.number >= number else None


@pytest.fixture(scope="module")
def proxy(s3) -> FaultyProxy:
    with faulty_proxy(s3.endpoint) as running:
        yield running


@pytest.fixture
def store(proxy, s3_identities, tmp_path, monkeypatch) -> FaultyProxy:
    """The store behind the proxy, for identities as in production, with an empty place for results."""
    s3fs.S3FileSystem.clear_instance_cache()
    _empty()
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    monkeypatch.setattr(outages, "_watch", outages._Watch())
    s3fs.S3FileSystem.clear_instance_cache()
    yield proxy
    s3fs.S3FileSystem.clear_instance_cache()


def _empty() -> None:
    fs = s3fs.S3FileSystem(profile="admin", use_listings_cache=False)
    for place in (PLACE, "s3://results/night"):
        keys = fs.find(place)
        for key in keys:
            fs.rm_file(key)


FAULTS = {
    "a third is answered by 500": every(3, Answer(500, "InternalError")),
    "a third is answered by 503": every(3, Answer(503, "SlowDown")),
    "the first byte is slow": every(2, Wait(0.2)),
    "half of an answer": every(3, CutAnswer(), "GET"),
    "half of an upload": every(3, CutUpload(), "PUT"),
    "a lost answer": every(3, LoseAnswer(), "PUT"),
    "it stops for a second": for_a_time(1.0, Refuse()),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_every_call_gets_over_a_passing_fault(store, tmp_path, fault):
    contents = {f"{PLACE}/{number}": os.urandom(30_000) for number in range(6)}
    with store.misbehaving(fault):
        for uri, content in contents.items():
            write_bytes_atomic(uri, content)
        for uri, content in contents.items():
            assert read_bytes(uri) == content
            assert exists(uri)
            copy_to_local(uri, tmp_path / "copy")
            assert (tmp_path / "copy").read_bytes() == content
        copy_from_local(tmp_path / "copy", f"{PLACE}/6")
        assert [item.key for item in list_objects(PLACE)] == [str(number) for number in range(7)]
        assert not exists(f"{PLACE}/7")
        assert delete_objects(PLACE, ["5", "6"]) == 2
    assert {item.key: item.size for item in list_objects(PLACE)} == {str(n): 30_000 for n in range(5)}
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_patience_ends_and_is_spent_once_for_all(store, monkeypatch):
    monkeypatch.setenv("STYLECLIP_STORAGE_PATIENCE", "1")
    with store.misbehaving(from_request(0, Refuse())):
        with pytest.raises(StoreUnavailableError, match=r"cannot read .*the store does not answer .*Retry"):
            read_bytes(f"{PLACE}/x")
        time.sleep(1)
        asked = store.hits
        for number in range(3):
            with pytest.raises(StoreUnavailableError):
                write_bytes_atomic(f"{PLACE}/{number}", b"")
        assert store.hits <= asked + 3 * 4  # at once, but that s3fs asks twice, and aiohttp so for each
    assert list(list_objects(PLACE)) == []


@pytest.mark.parametrize("text", ["-1", "soon", "nan", "inf"])
def test_patience_must_be_a_number(monkeypatch, text):
    monkeypatch.setenv("STYLECLIP_STORAGE_PATIENCE", text)
    with pytest.raises(StorageError, match=f"STYLECLIP_STORAGE_PATIENCE must be .* got '{text}'"):
        patience()


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_credentials_that_are_refused_are_not_waited_for(store, code):
    with (
        store.misbehaving(from_request(0, Answer(403, code))),
        pytest.raises(CredentialsError, match=r"credentials are refused .*renew them"),
    ):
        read_bytes(f"{PLACE}/x")
    assert store.hits == 1
    write_bytes_atomic(f"{PLACE}/x", b"renewed")
    assert read_bytes(f"{PLACE}/x") == b"renewed"


def test_a_listing_that_grows_while_it_is_read_has_every_old_object_once(store, monkeypatch):
    monkeypatch.setattr(listing, "_PAGE", 10)
    old = [f"{number:03d}" for number in range(0, 100, 2)]
    for name in old:
        write_bytes_atomic(f"{PLACE}/{name}", b".")
    new: list[str] = []

    def grow(request: Request):
        if request.lists and len(new) < 6:
            for number in (1, 99 - 2 * len(new)):  # before and after what has been read
                new.append(f"{number:03d}-{len(new)}")
                write_bytes_atomic(f"{PLACE}/{new[-1]}", b".")
            return Wait(0.0)
        return None

    with store.misbehaving(grow):
        found = [item.key for item in list_objects(PLACE)]
    assert len(new) == 6
    assert found == sorted(set(found))
    assert set(old) <= set(found) <= {*old, *new}
    assert [item.key for item in list_objects(PLACE)] == sorted([*old, *new])


# ---- nights --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parameters(prefect_server, network_files, tmp_path_factory, s3) -> dict:
    """An edit of photographs that lie in a bucket; the table has been built before, elsewhere."""
    models = Models(**network_files)
    place = tmp_path_factory.mktemp("table")
    built = build_relevance(
        models, str(place), Sampling(statistics=20, codes=2), Relevance(samples=2, channels_per_shard=8)
    )
    fs = s3fs.S3FileSystem(profile="admin")
    for number in range(10):
        fs.pipe_file(f"photographs/night/p{number}.png", encoded(portrait(number)))
    fs.pipe_file("photographs/night/broken.png", b"this is no image")
    return {
        "models": models,
        "photos": "s3://photographs/night",
        "out": "s3://results/night",
        "edits": [Edit(name="hat", target="face with a hat", alpha=(1, 2), top_k=5, templates="none")],
        "inversion": Inversion(steps=0),
        "execution": Execution(shard_size=3),
        "table": built.table.relevance.rsplit("/", 1)[0],
    }


def content_of(place: str) -> dict[str, bytes]:
    """Everything a run writes, but how long it took."""
    return {
        item.key: read_bytes(f"{place}/{item.key}")
        for item in list_objects(place)
        if "timings" not in item.key
    }


@pytest.fixture(scope="module")
def calm(parameters, s3) -> dict[str, bytes]:
    """What an undisturbed night leaves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STYLECLIP_STORAGE_OPTIONS", str(s3.options))
        s3fs.S3FileSystem.clear_instance_cache()
        _empty()
        edit_images(**parameters)
        return content_of("s3://results/night")


def check(night: dict[str, bytes], calm: dict[str, bytes]) -> None:
    """Nothing is lost, doubled, half-written or left behind; a report of a part says where the whole is."""
    parts = {key: content for key, content in night.items() if key.startswith("partial/")}
    night = {key: content for key, content in night.items() if key not in parts}
    for key, content in parts.items():
        assert not key.endswith("partial.json") or json.loads(content)["superseded_by"]
    assert night.keys() == calm.keys()
    assert [key for key in calm if night[key] != calm[key]] == []
    (manifest,) = (content for key, content in night.items() if key.endswith("manifest.parquet"))
    rows = pd.read_parquet(io.BytesIO(manifest))
    assert len(rows) == 2 * 11
    assert not rows.duplicated(["image_key", "edit", "alpha"]).any()
    assert set(rows[rows.image_key != "broken.png"].status) == {"ok"}
    assert set(rows[rows.image_key == "broken.png"].error_type) == {"ImageDecodeError"}


PASSING = {
    "500 and 503": lambda request: (
        Answer(*((500, "InternalError"), (503, "SlowDown"))[request.number % 2])
        if request.number % 3 == 1
        else None
    ),
    "stop": for_a_time(2.0, Refuse()),
    "resets": lambda request: (
        (CutAnswer(), CutUpload(), LoseAnswer())[request.number % 3] if request.number % 5 == 1 else None
    ),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_a_passing_fault_changes_nothing(store, parameters, calm, fault):
    with store.misbehaving(fault):
        result = edit_images(**parameters)
    assert result.report.failed == 2
    check(content_of("s3://results/night"), calm)


LASTING = {
    "the store stops for longer than anybody waits": Refuse(),
    "credentials expire": Answer(403, "ExpiredToken"),
    "everything is denied": Answer(403, "AccessDenied"),
}


@pytest.mark.parametrize("fault", LASTING.values(), ids=LASTING)
def test_a_lasting_fault_fails_the_run_and_no_image_is_blamed_for_it(
    store, parameters, calm, fault, monkeypatch
):
    monkeypatch.setenv("STYLECLIP_STORAGE_PATIENCE", "0.5")
    read, broken = reading.read_version, []

    def breaks_down(uri: str, etag: str) -> bytes:
        if "night/p5" in uri and not broken:
            broken.append(store.misbehaving(lambda _request: fault))
            broken[0].__enter__()
        return read(uri, etag)

    monkeypatch.setattr(reading, "read_version", breaks_down)
    with pytest.raises((ShardsFailedError, StorageError)):
        edit_images(**parameters)
    broken[0].__exit__(None, None, None)
    left = {
        key: content for key, content in content_of("s3://results/night").items() if key[:8] != "partial/"
    }
    assert set(left) < set(calm)
    assert [key for key, content in left.items() if content != calm[key]] == []  # and so, no other row
    edit_images(**parameters)
    check(content_of("s3://results/night"), calm)


def test_a_photograph_that_is_refused_has_its_row_and_a_later_run_edits_it(store, parameters):
    denied = Answer(403, "AccessDenied")
    with store.misbehaving(lambda request: denied if "night/p5.png" in request.path else None):
        result = edit_images(**parameters)
    rows = pd.read_parquet(io.BytesIO(read_bytes(result.report.manifest))).set_index("image_key")
    assert set(rows.loc["p5.png"].error_type) == {"AccessDeniedError"}
    assert result.report.failed == 4
    again = edit_images(**parameters)
    assert again.report.failed == 2
    inverted, edited = (step.computed for step in again.steps)
    assert inverted <= 2  # its shard, and that of the broken one, which is tried again every time
    assert edited == 1


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, for a few hundred KB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=240k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_fails_the_run_and_half_a_file_is_never_left(local, small_disk):
    out = small_disk / "out"
    here = {**local, "out": str(out)}
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 100 * 1024)
    with pytest.raises((ShardsFailedError, StoreFullError)) as caught:
        edit_images(**here)
    assert "no space is left" in str(caught.value)
    assert not list(out.rglob(".styleclip-tmp-*"))
    files = (path for path in out.rglob("*") if path.is_file() and path.parent.name != "timings")
    half_done = {path: path.read_bytes() for path in files}
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    result = edit_images(**here)
    assert result.report.failed == 0
    assert result.report.rows == 20
    assert {path: path.read_bytes() for path in half_done} == half_done
    manifest = pd.read_parquet(result.report.manifest)
    assert all((out / key).stat().st_size > 100 for key in manifest.output_key)


# ---- other faults --------------------------------------------------------------------------------------


@pytest.fixture
def local(parameters, tmp_path) -> dict:
    """The same edit of photographs in a folder."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(10):
        (photos / f"p{number}.png").write_bytes(encoded(portrait(number)))
    return {**parameters, "photos": str(photos), "out": str(tmp_path / "out")}


def pictures(out: Path) -> dict[str, np.ndarray]:
    return {
        str(path.relative_to(out)): np.asarray(Image.open(path), dtype=np.int16)
        for path in sorted(out.rglob("images/**/*.png"))
    }


def test_a_device_out_of_memory_gets_smaller_batches(local, tmp_path, monkeypatch):
    edit_images(**local)
    calm = pictures(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    real, sizes = Generator.synthesize, []

    def forgetful(generator, styles, *args, **options):
        sizes.append(styles.batch_size)
        if styles.batch_size > 1:
            raise torch.OutOfMemoryError("injected: out of memory")
        return real(generator, styles, *args, **options)

    monkeypatch.setattr(Generator, "synthesize", forgetful)
    result = edit_images(**local)
    assert result.report.failed == 0
    assert max(sizes) > 1
    found = pictures(tmp_path / "out")
    assert found.keys() == calm.keys()
    assert all(np.abs(found[key] - calm[key]).max() <= 1 for key in calm)


def test_an_image_that_does_not_fit_alone_fails_its_shard(local, monkeypatch):
    def forgetful(*_args, **_options):
        raise torch.OutOfMemoryError("injected: out of memory")

    monkeypatch.setattr(Generator, "synthesize", forgetful)
    with pytest.raises(ShardsFailedError, match="injected: out of memory"):
        edit_images(**local)


def test_the_same_build_twice_at_once_leaves_what_one_leaves(local, tmp_path, monkeypatch):
    monkeypatch.setenv("STYLECLIP_WORKERS", "1")  # in all runs: it decides how torch adds up
    flow = edit_images.with_options(task_runner=task_runner())
    flow(**local)
    calm = files_of(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    together, met = threading.Barrier(2, timeout=60), []

    def wait_for_the_other(plans, rest, real=editing._edit):
        if len(met) < 2:
            met.append(rest)
            together.wait()
        return real(plans, *rest)

    monkeypatch.setattr(editing, "_edit", lambda planned, *rest: wait_for_the_other(planned, rest))
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(flow, **local) for _ in range(2)]
        reports = [each.result().report for each in both]
    assert reports[0] == reports[1]
    assert files_of(tmp_path / "out") == calm


def test_no_result_depends_on_the_order_of_clocks(local, tmp_path, monkeypatch):
    edit_images(**local)
    calm = files_of(tmp_path / "out")
    days = itertools.cycle((0.0, -2.0, 2.0))
    monkeypatch.setattr(temporaries, "time", SimpleNamespace(time=lambda: time.time() + 86_400 * next(days)))
    for path, day in zip(sorted((tmp_path / "out").rglob("*")), itertools.cycle((-400, 30)), strict=False):
        os.utime(path, (time.time() + 86_400 * day,) * 2)  # results from a machine in another year
    again = edit_images(**local)
    assert [step.computed for step in again.steps] == [0, 0]
    assert files_of(tmp_path / "out") == calm
    shutil.rmtree(tmp_path / "out")
    edit_images(**local)
    assert files_of(tmp_path / "out") == calm


# ---- how much there is ---------------------------------------------------------------------------------


def test_a_listing_longer_than_what_is_sorted_at_once_is_sorted_and_gone_through_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "_RUN", 7)
    keys = [f"{folder}/{number}.png" for folder in ("b", "a/c", "a", "a-b") for number in range(12)]
    for key in keys:
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(b".")
    with listing.sorted_objects(str(tmp_path), (".png",)) as found:
        first, second = [item.key for item in found], [item.key for item in found]
    assert first == sorted(keys) == second


def test_an_index_in_parts_gives_every_shard_its_rows(tmp_path, monkeypatch):
    objects = [ObjectInfo(f"{number:04d}.png", f"v{number}", number) for number in range(500)]
    whole = images.write_index(objects, "/photos", str(tmp_path / "a"), 16)
    monkeypatch.setattr(images, "_PART_ROWS", 50)
    cut = images.write_index(objects, "/photos", str(tmp_path / "b"), 16)
    assert len({shard.index for shard in cut.shards}) > 5
    assert [shard.digest for shard in cut.shards] == [shard.digest for shard in whole.shards]
    rows = [row for shard in cut.shards for row in images.read_shard(shard)]
    assert rows == [(item.key, item.etag) for item in objects]
    assert rows == [row for shard in whole.shards for row in images.read_shard(shard)]
    assert images.write_index(objects, "/photos", str(tmp_path / "b"), 16) == cut


def test_a_table_written_in_pieces_is_the_table_written_whole(tmp_path):
    made = Provenance("rows", "f" * 32, "test", "1", {}, {}, "", "", "")
    table = pa.table({"number": range(40_000), "name": [f"row {number}" for number in range(40_000)]})
    pieces = [table.slice(first, 700) for first in range(0, 40_000, 700)]
    write_table(str(tmp_path / "whole.parquet"), table, made)
    write_tables(str(tmp_path / "pieces.parquet"), table.schema, iter(pieces), made)
    assert (tmp_path / "pieces.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    write_tables(str(tmp_path / "whole.parquet"), table.schema, pieces, made)  # the same again
    with pytest.raises(ArtifactConflictError, match="exists with other content"):
        write_tables(str(tmp_path / "whole.parquet"), table.schema, pieces[1:], made)
