"""Data sets of every form hold the same images: the same bytes, the same columns, the same edits."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from styleclip.flows.edit_images import edit_images
from styleclip.tasks.editing.schemas import MANIFEST_SCHEMA
from styleclip.tasks.photographs import images as index_images_module
from styleclip.tasks.photographs.datasets import cells
from styleclip.tasks.photographs.datasets.columns import OURS, own_name
from styleclip.tasks.photographs.datasets.front import NoImagesError, locate
from styleclip.tasks.photographs.datasets.places import BrokenPlaceError, Place, is_place, parse_place
from styleclip.tasks.photographs.datasets.subsets import is_drawn, matcher
from styleclip.tasks.photographs.images import ListedImage, index_images, read_items, read_shard
from styleclip.tasks.photographs.reading import BrokenSampleError, ShardReader, read_image
from styleclip.tasks.running.run import Run
from styleclip.tasks.settings import DataSet, Execution, Inversion, Models, SettingsError
from styleclip.tasks.settings.edits import Edit
from styleclip.tasks.storage import ChangedObjectError, StorageError, join, read_bytes, write_bytes_atomic
from styleclip_core.images import decode_image
from tests.data_sets import (
    as_frame,
    captions,
    upload,
    write_binary,
    write_folder,
    write_hugging_face,
    write_img2dataset,
    write_list,
    write_tars,
)
from tests.pipeline.test_faces import encoded, portrait

pytestmark = pytest.mark.usefixtures("prefect_server")
EDITS = [Edit(name="smile", neutral="a face", target="a smiling face", relevance="instant", alpha=3.0)]
SMALL = {"instant": {"codes": 4}, "sampling": {"codes": 4, "statistics": 8}}


COUNT = int(os.environ.get("FORMS_EXAMPLES", "10"))
EACH = -(-COUNT // 3)  # of a tar or a table


@pytest.fixture(scope="module")
def images() -> dict[str, bytes]:
    """Ten photographs in two folders, all different."""
    return _photographs(10)


@pytest.fixture(scope="module")
def many() -> dict[str, bytes]:
    """As many as a long run asks for."""
    return _photographs(COUNT)


def _photographs(count: int) -> dict[str, bytes]:
    return {
        f"{'ab'[number % 2]}/p{number}.jpg": encoded(portrait(number, (20, 20)), form="JPEG")
        for number in range(count)
    }


# What a form is given as, below the place where it was written.
FORMS: dict[str, tuple[Callable[[Path, dict[str, bytes]], object], str, DataSet]] = {
    "prefix": (lambda at, images: write_folder(at, images), "", DataSet()),
    "glob": (lambda at, images: write_folder(at, images), "*/p*.jpg", DataSet()),
    "metadata.csv": (lambda at, images: write_folder(at, images, "csv"), "", DataSet()),
    "metadata.jsonl": (lambda at, images: write_folder(at, images, "jsonl"), "", DataSet()),
    "tars": (lambda at, images: write_tars(at, images, EACH), "", DataSet()),
    "tars by name": (lambda at, images: write_tars(at, images, EACH), "{00000..00002}.tar", DataSet()),
    "img2dataset": (lambda at, images: write_img2dataset(at, images, EACH), "", DataSet()),
    "Hugging Face": (lambda at, images: write_hugging_face(at, images, EACH), "", DataSet()),
    "binary": (lambda at, images: write_binary(at / "all.parquet", images), "all.parquet", DataSet()),
} | {
    f"list{ending}": (
        lambda at, images, ending=ending: write_listed(at, images, f"list{ending}"),
        f"list{ending}",
        DataSet(),
    )
    for ending in (".csv", ".tsv", ".jsonl", ".parquet", ".txt")
}  # fmt: skip
CAPTIONED = [name for name in FORMS if name not in ("prefix", "glob", "list.txt")]


def write_listed(folder: Path, images: dict[str, bytes], name: str) -> None:
    """Write images and a list of them."""
    write_folder(folder, images)
    write_list(folder / name, images)


@pytest.fixture(autouse=True)
def _log(monkeypatch) -> None:
    monkeypatch.setattr(index_images_module, "get_run_logger", lambda: logging.getLogger("images"))


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path, monkeypatch) -> Callable[[Callable, dict[str, bytes]], str]:
    """Return what writes a data set to a disk or to a store, and says where."""

    def written(write: Callable, images: dict[str, bytes]) -> str:
        folder = tmp_path / "written"
        write(folder, images)
        if request.param == "local":
            return str(folder)
        request.getfixturevalue("s3_identities")
        options = tmp_path / "options.json"  # one who may write the photographs, too
        options.write_text(json.dumps({"s3://": {"profile": "admin"}}))
        monkeypatch.setenv("STYLECLIP_STORAGE_OPTIONS", str(options))
        digest = hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
        upload(folder, f"s3://results/forms/{digest}")
        return f"s3://results/forms/{digest}"

    return written


def listed(
    photos: str, workspace: Path, dataset: DataSet = DataSet(), size: int = 3
) -> dict[str, ListedImage]:
    """Return all images of a data set, by key."""
    index = index_images.fn(Run(workspace=str(workspace)), locate(photos, dataset), size)
    found = [item for shard in index.shards for item in read_items(shard)]
    assert [item.key for item in found] == sorted(item.key for item in found)
    assert len(found) == index.rows
    return {item.key: item for item in found}


def contents(photos: str, workspace: Path, dataset: DataSet = DataSet()) -> dict[str, bytes]:
    """Return the bytes of all images of a data set, by key, read shard by shard."""
    index = index_images.fn(Run(workspace=str(workspace)), locate(photos, dataset), 3)
    found = {}
    for shard in index.shards:
        reader = ShardReader(index.photos, shard)
        found |= {key: reader.read(key, etag) for key, etag in read_shard(shard)}
    return found


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same_images_and_says_the_same_of_them(form, many, place, tmp_path):
    write, name, dataset = FORMS[form]
    root = place(write, many)
    photos = join(root, name) if name else root

    found = contents(photos, tmp_path / "workspace", dataset)
    assert sorted(found.values()) == sorted(many.values())

    if form in CAPTIONED:
        said = {many[key]: values for key, values in captions(many).items()}
        items = listed(photos, tmp_path / "workspace", dataset)
        for key, content in found.items():
            columns = items[key].columns
            assert {name: columns[name] for name in ("caption", "age", "glasses")} == said[content]
    # read alone, by what tables say of it
    key, item = sorted(listed(photos, tmp_path / "workspace", dataset).items())[4]
    index = index_images.fn(Run(workspace=str(tmp_path / "workspace")), locate(photos, dataset), 3)
    assert read_image(index.photos, key, item.place) == found[key]


@pytest.mark.parametrize("form", ["tars", "Hugging Face", "list.csv"])
def test_every_form_is_edited_alike(form, many, tmp_path, network_files):
    def edited(photos: str, out: str) -> dict[str, bytes]:
        result = edit_images(
            Models(**network_files), photos, str(tmp_path / out), EDITS, inversion=Inversion(steps=1),
            execution=Execution(shard_size=3, device="cpu"), **SMALL,
        )  # fmt: skip
        rows = as_frame(read_bytes(result.report.manifest))
        assert (rows.status == "ok").all()
        if form != "prefix" and photos != str(loose):
            assert sorted(rows.caption) == sorted(each["caption"] for each in captions(many).values())
        return {
            row.content_hash: read_bytes(join(str(tmp_path / out), row.output_key))
            for row in rows.itertuples()
        }

    loose = tmp_path / "loose"
    write_folder(loose, many)
    write, name, _ = FORMS[form]
    write(tmp_path / "packed", many)
    packed = str(tmp_path / "packed" / name)
    first, second = edited(str(loose), "out-1"), edited(packed, "out-2")
    assert len(first) == len(many)
    assert first.keys() == second.keys()
    for digest, content in first.items():
        assert decode_image(content).tobytes() == decode_image(second[digest]).tobytes()


def test_one_image_is_a_data_set(images, place, tmp_path):
    root = place(lambda at, images: write_folder(at, images), images)
    assert contents(join(root, "a/p2.jpg"), tmp_path / "workspace") == {"p2.jpg": images["a/p2.jpg"]}


def test_a_pattern_names_what_is_not_there(images, tmp_path):
    write_folder(tmp_path / "in", images)
    with pytest.raises(StorageError, match=r"p1.jpg"):
        listed(str(tmp_path / "in" / "a" / "p{0..9}.jpg"), tmp_path)
    with pytest.raises(SettingsError, match="stands for more than"):
        locate(str(tmp_path / "in" / "{000000..999999}.jpg"), DataSet())
    with pytest.raises(SettingsError, match=r"[Bb]races"):
        locate(str(tmp_path / "in" / "{0..9.jpg"), DataSet())


def test_a_folder_may_be_called_like_a_pattern(images, tmp_path):
    write_folder(tmp_path / "in [1]{2}", images)
    assert contents(str(tmp_path / "in [1]{2}"), tmp_path / "workspace") == images


@pytest.mark.parametrize(
    ("photos", "said"),
    [
        ("tar://x.jpg::file:///a.tar", "give the archive itself"),
        ("zip://a.zip", "give the archive itself"),
    ],
)
def test_what_is_no_data_set_is_told_how_to_give_it(photos, said):
    with pytest.raises(SettingsError, match=said):
        locate(photos, DataSet())


def test_archives_beside_images_are_told_apart(images, tmp_path):
    write_folder(tmp_path / "in", images)
    write_tars(tmp_path / "in", images, 5)
    index = index_images.fn(Run(workspace=str(tmp_path)), locate(str(tmp_path / "in"), DataSet()), 3)
    assert index.rows == len(images)
    assert "2 .tar (archives; give them as --form tars)" in index.passed_over
    both = listed(str(tmp_path / "in"), tmp_path, DataSet(form="tars"))
    assert len(both) == len(images)
    assert all(item.place for item in both.values())


def test_an_empty_place_says_what_was_looked_for(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.psd").write_bytes(b"x")
    with pytest.raises(NoImagesError, match=r"\.tar and \.parquet.*1 \.psd"):
        listed(str(tmp_path / "in"), tmp_path)


# ---- what is broken is a row ----


def archive(members: list[tuple[str, bytes]]) -> bytes:
    """Return an archive of files, in their order; a name may come twice."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_samples_of_one_name_are_told_apart_and_the_first_is_taken(images, tmp_path):
    few = {f"{number}.jpg": content for number, content in enumerate(images.values())}
    content = archive(
        [("x.jpg", few["0.jpg"]), ("y.jpg", few["1.jpg"]), ("x.jpg", few["2.jpg"]), ("e.jpg", b"")]
    )
    (tmp_path / "s.tar").write_bytes(content)
    index = index_images.fn(
        Run(workspace=str(tmp_path / "w")), locate(str(tmp_path / "s.tar"), DataSet()), 10
    )
    reader = ShardReader(index.photos, index.shards[0])
    etags = dict(read_shard(index.shards[0]))
    assert sorted(etags) == ["s/e.jpg", "s/x.jpg", "s/x~2.jpg", "s/y.jpg"]
    assert reader.read("s/x.jpg", etags["s/x.jpg"]) == few["0.jpg"]
    with pytest.raises(BrokenSampleError, match="stands 2 times in"):
        reader.read("s/x~2.jpg", etags["s/x~2.jpg"])
    with pytest.raises(BrokenSampleError, match="empty"):
        reader.read("s/e.jpg", etags["s/e.jpg"])


