"""Zero-shot scores of a bucket; the embedded world knows what is true, so the answer is known."""

import csv
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from styleclip import data
from styleclip.data.world import photographs
from styleclip.flows.score_images import score_images
from styleclip.tasks.artifacts.outcomes import OK
from styleclip.tasks.evaluation.image_scores import accuracy
from styleclip.tasks.evaluation.labels import LabelPrompt, load_prompts, load_truth
from styleclip.tasks.settings import Execution, SettingsError
from styleclip_core import load_clip
from styleclip_core.images import decode_image, from_uint8
from styleclip_core.metrics import area_under_curve
from styleclip_core.prompts import embed_prompt
from tests.left import files_of

pytestmark = pytest.mark.usefixtures("prefect_server")
COLOURS = [
    LabelPrompt(name=each, prompt=f"face with {each}", group="colour")
    for each in ("grey hair", "blond hair", "black hair", "brown hair", "red hair")
]


def scored(images, out, prompts, **changes):
    return score_images(str(images), prompts, str(out), str(data.CLIP), **changes)


def test_the_embedded_clip_names_what_is_true_of_the_photographs(tmp_path):
    prompts = [*load_prompts(str(data.ATTRIBUTES))]
    result = scored(data.PHOTOGRAPHS, tmp_path, prompts, labels=str(data.LABELS))
    found = pq.read_table(result.scores.accuracy).to_pandas().set_index("label")
    assert (found.n == 96).all()
    assert found.accuracy.mean() > 0.95
    assert found.auc.dropna().min() > 0.97
    assert found.loc["glasses"].accuracy > 0.97
    scores = pq.read_table(result.scores.scores).to_pandas()
    assert len(scores) == 96
    assert (scores.status == OK).all()


