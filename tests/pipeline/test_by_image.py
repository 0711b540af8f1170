"""Edits that hang on what the data set says of an image: prompts and numbers from columns, and conditions."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from styleclip.flows.edit_images import edit_images
from styleclip.flows.report_batch import report_partial
from styleclip.tasks.editing import shards as editing
from styleclip.tasks.settings import DataSet, Execution, Inversion, Models, SettingsError
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

    def counted(planned, sources, batch):
        done.extend((planned.prepared.variant.target, row["image_key"]) for row in batch)
        return real(planned, sources, batch)

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