@pytest.mark.parametrize("cut", ["in an image", "in a header"])
def test_a_truncated_archive_gives_what_is_whole_and_says_what_is_not(cut, images, place, tmp_path):
    few = {f"{number}.jpg": content for number, content in enumerate(list(images.values())[:4])}
    content = archive(list(few.items()))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        third = tar.getmembers()[2]
    end = third.offset_data + 10 if cut == "in an image" else third.offset + 100

    def write(at: Path, _images: dict[str, bytes]) -> None:
        at.mkdir()
        (at / "s.tar").write_bytes(content[:end])

    found = listed(place(write, few), tmp_path / "w")
    whole = [key for key, item in found.items() if not item.problem]
    assert whole == ["s/0.jpg", "s/1.jpg"]
    (said,) = [item.problem for item in found.values() if item.problem]
    assert "s.tar is " in said
    assert ("cut off: 2.jpg" if cut == "in an image" else "damaged from byte") in said


def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(images, tmp_path):
    few = {f"{number}.jpg": content for number, content in enumerate(list(images.values())[:4])}
    content = bytearray(archive(list(few.items())))
    with tarfile.open(fileobj=io.BytesIO(bytes(content))) as tar:
        second = tar.getmembers()[1]
    content[second.offset : second.offset + 512] = b"\xff" * 512
    (tmp_path / "s.tar").write_bytes(bytes(content))
    found = listed(str(tmp_path / "s.tar"), tmp_path / "w")
    assert [key for key, item in found.items() if not item.problem] == ["s/0.jpg"]
    assert f"s.tar is damaged from byte {second.offset:,} on" in next(
        item.problem for item in found.values() if item.problem
    )