@pytest.fixture
def bucket(tmp_path):
    """Four photographs and a broken one, with colours of hair as labels."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in (1, 4, 8, 12):
        shutil.copy(data.PHOTOGRAPHS / f"portrait-{index:03d}.png", folder)
    (folder / "broken.png").write_bytes((folder / "portrait-001.png").read_bytes()[:300])
    with (tmp_path / "labels.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["image_key", "colour", "glasses"])
        rows.writerow(["portrait-001.png", "Grey hair", ""])
        rows.writerow(["portrait-004.png", "grey hair", "0"])
        rows.writerow(["portrait-008.png", "", "yes"])
    return folder


def test_scores_are_cosines_and_softmax_and_a_broken_image_is_a_row(bucket, tmp_path):
    prompts = [*COLOURS, LabelPrompt(name="glasses", prompt="face with glasses", negative="face")]
    labels = str(tmp_path / "labels.csv")
    result = scored(bucket, tmp_path / "out", prompts, labels=labels, execution=Execution(shard_size=2))
    rows = pq.read_table(result.scores.scores).to_pandas().set_index("image_key")
    assert (result.scores.rows, result.scores.failed) == (5, 1)
    assert rows.loc["broken.png"].error_type == "ImageDecodeError"
    clip = load_clip(data.CLIP)
    image = decode_image((bucket / "portrait-004.png").read_bytes())
    seen = clip.embed_images(from_uint8(np.asarray(image)[None]))[0]
    texts = torch.stack([embed_prompt(clip, each.prompt) for each in prompts])
    expected = (clip.logit_scale * (seen @ texts[:5].T)).softmax(0)
    row = rows.loc["portrait-004.png"]
    assert [each["label"] for each in row.scores] == [each.label for each in prompts]
    assert [each["cosine"] for each in row.scores] == pytest.approx((texts @ seen).tolist(), abs=1e-5)
    assert [each["probability"] for each in row.scores[:5]] == pytest.approx(expected.tolist(), abs=1e-4)
    two = torch.stack([seen @ texts[5], seen @ embed_prompt(clip, "face")])
    both = (clip.logit_scale * two).softmax(0)[0].item()
    assert row.scores[5]["probability"] == pytest.approx(both, abs=1e-4)
    assert (row.label, row.probability) == ("grey hair", pytest.approx(expected.max().item(), abs=1e-4))
    lines = pq.read_table(result.scores.accuracy).to_pylist()
    colours = next(each for each in lines if each["label"] is None)
    assert (colours["group"], colours["n"], colours["accuracy"]) == ("colour", 2, 1.0)
    assert {each["label"]: each["n"] for each in lines}["glasses"] == 2


def test_a_second_run_scores_nothing_and_a_new_image_its_own_shard(bucket, tmp_path):
    settings = {"execution": Execution(shard_size=1)}
    first = scored(bucket, tmp_path / "out", COLOURS, **settings)
    before = files_of(tmp_path / "out")
    again = scored(bucket, tmp_path / "out", COLOURS, **settings)
    assert again.scores == first.scores
    assert again.steps[0].computed == 1  # the shard of the broken image is tried again
    assert files_of(tmp_path / "out") == before
    shutil.copy(data.PHOTOGRAPHS / "portrait-020.png", bucket)
    more = scored(bucket, tmp_path / "out", COLOURS, **settings)
    assert more.scores.rows == 6
    assert more.steps[0].computed == 2
    assert more.scores.folder != first.scores.folder


def test_accuracy_by_hand():
    prompts = [
        LabelPrompt(prompt="cat"), LabelPrompt(prompt="dog"), LabelPrompt(prompt="day", negative="night")
    ]  # fmt: skip

    def row(key, cat, day):
        top = [{"group": "label", "label": "cat" if cat > 0.5 else "dog", "probability": max(cat, 1 - cat)}]
        values = zip(("cat", "dog", "day"), (cat, 1 - cat, day), strict=True)
        scores = [{"label": name, "cosine": 0.0, "probability": value} for name, value in values]
        return {"image_key": key, "status": OK, "scores": scores, "top": top}

    rows = [row("a", 0.9, 0.8), row("b", 0.6, 0.4), row("c", 0.2, 0.7), row("d", 0.5, 0.5)]
    truth = {
        "a": {"cat": True, "dog": False, "day": True},
        "b": {"cat": False, "dog": True, "day": True},
        "c": {"cat": False, "dog": True, "day": False},
    }
    found = {(each["label"], each["group"]): each for each in accuracy(prompts, rows, truth)}
    assert {key: each["accuracy"] for key, each in found.items()} == {
        ("cat", "label"): pytest.approx(2 / 3), ("dog", "label"): pytest.approx(2 / 3),
        ("day", ""): pytest.approx(1 / 3), (None, "label"): pytest.approx(2 / 3),
    }  # fmt: skip
    assert found["cat", "label"]["auc"] == 1.0
    assert found["day", ""]["auc"] == 0.5  # of day and night, 0.8 > 0.7 and 0.4 < 0.7
    assert found["day", ""]["standard_error"] == pytest.approx((2 / 9 / 3) ** 0.5)


def test_area_under_curve_counts_ties_half():
    holds = torch.tensor([True, False, True, False])
    assert area_under_curve(torch.tensor([5.0, 1.0, 3.0, 3.0]), holds) == pytest.approx(3.5 / 4)
    assert area_under_curve(torch.tensor([-5.0, -1.0, -3.0, -3.0]), holds) == pytest.approx(0.5 / 4)
    assert area_under_curve(torch.ones(4), torch.ones(4, dtype=torch.bool)) != 1  # NaN: nothing to tell apart


def test_labels_of_other_forms_are_refused(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    with pytest.raises(SettingsError, match=r"named as a prompt or a group, e.g. 'black hair'"):
        load_truth(write("a.csv", "image_key,cats\nx,1\n"), COLOURS[1:])
    with pytest.raises(SettingsError, match="'grey hair' is 'maybe'; give 1, 0 or nothing"):
        load_truth(write("b.csv", "image_key,grey hair\nx,maybe\n"), COLOURS)
    with pytest.raises(SettingsError, match=r"\.parquet or \.csv"):
        load_truth(write("c.txt", ""), COLOURS)
    pq.write_table(pa.table({"image_key": ["x", "y"], "red hair": [True, None]}), tmp_path / "d.parquet")
    assert load_truth(str(tmp_path / "d.parquet"), COLOURS) == {"x": {"red hair": True}, "y": {}}
    with pytest.raises(SettingsError, match="prompt 2: prompt"):
        load_prompts(write("e.yaml", "- a cat\n- {name: dog}\n"))
    plain = load_prompts(write("f.yaml", "- a cat\n- {name: dog, prompt: a dog, group: pet}\n"))
    assert [(each.label, each.group, each.negative) for each in plain] == [
        ("a cat", "label", ""),
        ("dog", "pet", ""),
    ]


def test_labels_of_no_image_are_refused(bucket, tmp_path):
    (tmp_path / "other.csv").write_text("image_key,grey hair\nelsewhere.png,1\n")
    with pytest.raises(SettingsError, match="names none of the images"):
        scored(bucket, tmp_path / "out", COLOURS, labels=str(tmp_path / "other.csv"))


def test_shipped_labels_are_those_of_the_factors(tmp_path):
    factors = photographs.read_factors(data.PHOTOGRAPHS)
    photographs.write_labels(tmp_path, torch.stack([factors[key] for key in sorted(factors)]))
    assert (tmp_path / "labels.csv").read_text() == data.LABELS.read_text()
    names = {each.label for each in load_prompts(str(data.ATTRIBUTES))}
    assert names <= set(pd.read_csv(data.LABELS).columns)
