"""What a place holds, and pruning: whatever goes, and wherever it ends, no manifest names what is gone."""

from __future__ import annotations

import io
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.batches import Made, make_batch
from styleclip.tasks.artifacts import Recipe, write_table
from styleclip.tasks.artifacts.outcomes import OK
from styleclip.tasks.editing.schemas import MANIFEST_SCHEMA
from styleclip.tasks.keeping import pruning, references
from styleclip.tasks.keeping.accounts import account
from styleclip.tasks.keeping.batches import OverlapError, find_batches
from styleclip.tasks.keeping.pruning import Choice, PlaceChangedError, prune, seconds_of
from styleclip.tasks.running.partial import Part
from styleclip.tasks.settings import SettingsError
from styleclip.tasks.settings.edits import Edit
from styleclip.tasks.storage import (
    delete_objects,
    exists,
    join,
    list_folders,
    list_objects,
    output_key,
    write_bytes_atomic,
)
from styleclip_core.errors import StyleCLIPError

DAY = 24 * 3600.0
LATER = time.time() + 2 * DAY  # when all that a test writes is old
SMILE, BEARD, HAT = (
    Edit(name=name, neutral="a face", target=f"a face with {name}", alpha=2.0, beta=0.1)
    for name in ("smile", "beard", "hat")
)
KEYS = [f"p{number}.png" for number in range(4)]


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path, monkeypatch) -> str:
    if request.param == "local":
        return str(tmp_path)
    request.getfixturevalue("s3_identities")
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    return f"s3://results/keeping/{name}"


def batch_of(made: Made) -> str:
    return made.manifest.split("/")[-2]


def keys_of(place: str) -> set[str]:
    return {item.key for item in list_objects(place)}


def named(out: str) -> Iterator[str]:
    """Yield what the manifests of a place name, relative to it."""
    for batch in find_batches(out)[0]:
        table = pq.read_table(io.BytesIO(_read(batch.manifest)))
        for row in table.to_pylist():
            if row["status"] == OK:
                yield row["output_key"]
                name = output_key(row["image_key"], suffix=".png", version=row["content_hash"])
                yield f"workspace/latents/{batch.latents}/reconstructions/{name}"
        yield f"workspace/index/{batch.made.inputs['index']}/index.parquet"


def _read(uri: str) -> bytes:
    from styleclip.tasks.storage import read_bytes

    return read_bytes(uri)


def check_law(out: str) -> None:
    missing = set(named(out)) - keys_of(out)
    assert not missing


def run_prune(
    made: Made, choice: Choice, *, confirmed: bool = True, now: float = LATER, grace_s: float = DAY
):
    return prune(made.out, made.workspace, choice, grace_s=grace_s, confirmed=confirmed, now=now)


@pytest.fixture
def two(root) -> tuple[Made, Made]:
    """Two batches that share the images of one edit, with what the project does not know around them."""
    first = make_batch(root, KEYS, [SMILE, BEARD])
    second = make_batch(root, KEYS[:3], [SMILE, HAT])
    for name in ("faces_12ab34cd/a.png", "photographs_12ab34cd/a.png", "notes/a.txt", "images/mine/a.png",
                 "batches/drafts/a.txt", "workspace/mappers/0/best.safetensors"):  # fmt: skip
        write_bytes_atomic(join(first.out, name), b"not to be touched")
    return first, second


STAYS = {
    "faces_12ab34cd/a.png", "photographs_12ab34cd/a.png", "notes/a.txt", "images/mine/a.png",
    "batches/drafts/a.txt", "workspace/mappers/0/best.safetensors",
}  # fmt: skip