def test_null_and_empty_cells_are_broken_samples(images, tmp_path):
    few = list(images.values())[:2]
    rows = pa.table({"image": pa.array([few[0], None, b"", few[1]], pa.binary()), "n": [1, 2, 3, 4]})
    pq.write_table(rows, tmp_path / "t.parquet", row_group_size=2)
    index = index_images.fn(
        Run(workspace=str(tmp_path / "w")), locate(str(tmp_path / "t.parquet"), DataSet()), 1000
    )
    reader, etags = ShardReader(index.photos, index.shards[0]), dict(read_shard(index.shards[0]))
    assert [reader.read(key, etags[key]) for key in (sorted(etags)[0], sorted(etags)[3])] == few
    for key in sorted(etags)[1:3]:
        with pytest.raises(BrokenSampleError, match="has no bytes in image"):
            reader.read(key, etags[key])


def test_a_dot_may_be_a_part_of_a_column_s_name(images, tmp_path):
    """As json_normalize of pandas writes them, beside what looks like the struct that they are not of."""
    key, content = next(iter(images.items()))
    rows = pa.table({"image.bytes": [content], "image": [key], "image.width": [24]})
    pq.write_table(rows, tmp_path / "t.parquet")
    index = index_images.fn(
        Run(workspace=str(tmp_path / "w")), locate(str(tmp_path / "t.parquet"), DataSet()), 10
    )
    ((name, etag),) = read_shard(index.shards[0])
    assert ShardReader(index.photos, index.shards[0]).read(name, etag) == content
    (sample,) = listed(str(tmp_path / "t.parquet"), tmp_path / "v").values()
    assert sample.columns == {"image": key, "image.width": 24}


