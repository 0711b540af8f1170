"""What lies under a prefix of photographs and is not read: counted, said once, with what to do."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from styleclip.flows.score_images import score_images
from styleclip.tasks.evaluation.labels import LabelPrompt
from styleclip.tasks.photographs import images
from styleclip.tasks.photographs.datasets.front import locate
from styleclip.tasks.photographs.images import SUFFIXES, NoImagesError, index_images, read_shard
from styleclip.tasks.photographs.passed_over import describe
from styleclip.tasks.running.run import ModelHashes, Networks, Run
from styleclip.tasks.settings import DataSet, Execution
from styleclip.tasks.storage import StorageError, list_objects, listing, sorted_objects, write_bytes_atomic
from styleclip_core.images import decode_image
from tests.pipeline.test_flows import encoded, portrait


class Log(list):
    """The lines that a task logs."""

    def warning(self, text: str, *values: object) -> None:
        self.append(text % values)


@pytest.fixture
def log(monkeypatch) -> Log:
    lines = Log()
    monkeypatch.setattr(images, "get_run_logger", lambda: lines)
    return lines


def index(photos: str, workspace: Path) -> images.ImageIndex:
    run = Run(models=Networks(), hashes=ModelHashes(), workspace=str(workspace), out="", device="cpu")
    return index_images.fn(run, locate(photos, DataSet()), 100)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Photographs of all endings among what is none."""
    found = tmp_path / "photos"
    (found / "sub").mkdir(parents=True)
    jpeg = encoded(portrait(0), "JPEG")
    for name in ("a.JPG", "b.jfif", "c.jpe", "sub/d.jpeg"):
        (found / name).write_bytes(jpeg)
    (found / "e.gif").write_bytes(encoded(portrait(1), "GIF"))
    names = "1.psd 2.PSD sub/3.psd 4.jxl 5.tar 6.parquet notes.txt IMG_0007 .DS_Store"
    for name in names.split():
        (found / name).write_bytes(b"something")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "f.png").write_bytes(encoded(portrait(2)))
    (found / "linked").symlink_to(elsewhere)
    (found / "loop").symlink_to(found)
    (found / "g.png").symlink_to(elsewhere / "f.png")
    return found


SAID = (
    "passed over: 3 .psd (not read; convert to JPEG or PNG), "
    "2 without an ending (give them one, e.g. .jpg), "
    "2 linked folders (not followed; copy what is there, or give it as the prefix), "
    "1 .jxl (not read; convert to JPEG or PNG), "
    "1 .parquet (tables; those with images are read as --form parquet), "
    "1 .tar (archives; give them as --form tars), 1 .txt"
)


def test_what_is_passed_over_is_counted_and_said_once(folder, tmp_path, log):
    found = index(str(folder), tmp_path / "work")
    (shard,) = found.shards
    assert " ".join(key for key, _ in read_shard(shard)) == "a.JPG b.jfif c.jpe e.gif g.png sub/d.jpeg"
    assert found.passed_over == SAID
    assert found.aside == f"; {SAID}"
    assert log == [f"{SAID}, under {folder}"]
    assert index(str(tmp_path / "elsewhere"), tmp_path / "work").aside == ""
    assert len(log) == 1


def test_a_prefix_without_photographs_says_what_it_holds(tmp_path, log):
    for number in range(12):
        (tmp_path / f"{number}.psd").write_bytes(b"x")
    with pytest.raises(
        NoImagesError, match=r"no image under .*; passed over: 12 .psd \(not read; convert to"
    ):
        index(str(tmp_path), tmp_path / "work")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoImagesError, match=r"no image under .*\.png, \.jpg.*; check the prefix"):
        index(str(tmp_path / "empty"), tmp_path / "work")


def test_one_file_is_called_one_file(tmp_path, s3_identities):
    (tmp_path / "notes.md").write_bytes(b"x")
    with pytest.raises(StorageError, match=rf"notes.md: it is one file; give its folder, {tmp_path}$"):
        index(str(tmp_path / "notes.md"), tmp_path / "work")
    with pytest.raises(StorageError, match="it is one file"):
        list(list_objects(str(tmp_path / "notes.md")))
    write_bytes_atomic("s3://results/alone/notes.md", b"x")
    with pytest.raises(NoImagesError, match=r"s3://results/alone/notes.md is one object, and neither"):
        index("s3://results/alone/notes.md", tmp_path / "work")
    with pytest.raises(NoImagesError, match="no image under s3://results/alone/nothing"):
        index("s3://results/alone/nothing", tmp_path / "work")


@pytest.mark.parametrize("form", ["GIF", "AVIF", "WEBP", "TIFF", "BMP", "JPEG2000"])
def test_what_is_listed_is_read(form):
    if form in ("AVIF", "WEBP") and not features.check(form.lower()):
        pytest.skip(f"this Pillow was built without {form}")
    ending = {"TIFF": ".tiff", "JPEG2000": ".jp2"}.get(form, f".{form.lower()}")
    assert ending in SUFFIXES
    assert decode_image(encoded(Image.new("RGB", (20, 20), "green"), form)).size == (20, 20)


KEYS = st.text(st.sampled_from("ab./_A0"), min_size=1, max_size=12)


@given(st.lists(KEYS, unique=True, max_size=30))
def test_every_object_is_kept_or_counted(keys):
    found = [listing.ObjectInfo(key, "v", 1) for key in keys]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "_pages", lambda prefix: iter([found]))
        patch.setattr(listing, "_KINDS", 3)
        counts: Counter[str] = Counter()
        with sorted_objects("somewhere", (".a", ".b"), counts) as kept:
            assert [item.key for item in kept] == sorted(k for k in keys if k.lower().endswith((".a", ".b")))
            assert len(list(kept)) + counts.total() == len(keys)
    assert len(counts) <= 4
    assert all(ending in ("", "/") or (ending[0] == "." and ending.isascii()) for ending in counts)


@given(
    st.dictionaries(
        st.sampled_from(["", "/", ".psd", ".txt", *(f".x{n}" for n in range(20))]), st.integers(1, 10**6)
    )
)
def test_a_sentence_counts_all_and_is_short(counts):
    said = describe(counts)
    assert (said == "") == (not counts)
    assert len(said) < 600
    numbers = [
        int(part.split()[0].replace(",", ""))
        for part in said.removeprefix("passed over: ").split(", ")
        if part[:1].isdigit()
    ]
    assert sum(numbers) == sum(counts.values())


@pytest.mark.usefixtures("prefect_server")
def test_a_run_returns_what_it_passed_over(folder, tmp_path, network_files):
    prompts = [LabelPrompt(prompt="a smile", negative="a face")]
    result = score_images(
        str(folder), prompts, str(tmp_path / "out"), network_files["clip"], templates="none",
        execution=Execution(device="cpu"),
    )  # fmt: skip
    assert (result.scores.rows, result.scores.failed) == (6, 0)
    assert result.passed_over == SAID
