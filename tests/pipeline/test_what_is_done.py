"""What is found done is there, and is the version that was asked for; the cost of a change is the change."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from styleclip.flows.align_faces import align_faces
from styleclip.flows.edit_images import edit_images
from styleclip.flows.evaluate import evaluate_edits
from styleclip.flows.paste_faces import paste_faces
from styleclip.tasks.artifacts.lineage import Span, inherit
from styleclip.tasks.evaluation import shards as evaluation
from styleclip.tasks.evaluation.attributes import AttributePrompts
from styleclip.tasks.photographs import faces, inversion, pasting
from styleclip.tasks.photographs.images import cut, digest
from styleclip.tasks.reports.page.evaluations import find_evaluations
from styleclip.tasks.settings import Alignment, Execution, FaceSource, Inversion, Judges, Models
from styleclip.tasks.settings.edits import Edit
from styleclip.tasks.storage import (
    ObjectInfo,
    StorageError,
    join,
    list_objects,
    output_key,
    read_bytes,
    version,
    versions_of,
    write_bytes_atomic,
)
from tests.pipeline.test_changed_objects import ONCE, Place, rows
from tests.pipeline.test_changed_objects import place as place  # a fixture
from tests.pipeline.test_faces import photograph

pytestmark = pytest.mark.usefixtures("prefect_server")
EDITS = [Edit(name="smile", neutral="a face", target="a smiling face", relevance="instant", alpha=3.0)]
SMALL = {"instant": {"codes": 4}, "sampling": {"codes": 4, "statistics": 8}}
ONE_SHARD = Execution(shard_size=100, device="cpu")


def edit(place: Place, networks: dict[str, str], **options: object) -> pd.DataFrame:
    """Edit the photographs of a place and return the manifest, with where it lies."""
    given = {"inversion": Inversion(steps=1), "execution": ONE_SHARD, **SMALL, **options}
    report = edit_images(Models(**networks), place.photos, place.out, EDITS, **given).report
    found = rows(report.manifest)
    found.attrs["manifest"] = report.manifest
    return found


def pictures(place: Place, manifest: pd.DataFrame) -> dict[str, str]:
    """Return a digest of the edited image of every row."""
    return {
        key: hashlib.sha256(read_bytes(join(place.out, name))).hexdigest()
        for key, name in manifest.output_key.items()
    }


@pytest.fixture
def inverted(monkeypatch) -> list[str]:
    """Keys of the photographs that are inverted, as they are."""
    keys: list[str] = []
    real = inversion._invert_batch

    def counted(run, planned, batch):
        keys.extend(photo.key for photo in batch)
        return real(run, planned, batch)

    monkeypatch.setattr(inversion, "_invert_batch", counted)
    return keys


def test_a_photograph_that_comes_back_finds_its_own_picture(place, network_files, inverted):
    first = edit(place, network_files)
    seen = pictures(place, first)
    old = read_bytes(join(place.photos, "b.png"))
    assert sorted(inverted) == ["a.png", "b.png", "c.png"]

    write_bytes_atomic(join(place.photos, "b.png"), photograph(7, size=(300, 200)))
    other = edit(place, network_files)
    changed = pictures(place, other)
    assert changed["b.png"] != seen["b.png"]
    assert changed["a.png"] == seen["a.png"]
    assert inverted[3:] == ["b.png"]  # the cost of a change is the change

    write_bytes_atomic(join(place.photos, "b.png"), old)
    third = edit(place, network_files)
    assert pictures(place, third) == seen
    assert inverted[4:] == []

    # each manifest still shows what it was made of
    assert pictures(place, first) == seen
    assert pictures(place, other) == changed


def test_what_was_removed_is_made_again(place, network_files, inverted):
    first = edit(place, network_files)
    seen = pictures(place, first)
    everything = [item.key for item in list_objects(place.out, (".png",))]
    drawn = [key for key in everything if "/reconstructions/" in key]
    edited = [name for name in first.output_key if "b.png" in name]
    assert len(drawn) == 3
    before = {key: read_bytes(join(place.out, key)) for key in drawn}
    for key in (*edited, *drawn):
        remove(join(place.out, key))

    again = edit(place, network_files)
    assert pictures(place, again) == seen
    assert {key: read_bytes(join(place.out, key)) for key in drawn} == before
    assert inverted[3:] == []  # an inversion is drawn again of its latent
    assert again.attrs["manifest"] == first.attrs["manifest"]


def remove(uri: str) -> None:
    if uri.startswith("s3://"):
        from styleclip.tasks.storage import filesystem

        fs, path = filesystem(uri)
        fs.rm_file(path)
    else:
        Path(uri).unlink()


def test_a_tuning_that_was_removed_is_made_again(place, network_files, inverted):
    settings = Inversion(steps=1, pivotal={"steps": 1})
    seen = pictures(place, edit(place, network_files, inversion=settings))
    tunings = [
        item.key for item in list_objects(place.out, (".safetensors",)) if "/tunings/b.png" in item.key
    ]
    assert len(tunings) == 1
    remove(join(place.out, tunings[0]))

    assert pictures(place, edit(place, network_files, inversion=settings)) == seen
    assert inverted[3:] == ["b.png"]
    assert read_bytes(join(place.out, tunings[0]))


def test_a_photograph_that_is_written_anew_and_is_the_same_costs_no_inversion(
    tmp_path, network_files, inverted
):
    place = Place(str(tmp_path / "photos"), str(tmp_path / "out"), "")
    for number in range(3):
        write_bytes_atomic(join(place.photos, f"{number}.png"), photograph(number))
    seen = pictures(place, edit(place, network_files))
    was = version(join(place.photos, "1.png"))
    write_bytes_atomic(join(place.photos, "1.png"), photograph(1))
    assert version(join(place.photos, "1.png")) != was
    assert pictures(place, edit(place, network_files)) == seen
    assert inverted[3:] == []


def test_two_files_of_one_size_and_time_are_two_versions(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"one")
    times = path.stat()
    was = version(str(path))
    path.write_bytes(b"two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_mtime_ns == times.st_mtime_ns
    assert version(str(path)) != was


def test_images_that_are_added_and_removed_leave_the_others_done(tmp_path, network_files, inverted):
    place = Place(str(tmp_path / "photos"), str(tmp_path / "out"), "")
    for number in range(12):
        write_bytes_atomic(join(place.photos, f"{number:02d}.png"), photograph(number % 4))
    execution = Execution(shard_size=4, device="cpu")
    seen = pictures(place, edit(place, network_files, execution=execution))
    assert len(inverted) == 12

    # keys whose hashes end a shard, too: each moves the borders of its neighbours
    added = [f"{number:02d}-new-{place_}.png" for number in (0, 5, 11) for place_ in range(4)]
    for key in added:
        write_bytes_atomic(join(place.photos, key), photograph(5))
    for number in (3, 8):
        (tmp_path / "photos" / f"{number:02d}.png").unlink()
    after = pictures(place, edit(place, network_files, execution=execution))
    assert sorted(inverted[12:]) == sorted(added)
    assert {key: after[key] for key in seen if key in after} == {
        key: seen[key] for key in seen if key not in ("03.png", "08.png")
    }


def test_faces_and_pasted_photographs_follow_their_photographs(place, monkeypatch):
    source = FaceSource(landmarks=place.landmarks)

    def align() -> pd.DataFrame:
        found = align_faces(source, place.photos, place.out, "", Alignment(output_size=32), ONCE).faces
        table = rows(found.table)
        table.attrs.update(table=found.table, faces=found.faces)
        return table

    def paste(aligned: pd.DataFrame) -> pd.DataFrame:
        target = f"{place.out}-pasted"
        done = paste_faces(aligned.attrs["table"], aligned.attrs["faces"], target, execution=ONCE).pasted
        table = rows(done.table)
        table["picture"] = [read_bytes(join(done.photographs, name)) for name in table.output_key]
        return table

    asked: list[tuple[str, str]] = []
    count_calls(monkeypatch, faces, "_align_photograph", asked, 3)
    count_calls(monkeypatch, pasting, "_paste", asked, 2)

    first = align()
    pasted = paste(first)
    old = read_bytes(join(place.photos, "b.png"))
    assert len(asked) == 6

    # another photograph, and the first one again: the face that lies there is the one of the row
    write_bytes_atomic(join(place.photos, "b.png"), photograph(7, size=(300, 200)))
    then = align()
    other = paste(then)
    assert asked[6:] == [("_align_photograph", "b.png"), ("_paste", "b.png")]
    assert other.picture["b.png"] != pasted.picture["b.png"]
    write_bytes_atomic(join(place.photos, "b.png"), old)
    third = align()
    face = read_bytes(join(third.attrs["faces"], third.output_key["b.png"]))
    assert hashlib.sha256(face).hexdigest() == third.face_hash["b.png"] == first.face_hash["b.png"]
    assert paste(third).picture.to_dict() == pasted.picture.to_dict()

    # a face that was removed
    remove(join(third.attrs["faces"], third.output_key["a.png"]))
    fourth = align()
    assert version(join(fourth.attrs["faces"], fourth.output_key["a.png"])) == fourth.output_etag["a.png"]


def count_calls(monkeypatch, module, name: str, calls: list[tuple[str, str]], place: int) -> None:
    real = getattr(module, name)

    def counted(*arguments):
        calls.append((name, arguments[place]))
        return real(*arguments)

    monkeypatch.setattr(module, name, counted)


def test_a_mended_row_is_evaluated_and_supersedes_the_one_that_failed(place, network_files, monkeypatch):
    manifest = edit(place, network_files).attrs["manifest"]
    attributes = (AttributePrompts(name="smile", positive="a smile", negative="a face", group="mouth"),)
    judges = Judges(clip=network_files["clip"])
    scored: list[tuple[str, str]] = []
    real = evaluation.decode_image
    broken = [True]

    def fails_once(content: bytes):
        if broken:
            broken.clear()
            raise StorageError("this picture cannot be read just now")
        return real(content)

    monkeypatch.setattr(evaluation, "decode_image", fails_once)
    first = evaluate_edits(manifest, attributes, judges, execution=ONE_SHARD).evaluation
    assert first.failed == 1
    second = evaluate_edits(manifest, attributes, judges, execution=ONE_SHARD).evaluation
    assert second.failed == 0
    assert second.folder.partition(".")[0] == first.folder.partition(".")[0]
    assert find_evaluations(manifest) == [second.evaluation]

    # a batch in which one photograph is another: only that one is scored
    real_score = evaluation._score

    def counted(run, planned, panel, reader, chunk):
        scored.extend(("score", rows_[0]["image_key"]) for rows_ in chunk)
        return real_score(run, planned, panel, reader, chunk)

    monkeypatch.setattr(evaluation, "_score", counted)
    write_bytes_atomic(join(place.photos, "b.png"), photograph(7, size=(300, 200)))
    third = evaluate_edits(
        edit(place, network_files).attrs["manifest"], attributes, judges, execution=ONE_SHARD
    ).evaluation
    assert third.failed == 0
    assert scored == [("score", "b.png")]


NAMES = st.sets(st.text(st.characters(codec="ascii", min_codepoint=45), min_size=1, max_size=3), max_size=60)


@given(NAMES.filter(bool), NAMES.filter(bool))
def test_every_key_that_two_lists_share_is_found_through_the_later_one(one, two):
    def spans(keys: set[str], tag: str) -> dict[str, Span]:
        shards = cut([ObjectInfo(key, tag if key.endswith("x") else "", 1) for key in sorted(keys)], 4)
        return {digest(part): Span(digest(part), part[0].key, part[-1].key) for part in shards}

    def holder(found: dict[str, Span], key: str) -> str:
        return next(name for name, span in found.items() if span.first <= key <= span.last)

    earlier, later = spans(one, "v1"), spans(two, "v2")
    followed = {span.digest: span for span in inherit(list(later.values()), list(earlier.values()))}
    for key in one & two:
        span, was = followed[holder(later, key)], holder(earlier, key)
        assert was == span.digest or was in span.before
    # the same list once more changes nothing
    again = list(inherit(list(later.values()), list(followed.values())))
    assert [span.before for span in again] == [span.before for span in followed.values()]


@given(st.lists(st.tuples(st.text(max_size=20), st.sampled_from(["", "a" * 64, "b" * 64])), unique=True))
def test_different_versions_never_share_a_path(pairs):
    paths = [output_key(key, suffix=".png", version=version_ or None) for key, version_ in pairs]
    assert len(set(paths)) == len(pairs)


def test_versions_are_those_that_reading_one_by_one_would_find(place):
    # byte by byte "a-b/" comes before "a/", and not every store that speaks S3 sorts so
    names = [f"{folder}/{number:04d}.png" for folder in ("a", "a-b", "a/c", "deep") for number in range(7)]
    for name in names[::2]:
        write_bytes_atomic(join(place.out, name), name.encode())
    write_bytes_atomic(join(place.out, "zz.png"), b"behind them all")
    found = versions_of(place.out, {*names, "zz.png", "absent.png"})
    assert found == {name: version(join(place.out, name)) for name in (*names[::2], "zz.png")}
    assert versions_of(join(place.out, "nothing-here"), {"a.png"}) == {}
    assert versions_of(place.out, set()) == {}