def test_a_large_row_group_is_read_once_for_a_shard(images, tmp_path, monkeypatch):
    write_binary(tmp_path / "t.parquet", images, row_group=len(images))
    index = index_images.fn(
        Run(workspace=str(tmp_path / "w")), locate(str(tmp_path / "t.parquet"), DataSet()), 3
    )
    monkeypatch.setattr(cells, "_KEPT", 1)  # any row group is a large one
    read, asked = cells._read, []
    monkeypatch.setattr(cells, "_read", lambda *given: asked.append(given) or read(*given))
    found = {}
    for shard in index.shards:
        reader = ShardReader(index.photos, shard)
        found |= {key: reader.read(key, etag) for key, etag in read_shard(shard)}
    assert len(asked) == len(index.shards) > 1
    assert list(found.values()) == [images[key] for key in sorted(images)]


def test_an_archive_replaced_after_it_was_listed_is_not_read(images, place, tmp_path):
    root = place(lambda at, images: write_tars(at, images, 20), images)
    index = index_images.fn(Run(workspace=str(tmp_path / "w")), locate(root, DataSet()), 100)
    write_bytes_atomic(join(root, "00000.tar"), read_bytes(join(root, "00000.tar")) + b"\0" * 10240)
    key, etag = read_shard(index.shards[0])[0]
    with pytest.raises(ChangedObjectError):
        ShardReader(index.photos, index.shards[0]).read(key, etag)


# ---- lists ----