def test_an_account_says_what_each_batch_holds_and_what_it_holds_alone(two):
    first, second = two
    found = account(first.out, first.workspace)
    sizes = {item.key: item.size for item in list_objects(first.out)}
    of_edit = {
        name: sum(size for key, size in sizes.items() if f"/{name}" in key)
        for name in ("smile", "beard", "hat")
    }

    told = {each.name: each for each in found.batches}
    one, other = told[batch_of(first)], told[batch_of(second)]
    assert (one.edits, one.rows, other.edits, other.rows) == (2, 8, 2, 6)
    assert one.referred == of_edit["smile"] + of_edit["beard"]
    assert other.alone == of_edit["hat"]
    last = next(size for key, size in sizes.items() if "/smile" in key and "p3.png" in key)
    assert one.alone == of_edit["beard"] + last
    assert one.own == sum(size for key, size in sizes.items() if f"batches/{one.name}/" in key)
    assert one.missing == other.missing == 0

    kinds = {each.kind: each for each in found.kinds}
    assert kinds["images"].objects == 4 + 4 + 3
    assert kinds["images"].folders == 3
    assert kinds["other: images"].objects == 1
    assert kinds["reconstructions"].objects == 4
    assert kinds["faces"].objects == kinds["photographs"].objects == kinds["other: notes"].objects == 1
    assert sum(each.objects for each in found.kinds) == len(sizes)
    assert sum(each.size for each in found.kinds) == sum(sizes.values())
    assert not any(each.unreferenced for each in found.kinds)
    today = time.strftime("%Y-%m-%d", time.gmtime())
    assert kinds["images"].newest <= today


def test_what_is_missing_and_what_nothing_refers_to_is_counted(two, root):
    first, _ = two
    write_bytes_atomic(join(first.out, "images/old_0123abcd/a.png"), b"12345")
    gone = next(item.key for item in list_objects(join(first.out, first.folder(1))))
    delete_objects(join(first.out, first.folder(1)), [gone])
    found = account(first.out, first.workspace)
    assert sum(each.missing for each in found.batches) == 1
    images = next(each for each in found.kinds if each.kind == "images")
    assert (images.unreferenced, images.unreferenced_size) == (1, 5)


def test_without_yes_nothing_goes_and_with_it_goes_what_was_said(two, root):
    first, _ = two
    before = keys_of(root)
    choice = Choice(batches=(batch_of(first),))
    said = run_prune(first, choice, confirmed=False)
    assert keys_of(root) == before
    assert not said.deleted

    done = run_prune(first, choice)
    gone = before - keys_of(root)
    assert done.deleted
    assert done.going == said.going
    assert done.objects == len(gone)
    assert {each.kind: each.objects for each in done.going} == {
        "batches": 3, "images": 4 + 1, "reconstructions": 1, "index": 2,
    }  # fmt: skip
    assert all(
        f"batches/{batch_of(first)}/" in key or key.startswith(("out/images/", "out/workspace/"))
        for key in gone
    )
    assert {f"out/{key}" for key in STAYS} <= keys_of(root)
    assert {key for key in before if key.startswith("photos/")} <= keys_of(root)
    check_law(first.out)
    assert run_prune(first, Choice(keep_last=1)).going == []


def test_what_is_younger_than_the_grace_stays(two, root):
    """A run beside has written images that no manifest names yet, and the index it found."""
    first, _ = two
    running = ["out/images/new_0123abcd/a.png", "out/videos/new_0123abcd/step-0/a.mp4"]
    for key in running:
        write_bytes_atomic(join(root, key), b"of a run under way")
    run_prune(first, Choice(batches=(batch_of(first),)), now=time.time())
    there = keys_of(root)
    assert set(running) <= there
    assert any(key.startswith("out/images/beard") for key in there)
    assert not exists(first.manifest)

    # a day later they are of nobody
    run_prune(first, Choice(keep_last=5))
    assert not set(running) & keys_of(root)
    assert not any(key.startswith("out/images/beard") for key in keys_of(root))


def test_images_of_an_edit_whose_rows_are_still_being_written_stay_however_old(tmp_path):
    made = make_batch(str(tmp_path), KEYS, [SMILE])
    parameters = {"out": made.out}
    recipe = Recipe("edit-images", "4", parameters, {"direction": "d", "latents": "l"})
    image = tmp_path / "out/images" / f"hat_{recipe.fingerprint[:8]}" / "a.png"
    drawn = tmp_path / "out/workspace/latents/l/reconstructions/a.png"
    for path in (image, drawn):
        write_bytes_atomic(str(path), b"of the first day of a long run")
        os.utime(path, (LATER - 5 * DAY, LATER - 5 * DAY))
    rows = join(recipe.folder(made.workspace, "edits"), "0.attempt-000.parquet")
    write_table(rows, pa.table({"image_key": ["a"]}), recipe.made("edits", {"latents": "l"}))

    os.utime(rows, (LATER - 3600, LATER - 3600))
    run_prune(made, Choice(keep_last=1))
    assert image.exists()
    assert drawn.exists()

    os.utime(rows, (LATER - 2 * DAY, LATER - 2 * DAY))
    run_prune(made, Choice(keep_last=1))
    assert not image.exists()
    assert not drawn.exists()
    assert exists(rows)


