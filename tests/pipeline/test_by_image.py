"""Edits that hang on what the data set says of an image: prompts and numbers from columns, and conditions."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from styleclip.flows.edit_images import edit_images
from styleclip.flows.report_batch import report_partial
from styleclip.tasks.editing import shards as editing
from styleclip.tasks.photographs.reading import object_of, read_stored
from styleclip.tasks.reports.page.batch import read_batch
from styleclip.tasks.reports.page.thumbnails import plan_page, thumbnail_chunk
from styleclip.tasks.running.run import run_here
from styleclip.tasks.settings import DataSet, Execution, Inversion, Models, Saving, SettingsError
from styleclip.tasks.settings.by_image import columns_of, resolve
from styleclip.tasks.settings.edits import Edit
from styleclip.tasks.storage import join, read_bytes
from styleclip_core.images import decode_image
from tests.data_sets import as_frame, write_folder
from tests.pipeline.test_faces import encoded, portrait

pytestmark = pytest.mark.usefixtures("prefect_server")
SMALL = {"instant": {"codes": 4}, "sampling": {"codes": 4, "statistics": 8}}
COLOURS = ("red", "grey", "", "blond")


@pytest.fixture
def photos(tmp_path) -> Path:
    """Eight photographs with a hair colour, which two lack, a strength, and whether there is a hat."""
    images = {f"p{number}.png": encoded(portrait(number, (20, 20))) for number in range(8)}
    write_folder(tmp_path / "in", images)
    rows = [
        {"file_name": key, "colour": COLOURS[number % 4], "much": 1.0 + number % 2, "hat": number >= 4}
        for number, key in enumerate(sorted(images))
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "in" / "metadata.csv", index=False)
    return tmp_path / "in"


def edit(
    photos: Path, networks: dict[str, str], edits: list[Edit], out: Path, **options: object
) -> pd.DataFrame:
    """Edit and return the manifest."""
    result = edit_images(
        Models(**networks), str(photos), str(out), edits, inversion=Inversion(steps=0),
        execution=Execution(shard_size=2, device="cpu"), **SMALL, **options,
    )  # fmt: skip
    frame = as_frame(read_bytes(result.report.manifest))
    frame.attrs["result"] = result
    return frame


BY_COLOUR = Edit(
    name="hair", neutral="hair", target="{colour} hair", alpha="{much}", relevance="instant",
    templates="none", beta=0.0,
)  # fmt: skip
SMILE = Edit(neutral="a face", target="a smile", relevance="instant", templates="none", where="hat", beta=0.0)


def test_every_image_gets_the_edit_that_its_columns_say(photos, network_files, tmp_path):
    rows = edit(photos, network_files, [BY_COLOUR, SMILE], tmp_path / "out")
    assert (rows.status == "ok").all()
    hair, smile = rows[rows.edit == "hair"], rows[rows.edit == "a-smile"]
    said = {row.image_key: (row.target, row.alpha) for row in hair.itertuples()}
    assert said == {
        "p0.png": ("red hair", 1.0), "p1.png": ("grey hair", 2.0), "p3.png": ("blond hair", 2.0),
        "p4.png": ("red hair", 1.0), "p5.png": ("grey hair", 2.0), "p7.png": ("blond hair", 2.0),
    }  # fmt: skip
    assert sorted(smile.image_key) == ["p4.png", "p5.png", "p6.png", "p7.png"]
    assert hair.variant.nunique() == 3

    # the very pictures of the edit that is written out
    plain = Edit(
        neutral="hair", target="grey hair", alpha=2.0, relevance="instant", templates="none", beta=0.0
    )
    written = edit(photos, network_files, [plain], tmp_path / "plain").set_index("image_key").output_key
    for row in hair[hair.target == "grey hair"].itertuples():
        mine = read_bytes(join(str(tmp_path / "out"), row.output_key))
        other = read_bytes(join(str(tmp_path / "plain"), written[row.image_key]))
        assert decode_image(mine).tobytes() == decode_image(other).tobytes()


def test_another_column_does_that_image_again_and_no_other(photos, network_files, tmp_path, monkeypatch):
    edit(photos, network_files, [BY_COLOUR], tmp_path / "out")
    table = pd.read_csv(photos / "metadata.csv", keep_default_na=False)
    table.loc[table.file_name == "p5.png", "colour"] = "red"
    table.loc[table.file_name == "p7.png", "colour"] = ""
    table.to_csv(photos / "metadata.csv", index=False)

    done: list[tuple[str, str]] = []
    real = editing._edit_batch

    def counted(plans, sources, batch):
        pairs = zip(plans, batch, strict=True)
        done.extend((planned.prepared.variant.target, row["image_key"]) for planned, row in pairs)
        return real(plans, sources, batch)

    monkeypatch.setattr(editing, "_edit_batch", counted)
    rows = edit(photos, network_files, [BY_COLOUR], tmp_path / "out").set_index("image_key")
    assert done == [("red hair", "p5.png")]  # at strength 2, which nobody had with red
    assert rows.target.to_dict() == {
        "p0.png": "red hair", "p1.png": "grey hair", "p3.png": "blond hair", "p4.png": "red hair",
        "p5.png": "red hair",
    }  # fmt: skip


def test_a_partial_report_and_a_subset_know_which_images_an_edit_is_for(photos, network_files, tmp_path):
    rows = edit(photos, network_files, [BY_COLOUR, SMILE], tmp_path / "out", dataset=DataSet(limit=5))
    assert sorted(zip(rows.edit, rows.image_key, strict=True)) == [
        ("a-smile", "p4.png"), ("hair", "p0.png"), ("hair", "p1.png"), ("hair", "p3.png"), ("hair", "p4.png"),
    ]  # fmt: skip
    report_partial(str(tmp_path / "out"))  # of what is noted; the whole is there, and is not written again
    assert len(list((tmp_path / "out" / "batches").iterdir())) == 1


def test_thumbnails_follow_an_image_whose_prompt_changes(photos, network_files, tmp_path):
    def pictures(manifest: str) -> dict[str, str]:
        """Return which picture the thumbnail of each image's edit was made of."""
        run = run_here(Models(**network_files), str(tmp_path / "out" / "workspace"), str(tmp_path / "out"))
        planned = plan_page.fn(run, manifest)
        for chunk in planned.chunks:
            thumbnail_chunk.fn(planned.source, chunk)
        (column,) = planned.source.edits
        rows = [row for chunk in planned.chunks for row in column.log(chunk.digest).latest()]
        return {row["image_key"]: row["source"] for row in rows if row["status"] == "ok"}

    first = edit(photos, network_files, [BY_COLOUR], tmp_path / "out").attrs["result"]
    before = pictures(first.report.manifest)
    table = pd.read_csv(photos / "metadata.csv", keep_default_na=False)
    table.loc[table.file_name == "p1.png", "much"] = 6.0
    table.to_csv(photos / "metadata.csv", index=False)
    second = edit(photos, network_files, [BY_COLOUR], tmp_path / "out").attrs["result"]
    after = pictures(second.report.manifest)
    assert before.keys() == after.keys()
    assert [key for key in before if before[key] != after[key]] == ["p1.png"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"target": "{color} hair"}, r"names 'color', which is no column.*colour.*hat.*much"),
        ({"target": "x", "alpha": "{colour}"}, r"p0\.png: alpha is 'red', which is no number"),
        ({"target": "x", "alpha": 3, "beta": "{much}"}, r"p1\.png.*with much = 2\.0"),
        ({"target": "x", "where": "hats"}, r"where 'hats' cannot be asked"),
    ],
)
def test_what_columns_cannot_say_ends_the_run_with_the_edit_and_the_image(
    given, said, photos, network_files, tmp_path
):
    wanted = Edit.model_validate({"relevance": "instant", "templates": "none"} | given)
    with pytest.raises(SettingsError, match=said):
        edit(photos, network_files, [wanted], tmp_path / "out")