def test_a_list_names_what_it_wants_and_says_what_is_wrong(images, tmp_path):
    write_folder(tmp_path / "in", images)
    (tmp_path / "elsewhere.jpg").write_bytes(images["a/p0.jpg"])
    rows = [
        ("a/p0.jpg", "one"), ("a/p0.jpg", "two"), ("a/p0.jpg", "two"), ("a/gone.jpg", "gone"),
        ("../elsewhere.jpg", "out"), (str(tmp_path / "elsewhere.jpg"), "by path"),
        (str(tmp_path / "in" / "b" / "p1.jpg"), "below"), ("", "nothing"),
        ("https://x/y.jpg?X-Amz-Signature=abc", "secret"),
    ]  # fmt: skip
    pd.DataFrame(rows, columns=["path", "caption"]).to_csv(tmp_path / "in" / "list.csv", index=False)
    found = listed(str(tmp_path / "in" / "list.csv"), tmp_path / "w")
    said = {item.columns["caption"]: item for item in found.values()}
    assert len(found) == 8  # one row was there twice
    assert said["one"].key == "a/p0.jpg" or said["two"].key == "a/p0.jpg"
    assert {said["one"].key, said["two"].key} == {"a/p0.jpg", "a/p0~2.jpg"}
    assert said["below"].key == "b/p1.jpg"
    assert "a/gone.jpg" in said["gone"].problem
    assert "leads out of" in said["out"].problem
    assert "names no image" in said["nothing"].problem
    assert "credentials" in said["secret"].problem
    assert not any("X-Amz" in str(item) for item in found.values())
    index = index_images.fn(
        Run(workspace=str(tmp_path / "w")), locate(str(tmp_path / "in" / "list.csv"), DataSet()), 100
    )
    reader, etags = ShardReader(index.photos, index.shards[0]), dict(read_shard(index.shards[0]))
    for name in ("one", "two", "by path"):
        assert reader.read(said[name].key, etags[said[name].key]) == images["a/p0.jpg"]


def test_a_list_in_a_bucket_names_nothing_on_the_disk_of_a_worker(images, place, tmp_path, request):
    secret = tmp_path / "private.jpg"
    secret.write_bytes(images["a/p0.jpg"])

    def write(at: Path, images: dict[str, bytes]) -> None:
        write_folder(at, images)
        (at / "list.txt").write_text(f"{secret}\nfile://{secret}\na/p0.jpg\n")

    root = place(write, images)
    found = listed(join(root, "list.txt"), tmp_path / "w")
    problems = [item.problem for item in found.values() if item.problem]
    if root.startswith("s3://"):
        assert len(problems) == 2
        assert all("may not name" in each for each in problems)
    else:
        assert not problems


def test_a_long_list_is_held_against_one_listing(images, place, tmp_path, monkeypatch):
    from styleclip.tasks.photographs.datasets import lists

    root = place(lambda at, images: (write_folder(at, images), write_list(at / "list.csv", images)), images)
    few = listed(join(root, "list.csv"), tmp_path / "w1")
    monkeypatch.setattr(lists, "_FEW", 3)
    monkeypatch.setattr(lists, "_looked_up", lambda *_: pytest.fail("asked for one by one"))
    assert listed(join(root, "list.csv"), tmp_path / "w2") == few


def test_keys_may_be_relative_to_another_prefix(images, tmp_path):
    write_folder(tmp_path / "in", images)
    write_list(tmp_path / "list.csv", images)
    dataset = DataSet(keys_under=str(tmp_path / "in"))
    assert contents(str(tmp_path / "list.csv"), tmp_path / "w", dataset) == images


# ---- subsets ----


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (DataSet(limit=3), [0, 2, 4]),  # a/p0, a/p2, a/p4
        (DataSet(include=("b/**",)), [1, 3, 5, 7, 9]),
        (DataSet(include=("*/p[1-4].jpg",), exclude=("a/p2.jpg",)), [1, 3, 4]),
        (DataSet(where="age < 23"), [0, 2, 4]),
        (DataSet(where="glasses and caption like '%hat 1%' or key = 'b/p9.jpg'"), [9]),
        (DataSet(where="not glasses", limit=2), [2, 6]),
    ],
)
def test_a_subset_is_what_it_says(dataset, expected, images, tmp_path):
    write_folder(tmp_path / "in", images, "csv")
    found = listed(str(tmp_path / "in"), tmp_path / "w", dataset)
    assert sorted(int(key[3]) for key in found) == sorted(expected)