class Killed(Exception):
    pass


@pytest.mark.parametrize("root", ["local"], indirect=True)
def test_wherever_it_ends_no_manifest_names_what_is_gone_and_the_next_one_ends_the_work(
    two, root, monkeypatch
):
    first, second = two
    write_bytes_atomic(join(first.out, "batches", batch_of(first), "pages/0123456789abcdef/keys.js"), b"page")
    write_bytes_atomic(join(first.out, "batches", batch_of(first), "index.html"), b"page")
    order, allowed = list[str](), 0
    monkeypatch.setattr(pruning, "AT_ONCE", 1)
    real = delete_objects

    def once(prefix: str, keys: Sequence[str], **options: bool) -> int:
        if len(order) > allowed:
            raise Killed
        order.extend(f"{prefix}/{key}" for key in keys)
        return real(prefix, keys, **options)

    monkeypatch.setattr(pruning, "delete_objects", once)
    choice = Choice(batches=(batch_of(first),))
    for attempt in itertools.count():
        allowed = attempt
        # whoever comes again may not know which batches it was about
        try:
            run_prune(first, choice if exists(first.manifest) else Choice(keep_last=1))
            break
        except Killed:
            check_law(first.out)
            assert exists(second.manifest)

    assert len(order) == 5 + 5 + 1 + 2
    assert order[0] == first.manifest
    assert order[1].endswith("index.html")
    assert batch_of(first) not in list_folders(join(first.out, "batches"))
    assert not any("beard" in key for key in keys_of(first.out))
    assert {f"out/{key}" for key in STAYS} <= keys_of(root)


def test_a_batch_that_comes_meanwhile_ends_the_pruning(two, root, monkeypatch):
    first, _ = two
    real = references.References.held

    def and_a_batch(self, place):
        yield from real(self, place)
        make_batch(root, KEYS, [BEARD, HAT])

    monkeypatch.setattr(references.References, "held", and_a_batch)
    with pytest.raises(PlaceChangedError, match=r"a batch was written to .* prune again"):
        run_prune(first, Choice(batches=(batch_of(first),)))
    assert any("beard" in key for key in keys_of(first.out))
    monkeypatch.undo()


def test_manifests_of_another_place_with_the_same_workspace_count(tmp_path):
    mine = make_batch(str(tmp_path), KEYS, [SMILE])
    other = make_batch(str(tmp_path), KEYS, [HAT])
    moved = tmp_path / "elsewhere/batches" / batch_of(other)
    moved.parent.mkdir(parents=True)
    Path(other.manifest).parent.rename(moved)
    recipe = Recipe("edit-images", "4", {"out": str(tmp_path / "elsewhere")}, {"latents": "made-up"})
    rows = join(recipe.folder(mine.workspace, "edits"), "0.attempt-000.parquet")
    write_table(rows, pa.table({"image_key": ["a"]}), recipe.made("edits"))

    said = run_prune(mine, Choice(batches=(batch_of(mine),)), confirmed=False)
    assert said.sharing == {str(tmp_path / "elsewhere"): 1}
    assert "reconstructions" not in {each.kind for each in said.going}
    Path(rows).unlink()
    alone = run_prune(mine, Choice(batches=(batch_of(mine),)), confirmed=False)
    assert next(each.objects for each in alone.going if each.kind == "reconstructions") == 4


def test_what_a_run_left_that_ended_early_stays_until_the_whole_has_taken_its_place(tmp_path):
    out = f"{tmp_path}/out"
    whole = make_batch(str(tmp_path), KEYS, [SMILE], size=16)
    part = Part(batch="b" * 12, content="c" * 12, shards=1, of=2, why="it was cancelled")
    Path(part.folder(out)).parent.mkdir()
    Path(whole.manifest).parent.rename(part.folder(out))
    part.keep(out)
    make_batch(str(tmp_path), KEYS, [HAT], size=16)
    pictures = {key for key in keys_of(out) if key.startswith("images/smile")}
    assert len(pictures) == len(KEYS)

    choice = Choice(keep_last=1)
    prune(out, f"{out}/workspace", choice, grace_s=DAY, now=LATER, confirmed=True)
    assert pictures <= keys_of(out)
    part.model_copy(update={"superseded_by": "elsewhere"}).keep(out)
    prune(out, f"{out}/workspace", choice, grace_s=DAY, now=LATER, confirmed=True)
    assert not pictures & keys_of(out)


