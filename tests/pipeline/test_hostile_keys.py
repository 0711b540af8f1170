"""Object keys of anyone's making, through the whole chain: every image has its own result, inside."""

import io
import re
from unicodedata import normalize

import fsspec
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from styleclip.flows.edit_images import edit_images
from styleclip.tasks.editing.saving import member_names
from styleclip.tasks.photographs.reading import read_stored
from styleclip.tasks.settings import Execution, Inversion, Models, Relevance, Sampling, Saving
from styleclip.tasks.settings.edits import Edit
from styleclip.tasks.storage import list_objects, output_key, read_bytes, readable_key, write_bytes_atomic
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


def edited(network_files, photos, out, keys, **changes) -> pd.DataFrame:
    result = edit_images(
        Models(**network_files), photos, out, [Edit(target="hat", beta=0.0, templates="none")],
        sampling=Sampling(statistics=20, codes=2), relevance=Relevance(samples=2, channels_per_shard=50),
        inversion=Inversion(steps=1), execution=Execution(shard_size=50), **changes,
    )  # fmt: skip
    rows = pd.read_parquet(io.BytesIO(read_bytes(result.report.manifest)))
    assert set(rows["image_key"]) == set(keys)
    assert rows["status"].eq("ok").all(), rows[["image_key", "error"]].to_dict("records")
    return rows


def check_every_key_has_its_own_result(network_files, photos, out, keys):
    rows = edited(network_files, photos, out, keys)
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
        assert path.name.isprintable()
        assert (tmp_path / "out").resolve() in path.resolve().parents
    readable = [*PLAIN, *CASES, *UNICODE[:3], UNICODE[4], "a b.png", "-rf.png", "~root.png"]
    for name in readable:
        assert sum(f"/{name}~" in f"/{key.partition('/')[2]}" for key in written) == 1
    assert sum("/_/" in key for key in written) == len(keys) - len(readable)


def test_the_same_keys_share_no_tar_member_and_every_image_is_its_own(network_files, tmp_path):
    keys = (
        PLAIN + CASES + UNICODE + SPECIAL + LONG + ESCAPES + ["x.jpg", "x.png", "x.PNG", "x.y.png", "x_y.png"]
    )
    upload("memory://hostile", keys)
    try:
        out = tmp_path / "out"
        loose = edited(network_files, "memory://hostile", str(tmp_path / "loose"), keys)
        packed = edited(network_files, "memory://hostile", str(out), keys, saving=Saving(to="webdataset"))
    finally:
        fsspec.filesystem("memory").rm("/hostile", recursive=True)
    for one, other in zip(loose.output_key, packed.output_key, strict=True):
        assert read_stored(str(out), other) == read_stored(str(tmp_path / "loose"), one)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["loose", "out"]


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


# ---- laws of names -------------------------------------------------------------------------------------

PIECES = st.sampled_from([
    "a", "A", "\u00e9", "e\u0301", "\u00c9", "\u212b", "\u00e5", "\u0130", "i", "\u00df", "ss", "\ufb01",
    "fi", "/", "/", ".", "..", "_", "_/", "~", "~3f2a1b9c04d5", ".png", ".PNG", " ", "a ", "#", "%", "%2e",
    "\\", ":", "*", "?", '"', "<", "|",
    "\0", "\n", "\u202e", "\u200b", "\u00a0", "\ud800", "con", "NUL.", "\U0001f600", "k" * 181, "\u540d" * 70,
])  # fmt: skip
KEYS = st.one_of(st.lists(PIECES, min_size=1, max_size=8).map("".join), st.text(min_size=1, max_size=40))
VERSIONS = st.sampled_from(["3f2a1b9c04d5" + "0" * 52, "ab" * 32])


def seen_by_windows(path: str) -> str:
    """A path as a file system has it that knows neither case nor normal forms."""
    return normalize("NFC", normalize("NFC", path).casefold())


def named(key: str, version: str) -> str:
    return readable_key(key, suffix=".png", version=version)


@given(KEYS, VERSIONS)
def test_a_name_stays_below_its_prefix_and_can_be_written_anywhere(key, version):
    parts = named(key, version).split("/")
    assert len("/".join(parts).encode()) <= 900
    for part in parts:
        assert part.strip(" .") == part
        assert part
        assert len(part.encode()) <= 255
        assert part.isprintable()
        assert not set(part) & set('\\:*?"<>|#%')
        assert not re.fullmatch(r"(con|nul)(\..*)?", part, re.IGNORECASE)


@given(KEYS, KEYS, VERSIONS)
@example("IMG.png", "img.png", "ab" * 32)
@example("\u00c9.png", "e\u0301.png", "ab" * 32)
@example("A.png", "A.png~" + "ab" * 8, "ab" * 32)
@example("_/x~" + "0" * 32, "\n", "ab" * 32)
def test_different_keys_share_no_path_not_even_where_case_and_normal_forms_count_for_nothing(
    key, other, version
):
    variants = {
        key,
        other,
        key.upper(),
        key.lower(),
        key.swapcase(),
        normalize("NFD", key),
        normalize("NFC", key),
    }
    names = {seen_by_windows(named(each, version)) for each in variants}
    assert len(names) == len(variants)
    # no image is a folder of another one
    assert not [(a, b) for a in names for b in names if b.startswith(f"{a}/")]


@given(KEYS, VERSIONS, VERSIONS)
def test_another_version_has_another_name(key, version, other):
    assert (named(key, version) == named(key, other)) == (version == other)


@given(st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}(/[a-z0-9][a-z0-9._-]{0,20})?\.png", fullmatch=True), VERSIONS)
def test_what_was_readable_before_is_called_as_before(key, version):
    assert named(key, version) == output_key(key, suffix=".png", version=version)


@given(st.lists(KEYS, min_size=1, max_size=12, unique=True))
def test_samples_have_names_of_their_own_that_webdataset_takes_apart_as_they_were_put_together(keys):
    names = member_names(keys)
    assert len({seen_by_windows(name) for name in names.values()}) == len(keys)
    for name in names.values():
        base, ending = re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", f"{name}.png", re.DOTALL).groups()
        assert (base, ending) == (name, "png")
        assert not name.startswith("/")
        assert not {"..", ".", ""} & set(name.split("/"))