def test_a_condition_may_ask_tables_of_scores(images, tmp_path):
    write_folder(tmp_path / "in", images)
    scores = pa.table({
        "image_key": sorted(images),
        "scores": [
            [{"label": "glasses", "cosine": 0.1, "probability": number / 10}] for number in range(len(images))
        ],
    })  # fmt: skip
    pq.write_table(scores, tmp_path / "scores.parquet")
    dataset = DataSet(where="score['glasses'] < 0.35", tables=(str(tmp_path / "scores.parquet"),))
    assert sorted(listed(str(tmp_path / "in"), tmp_path / "w", dataset)) == sorted(images)[:4]


@pytest.mark.parametrize(
    "where",
    ["colour = 1", "age <", "1 = 1); DROP TABLE samples; --",
     "age in (select age from read_csv('/etc/passwd'))",
     "true) UNION SELECT content FROM read_text('/etc/hostname') WHERE (true"],
)  # fmt: skip
def test_what_is_no_condition_is_refused_and_reads_no_file(where, images, tmp_path):
    write_folder(tmp_path / "in", images, "csv")
    with pytest.raises(SettingsError, match="where"):
        listed(str(tmp_path / "in"), tmp_path / "w", DataSet(where=where))


def test_no_column_of_a_data_set_takes_the_name_of_one_of_ours():
    assert set(MANIFEST_SCHEMA.names) <= OURS
    assert {own_name("width"), own_name("source_width")} == {"source_width", "source_source_width"}


def test_a_subset_that_leaves_nothing_says_so(images, tmp_path):
    write_folder(tmp_path / "in", images)
    with pytest.raises(NoImagesError, match=r"left by include.*ask for less"):
        listed(str(tmp_path / "in"), tmp_path / "w", DataSet(include=("c/**",)))


def test_shards_of_a_subset_and_of_another_caption_find_the_same_work(images, tmp_path):
    write_folder(tmp_path / "in", images, "csv")
    run = Run(workspace=str(tmp_path / "w"))
    first = index_images.fn(run, locate(str(tmp_path / "in"), DataSet()), 3)
    table = pd.read_csv(tmp_path / "in" / "metadata.csv").assign(caption="another")
    table.to_csv(tmp_path / "in" / "metadata.csv", index=False)
    second = index_images.fn(run, locate(str(tmp_path / "in"), DataSet()), 3)
    assert [shard.digest for shard in first.shards] == [shard.digest for shard in second.shards]
    assert first.fingerprint != second.fingerprint
    assert read_items(second.shards[0])[0].columns["caption"] == "another"


@given(st.sets(st.text(min_size=1), max_size=50), st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_draw_is_stable_and_a_smaller_one_lies_within(keys, one, other):
    drawn = [{key for key in keys if is_drawn(key, share)} for share in sorted((one, other))]
    assert drawn[0] <= drawn[1]


def test_patterns_stay_within_folders_unless_they_say_so():
    inside, across = matcher(["a/*.png"]), matcher(["a/**"])
    assert inside("a/x.png")
    assert not inside("a/b/x.png")
    assert across("a/b/x.png")
    assert not across("b/x.png")


# ---- places ----


@given(
    st.text(min_size=1).filter(lambda text: max(text) < "\ud800"), st.integers(0, 2**40),
    st.integers(1, 2**40), st.text(min_size=1),
)  # fmt: skip
def test_a_place_is_its_string(name, start, length, column):
    for place in (Place(name), Place(name, start, start + length), Place(name, row=start, column=column)):
        assert is_place(str(place))
        assert parse_place(str(place)) == place


def test_a_key_of_an_image_is_no_place():
    assert not is_place("faces/a.tar#bytes=1-2.png")
    assert not is_place("faces/1.png")
    with pytest.raises(BrokenPlaceError):
        parse_place("x.tar#bytes=a-b")