def test_more_edits_than_allowed_are_refused(photos, network_files, tmp_path):
    with pytest.raises(SettingsError, match=r"make more than 2 edits"):
        edit(photos, network_files, [BY_COLOUR], tmp_path / "out", most_variants=2)


@given(st.text(min_size=1).filter(str.strip))
def test_what_a_column_holds_is_text_and_nothing_else(text):
    found = resolve(Edit(target="{a} hat {b}"), {"a": text, "b": "{a}{0.__class__}"})
    assert found is not None
    assert found.target == f"{text} hat " + "{a}{0.__class__}"


def test_columns_are_found_in_every_field_and_step():
    wanted = Edit.model_validate({
        "target": "{a}", "neutral": "x {b}", "alpha": "{c}", "include": ["{d}"],
        "then": [{"target": "{e} {a}"}],
    })  # fmt: skip
    assert columns_of(wanted) == ["b", "a", "c", "d", "e"]
    found = resolve(wanted, {"a": "hat", "b": "y", "c": 2, "d": "b4.* b8.*", "e": "grey"})
    assert found is not None
    assert (found.target, found.neutral, found.alpha, found.include) == ("hat", "x y", 2.0, ("b4.*", "b8.*"))
    assert found.then[0].target == "grey hat"
    assert json.dumps(found.model_dump(mode="json"))