def test_photographs_that_lie_where_something_is_deleted_are_refused(tmp_path):
    made = make_batch(str(tmp_path), KEYS, [SMILE])
    for photos in ("out/images/smile_00000000", "out/workspace/mine", "."):
        table = pq.read_table(made.manifest)
        about = json.loads(table.schema.metadata[b"styleclip.provenance"])
        about["parameters"]["photos"] = str(tmp_path / photos)
        changed = table.replace_schema_metadata({b"styleclip.provenance": json.dumps(about)})
        pq.write_table(changed, made.manifest)
        before = keys_of(str(tmp_path))
        with pytest.raises(OverlapError, match=r"the photographs .* overlap with .*nothing is pruned"):
            run_prune(made, Choice(older_than="1d"))
        assert keys_of(str(tmp_path)) == before


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(), "say which batches go"),
        (Choice(older_than="9d", keep_last=1), "say which batches go"),
        (Choice(older_than="soon"), "'soon' is no age; write hours, days or weeks"),
        (Choice(batches=("nothing",)), "has no batch nothing; it has"),
    ],
)
def test_a_wrong_choice_is_refused(tmp_path, choice, message):
    made = make_batch(str(tmp_path), KEYS[:1], [SMILE])
    with pytest.raises(SettingsError, match=message):
        run_prune(made, choice)
    assert exists(made.manifest)


def test_a_manifest_that_cannot_be_read_ends_it_before_anything_goes(two, root):
    first, second = two
    write_bytes_atomic(second.manifest, b"damaged")
    before = keys_of(root)
    with pytest.raises(StyleCLIPError, match=r"manifest.parquet is no readable Parquet file"):
        run_prune(first, Choice(batches=(batch_of(first),)))
    assert keys_of(root) == before


def test_ages_are_hours_days_and_weeks():
    assert [seconds_of(age) for age in ("36h", "90d", "2w")] == [36 * 3600, 90 * DAY, 14 * DAY]


@given(st.data())
def test_what_goes_was_referred_to_by_none_and_what_stays_is_whole(tmp_path_factory, data):
    place = tmp_path_factory.mktemp("law")
    images = [f"images/edit_0000000{variant}/p{number}.png" for variant in range(3) for number in range(3)]
    batches = data.draw(st.lists(st.sets(st.sampled_from(images), min_size=1), min_size=1, max_size=4))
    young = data.draw(st.sets(st.sampled_from(images)))
    for key in images:
        write_bytes_atomic(str(place / "out" / key), b"image")
        moment = LATER - (0.5 if key in young else 3) * DAY
        os.utime(place / "out" / key, (moment, moment))

    for number, keys in enumerate(batches):
        recipe = Recipe("made-up", "1", {"number": number, "photos": str(place / "photos")}, {"index": "i"})
        manifest = str(place / "out/batches" / recipe.fingerprint[:16] / "manifest.parquet")
        rows = [
            dict.fromkeys(MANIFEST_SCHEMA.names)
            | {"image_key": key.split("/")[2], "status": OK, "output_key": key, "variant": key.split("/")[1]}
            for key in sorted(keys)
        ]
        write_table(
            manifest, pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA), recipe.made("edits-manifest")
        )
        moment = LATER - (10 - number) * DAY
        os.utime(manifest, (moment, moment))

    keep = data.draw(st.integers(1, 4))
    remaining = set().union(*batches[-keep:])
    out = str(place / "out")
    prune(out, join(out, "workspace"), Choice(keep_last=keep), grace_s=DAY, confirmed=True, now=LATER)
    assert {key for key in keys_of(out) if key.startswith("images/")} == remaining | young
    assert len(find_batches(out)[0]) == min(keep, len(batches))


def test_a_list_of_references_longer_than_memory_is_sorted_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(references, "_RUN", 7)
    monkeypatch.setattr("styleclip.tasks.storage.sorting._OPEN", 3)
    keys = [f"p{number:03d}.png" for number in range(60)]
    made = make_batch(str(tmp_path), keys, [SMILE, BEARD], copies=1, size=16)
    found = account(made.out, made.workspace)
    assert found.batches[0].missing == 0
    assert {each.kind: each.objects for each in found.kinds}["images"] == 120
    assert not any(each.unreferenced for each in found.kinds)
