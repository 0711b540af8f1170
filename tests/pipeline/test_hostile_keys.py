"""Object keys of anyone's making, through the whole chain: every image has its own result, inside."""

import io

import fsspec
import pandas as pd
import pytest

from flows.edit_images import edit_images
from tasks.settings import Execution, Inversion, Models, Relevance, Sampling
from tasks.settings.edits import Edit
from tasks.storage import list_objects, read_bytes, write_bytes_atomic
from tests.pipeline.test_flows import encoded, portrait

pytestmark = pytest.mark.usefixtures("prefect_server")
PLAIN = ["plain.png", "a/b/deep.png"]
CASES = ["IMG.png", "img.png", "Img.PNG", "A/x.png", "a/x.png"]
UNICODE = [
    "caf\u00e9.png", "cafe\u0301.png", "\u540d\u524d/\u5199\u771f.png", "\u202egnp.png", "\U0001f600.png",
    "a\u00a0b.png", "\ufeffx.png",
]  # fmt: skip
SPECIAL = [
    "a b.png",
    "100%.png",
    "%2e%2e/x.png",
    "q?x=1&y#z.png",
    "~root.png",
    "-rf.png",
    "con.png",
    "a'b\"c.png",
]
LONG = [f"{'k' * 200}/" * 5 + "x" * 15 + ".png", "\u00e9" * 510 + ".png"]
ESCAPES = [
    "../../escape.png",
    "/absolute.png",
    "a/../../b.png",
    "./dot.png",
    "a//b.png",
    "..\\windows.png",
    "x\ny.png",
]


def upload(prefix: str, keys: list[str]) -> None:
    fs = fsspec.filesystem(prefix.split("://")[0])
    for number, key in enumerate(keys):
        fs.pipe_file(f"{prefix}/{key}", encoded(portrait(number)))


def check_every_key_has_its_own_result(network_files, photos, out, keys):
    result = edit_images(
        Models(**network_files), photos, out, [Edit(target="hat", beta=0.0, templates="none")],
        sampling=Sampling(statistics=20, codes=2), relevance=Relevance(samples=2, channels_per_shard=50),
        inversion=Inversion(steps=1), execution=Execution(shard_size=50),
    )  # fmt: skip
    rows = pd.read_parquet(io.BytesIO(read_bytes(result.report.manifest)))
    assert set(rows["image_key"]) == set(keys)
    assert rows["status"].eq("ok").all(), rows[["image_key", "error"]].to_dict("records")
    written = [entry.key for entry in list_objects(f"{out}/images")]
    assert len(written) == len(keys)
    assert len({key.lower() for key in written}) == len(keys)
    assert {f"images/{key}" for key in written} == set(rows["output_key"])
    return written


def test_keys_of_every_kind_stay_inside_and_apart(network_files, tmp_path):
    keys = PLAIN + CASES + UNICODE + SPECIAL + LONG + ESCAPES
    assert max(len(key.encode()) for key in keys) == 1024
    upload("memory://hostile", keys)
    try:
        written = check_every_key_has_its_own_result(
            network_files, "memory://hostile", str(tmp_path / "out"), keys
        )
    finally:
        fsspec.filesystem("memory").rm("/hostile", recursive=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert {entry.name for entry in (tmp_path / "out").iterdir()} == {"images", "batches", "workspace"}
    for path in (tmp_path / "out").rglob("*"):
        assert path.name.isascii()
        assert (tmp_path / "out").resolve() in path.resolve().parents
    assert sum("/plain.png~" in key for key in written) == 1  # plain names stay readable


def test_keys_on_s3_stay_under_the_prefix_of_the_output(network_files, s3_identities, monkeypatch):
    keys = PLAIN + CASES + UNICODE[:5] + SPECIAL[:2]
    options = s3_identities.options
    monkeypatch.delenv("STYLECLIP_STORAGE_OPTIONS")
    for number, key in enumerate(keys):  # as the administrator; the reader may not write
        write_bytes_atomic(f"s3://photographs/hostile/{key}", encoded(portrait(number)))
    monkeypatch.setenv("STYLECLIP_STORAGE_OPTIONS", str(options))
    before = {entry.key for entry in list_objects("s3://results")}
    check_every_key_has_its_own_result(
        network_files, "s3://photographs/hostile", "s3://results/hostile-out", keys
    )
    made = {entry.key for entry in list_objects("s3://results")} - before
    assert all(key.startswith("hostile-out/") for key in made)