BY_CAPTION = Edit(
    neutral="a face", target="{caption}", alpha=2.0, templates="none", beta=0.0, relevance="instant"
)  # fmt: skip


def test_a_prompt_for_every_image_is_computed_and_packed_by_the_shard(network_files, tmp_path, monkeypatch):
    images = {f"p{number}.png": encoded(portrait(number, (20, 20))) for number in range(8)}
    write_folder(tmp_path / "in", images)
    captions = [{"file_name": key, "caption": f"hat of {key}"} for key in images]
    pd.DataFrame(captions).to_csv(tmp_path / "in" / "metadata.csv", index=False)
    batches, real = list[int](), editing._edit_batch

    def counted(plans, sources, batch):
        batches.append(len(batch))
        return real(plans, sources, batch)

    monkeypatch.setattr(editing, "_edit_batch", counted)
    tars = edit(
        tmp_path / "in", network_files, [BY_CAPTION], tmp_path / "tars", saving=Saving(to="webdataset")
    )
    shards = len(list((tmp_path / "tars").rglob("*.tar")))
    assert sum(batches) == 8
    assert len(batches) == shards < 8
    assert dict(zip(tars.image_key, tars.target, strict=True)) == {key: f"hat of {key}" for key in images}

    # one column on the page, whose thumbnails are of each image's own edit
    batch = read_batch(tars.attrs["result"].report.manifest)
    assert [edit.target for edit in batch.edits] == ["hat of p0.png and 7 more, by image"]
    assert (batch.status == 0).all()
    made = list((tmp_path / "tars" / "workspace" / "thumbnails").glob("*/*.parquet"))
    assert len(made) == 3  # photographs, inversions, edits

    # as each image is edited by its own prompt alone
    for key in ("p0.png", "p5.png"):
        single = BY_CAPTION.model_copy(update={"target": f"hat of {key}"})
        alone = edit(
            tmp_path / "in", network_files, [single], tmp_path / "alone", dataset=DataSet(include=(key,))
        ).iloc[0]
        mine = tars.set_index("image_key").loc[key]
        pixels = [
            np.asarray(decode_image(read_stored(str(tmp_path / place), row.output_key)), np.int16)
            for place, row in (("tars", mine), ("alone", alone))
        ]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1
        for score in ("clip_before", "clip_after", "directional"):
            assert mine[score] == pytest.approx(alone[score], abs=1e-4)

    # a tar that is gone comes back as it was, with all the edits that lie in it
    (first, *_) = sorted((tmp_path / "tars").rglob("*.tar"))
    content = first.read_bytes()
    first.unlink()
    batches.clear()
    edit(tmp_path / "in", network_files, [BY_CAPTION], tmp_path / "tars", saving=Saving(to="webdataset"))
    assert first.read_bytes() == content
    assert len(batches) == 1


def test_every_strength_of_an_edit_by_columns_has_its_own_tars(photos, network_files, tmp_path):
    strengths = BY_COLOUR.model_copy(update={"alpha": (1.0, 2.0)})
    rows = edit(
        photos, network_files, [strengths], tmp_path / "out", saving=Saving(to="webdataset")
    ).set_index("image_key")
    tars = {tuple(sorted({object_of(key) for key in mine.output_key})) for _, mine in rows.groupby("alpha")}
    assert len(tars) == 2
    assert not set.intersection(*map(set, tars))
    for tar in (tmp_path / "out").rglob("*.tar"):
        with tarfile.open(tar) as opened:
            names = opened.getnames()
        assert len(names) == len(set(names))
