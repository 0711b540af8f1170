"""Evaluations of manifests: scores checked against the images themselves, resumed, with what failed."""

import math
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from styleclip.flows.evaluate import evaluate_edits
from styleclip.tasks.artifacts import read_provenance
from styleclip.tasks.artifacts.outcomes import OK
from styleclip.tasks.evaluation.attributes import FACES, AttributePrompts, load_attributes
from styleclip.tasks.evaluation.manifest import derive_variants, find_inversions, index_edits, items, place_of
from styleclip.tasks.photographs.reading import StoredReader
from styleclip.tasks.reports.page.evaluations import find_evaluations
from styleclip.tasks.running.run import Run
from styleclip.tasks.settings import Comparison, Execution, Judges, Models, SettingsError
from styleclip.tasks.settings.edits import Edit
from styleclip.tasks.storage import MissingObjectError, StorageError
from styleclip_core import load_clip, load_identity
from styleclip_core.errors import ArtifactConflictError
from styleclip_core.images import decode_image, fit, psnr
from styleclip_core.models.identity import CompactIdentity, IdentityConfig, save_identity
from styleclip_core.prompts import embed_prompt
from tests.left import files_of
from tests.pipeline.test_flows import encoded, portrait, run
from tests.small_networks import write_clip

pytestmark = pytest.mark.usefixtures("prefect_server")
ATTRIBUTES = [
    AttributePrompts(name="grey", positive="face with grey hair", group="hair"),
    AttributePrompts(name="black", positive="face with black hair", group="hair"),
    AttributePrompts(name="hat", positive="face with a hat"),
    AttributePrompts(name="beard", positive="bearded face", negative="shaven face"),
]
EDITS = [
    Edit(name="grey", target="face with grey hair", alpha=(-1, 1, 3), beta=0.0),
    Edit(name="none", target="face with a hat", alpha=0.0, beta=0.0),
    Edit(
        name="two",
        target="face with a hat",
        alpha=1,
        beta=0.0,
        then=[{"target": "bearded face", "alpha": (1, 2)}],
    ),
]


@pytest.fixture(scope="module")
def judges(tmp_path_factory) -> Judges:
    """A second CLIP and an identity network, with random weights."""
    from clip.model import CLIP

    folder = tmp_path_factory.mktemp("judges")
    torch.manual_seed(7)
    write_clip(CLIP(12, 32, (1, 1, 1, 1), 8, None, 77, 49408, 64, 1, 1), folder / "clip.pt")
    network = CompactIdentity(IdentityConfig(16, (4, 6), 10, 5)).eval()
    save_identity(network, folder / "identity.safetensors")
    return Judges(clip=str(folder / "clip.pt"), identity=str(folder / "identity.safetensors"))


@pytest.fixture(scope="module")
def edited(prefect_server, network_files, tmp_path_factory):
    """Edits of three photographs and of one that is broken."""
    folder = tmp_path_factory.mktemp("edited")
    (folder / "photos").mkdir()
    for index in range(3):
        (folder / "photos" / f"p{index}.png").write_bytes(encoded(portrait(index)))
    (folder / "photos" / "broken.png").write_bytes(b"no image")
    return run(Models(**network_files), folder / "photos", folder / "out", EDITS)


def evaluated(edited, judges, **changes):
    settings = {"judges": judges, "execution": Execution(shard_size=2), **changes}
    return evaluate_edits(edited.report.manifest, ATTRIBUTES, **settings)


def table(uri: str) -> pd.DataFrame:
    return pq.read_table(uri).to_pandas()


@pytest.fixture(scope="module")
def result(edited, judges):
    return evaluated(edited, judges)


@pytest.fixture(scope="module")
def rows(result) -> pd.DataFrame:
    return table(result.evaluation.evaluation)


def pictures(edited, judges, row):
    """Return image and embedding before and after."""
    out = Path(place_of(edited.report.manifest))
    before = next(out.rglob(f"reconstructions/{row.image_key}~*.png")).read_bytes()
    images = [fit(decode_image(each), 16, 16)[None] for each in (before, (out / row.output_key).read_bytes())]
    clip = load_clip(judges.clip)
    return images, [clip.embed_whole(image)[0] for image in images]


def test_every_row_of_the_manifest_is_there_and_failures_keep_their_reason(edited, rows, result):
    manifest = table(edited.report.manifest)
    assert len(rows) == len(manifest) == 4 * 6
    assert set(rows.groupby("image_key").variant.nunique()) == {6}
    broken = rows[rows.image_key == "broken.png"]
    assert set(broken.status) == {"skipped"}
    assert set(broken.error_type) == {"ImageDecodeError"}
    assert broken.clip_after.isna().all()
    assert (rows[rows.image_key != "broken.png"].status == OK).all()
    assert (result.evaluation.rows, result.evaluation.failed) == (24, 6)


def test_scores_are_those_of_the_images(edited, judges, rows):
    clip, network = load_clip(judges.clip), load_identity(judges.identity)
    target, neutral = (embed_prompt(clip, each) for each in ("face with grey hair", "face"))
    row = rows[(rows.edit == "grey") & (rows.alpha == 3)].iloc[1]
    images, (before, after) = pictures(edited, judges, row)
    expected = {
        "clip_before": before @ target, "clip_after": after @ target,
        "directional": F.normalize(after - before, dim=0) @ F.normalize(target - neutral, dim=0),
        "identity": (network.embed(images[0]) * network.embed(images[1])).sum(),
        "psnr": psnr(images[1], images[0])[0], "l1": (images[1] - images[0]).abs().mean() / 2,
    }  # fmt: skip
    for name, value in expected.items():
        assert row[name] == pytest.approx(value.item(), abs=1e-4), name
    two = torch.stack([after @ target, after @ neutral])
    assert row.target_after == pytest.approx((two * clip.logit_scale).softmax(0)[0].item(), abs=1e-4)


def test_agreement_is_that_of_consecutive_strengths(edited, judges, rows):
    clip = load_clip(judges.clip)
    direction = F.normalize(embed_prompt(clip, "face with grey hair") - embed_prompt(clip, "face"), dim=0)
    mine = rows[(rows.edit == "grey") & (rows.image_key == "p1.png")].set_index("alpha")
    seen = {alpha: pictures(edited, judges, row)[1] for alpha, row in mine.iterrows()}
    way = [seen[-1.0][1], seen[1.0][0], seen[1.0][1], seen[3.0][1]]
    steps = [(F.normalize(b - a, dim=0) @ direction).item() for a, b in pairwise(way)]
    assert mine.loc[[-1.0, 1.0, 3.0]].agreement.tolist() == pytest.approx(steps, abs=1e-3)
    assert mine.loc[1.0].agreement == pytest.approx(mine.loc[1.0].directional, abs=1e-5)


def test_no_change_is_a_perfect_score_and_no_step(rows):
    still = rows[(rows.edit == "none") & (rows.status == OK)]
    assert still.identity.tolist() == pytest.approx([1] * 3, abs=1e-5)
    assert (still.psnr == math.inf).all()
    assert (still.l1 == 0).all()
    assert still.agreement.isna().all()
    assert still.others_move.max() < 1e-2  # a batch of other neighbours rounds differently


def test_attributes_move_in_deviations_of_the_unedited_images(edited, judges, rows):
    clip = load_clip(judges.clip)
    row = rows[(rows.edit == "grey") & (rows.alpha == 3)].iloc[1]
    assert row.target_attribute == "grey"
    ok = rows[(rows.edit == "grey") & (rows.alpha == 3) & (rows.status == OK)]
    seen = [pictures(edited, judges, each)[1] for each in ok.itertuples()]
    pairs = [embed_prompt(clip, each.positive) - embed_prompt(clip, each.negative) for each in ATTRIBUTES]
    before, after = (
        torch.stack([clip.logit_scale * torch.stack(pairs) @ each[side] for each in seen]) for side in (0, 1)
    )
    change = (after - before) / before.std(dim=0)
    for place, each in enumerate(ok.itertuples()):
        assert [one["attribute"] for one in each.attributes] == ["grey", "black", "hat", "beard"]
        assert [one["change"] for one in each.attributes] == pytest.approx(
            change[place].tolist(), rel=0.15, abs=0.15
        )
        assert each.attributes[0]["after"] == pytest.approx(after[place, 0].sigmoid().item(), abs=1e-4)
        assert each.target_move == pytest.approx(change[place, 0].item(), rel=5e-2, abs=5e-2)
        others = change[place, 2:]  # black hair goes with grey hair
        assert each.others_move == pytest.approx(others.abs().mean().item(), rel=5e-2, abs=5e-2)
        assert each.worst_move == pytest.approx(others[others.abs().argmax()].item(), rel=5e-2, abs=5e-2)


def test_the_summary_has_means_and_errors_of_every_edit_and_of_the_sweep(rows, result):
    summary = table(result.evaluation.summary)
    mine = rows[(rows.edit == "grey") & (rows.alpha == 1)]
    (line,) = summary[(summary.variant == mine.variant.iloc[0]) & (summary.metric == "clip_after")].to_dict(
        "records"
    )
    values = mine.clip_after.dropna()
    assert line["mean"] == pytest.approx(values.mean(), abs=1e-6)
    assert line["standard_error"] == pytest.approx(values.std() / math.sqrt(3), abs=1e-6)
    assert (line["n"], line["failed"], line["unit"]) == (3, 1, "cosine")
    (sweep,) = summary[summary.variant.isna() & (summary.metric == "agreement_positive")].to_dict("records")
    assert sweep["edit"] == "grey"
    assert math.isnan(sweep["alpha"])
    steps = rows[(rows.edit == "grey") & (rows.status == OK)].agreement
    assert sweep["mean"] == pytest.approx((steps > 0).mean())
    assert sweep["n"] == 3
    hat = summary[
        (summary.attribute == "hat") & (summary.metric == "attribute_change") & (summary.alpha == 3)
    ]
    assert hat.unit.tolist() == ["standard deviations"]


def test_a_second_evaluation_computes_nothing_and_another_lies_beside_it(edited, judges, result):
    out = Path(place_of(edited.report.manifest))
    before = files_of(out)
    again = evaluated(edited, judges)
    assert [step.computed for step in again.steps] == [0]
    assert files_of(out) == before
    other = evaluated(
        edited, judges.model_copy(update={"identity": None}), comparison=Comparison(before="photograph")
    )
    assert set(find_evaluations(edited.report.manifest)) == {
        result.evaluation.evaluation, other.evaluation.evaluation,
    }  # fmt: skip
    found = table(other.evaluation.evaluation)
    assert found.identity.isna().all()
    assert (found[found.edit == "none"].psnr.dropna() < 100).all()  # an inversion is not its photograph


def test_an_image_that_cannot_be_read_is_a_row_and_is_tried_again_alone(edited, judges, monkeypatch):
    def refuse(reader, key, real=StoredReader.read):
        if "/p0.png~" in key and "images/grey" in key:
            raise StorageError(f"cannot read {key}")
        return real(reader, key)

    judges = judges.model_copy(update={"identity": None})
    monkeypatch.setattr(StoredReader, "read", refuse)
    first = evaluated(edited, judges, comparison=Comparison(templates="none"))
    monkeypatch.undo()
    found = table(first.evaluation.evaluation)
    assert set(found[found.error_type == "StorageError"].edit) == {"grey"}
    assert first.evaluation.failed == 6 + 3
    assert (found[(found.image_key == "p0.png") & (found.edit == "two")].status == OK).all()


def test_what_is_no_manifest_is_refused(edited, judges, tmp_path):
    latents = next(Path(edited.latents).glob("*.parquet"))
    with pytest.raises(ArtifactConflictError, match="latents; give a manifest"):
        evaluate_edits(str(latents), ATTRIBUTES, judges, out=str(tmp_path))
    with pytest.raises(SettingsError, match="give out"):
        evaluate_edits(str(latents), ATTRIBUTES, judges)
    with pytest.raises(MissingObjectError, match="give the workspace"):
        evaluated(edited, judges, workspace=str(tmp_path))


def test_inversions_are_found_and_the_maker_is_named(edited, judges, result, tmp_path):
    index = index_edits.fn(Run(workspace=str(tmp_path)), edited.report.manifest, "", 2)
    own = Run(workspace=f"{place_of(edited.report.manifest)}/workspace")
    assert Path(find_inversions(own, index)) == Path(edited.latents) / "reconstructions"
    assert read_provenance(result.evaluation.summary).parameters["clip_made_the_edits"] is False


def test_failed_rows_of_old_manifests_get_the_variants_that_their_image_lacks():
    def row(image, alpha, status, folder, settings="{}"):
        key = f"images/{folder}/{image}" if folder else None
        shared = {"edit": "e", "method": "global", "neutral": "n", "target": "t", "beta": 0.1, "top_k": None}
        steps = [{"neutral": "n", "target": "t1"}, {"neutral": "n", "target": "t2"}] if folder else None
        return {
            **shared, "image_key": image, "alpha": alpha, "strength": None, "settings": settings,
            "steps": steps,
            "output_key": key, "status": status, "error_type": None, "error": None,
        }  # fmt: skip

    rows = [
        row("a", None, OK, "e_1"),
        row("a", None, OK, "e_2"),
        row("b", None, "failed", ""),
        row("b", None, OK, "e_1"),
    ]
    rows += [row("c", None, "failed", ""), row("c", None, "failed", ""), row("d", 3.0, "failed", "")]
    rows += [row("d", 3.0, "failed", "")]
    names = derive_variants(rows)
    found = items(row | {"variant": name} for row, name in zip(rows, names, strict=True))
    assert [each["variant"] for each in found["b"]] == ["e_1", "e_2"]
    assert [each["status"] for each in found["b"]] == [OK, "failed"]
    assert [each["variant"] for each in found["c"]] == ["e_1", "e_2"]
    assert found["c"][0]["prompts"] == [{"neutral": "n", "target": "t1"}, {"neutral": "n", "target": "t2"}]
    unnamed = {each["variant"] for each in found["d"]}  # of edits that no image has
    assert len(unnamed) == 2
    assert all(name.startswith("e_") for name in unnamed)


def test_shipped_lists_of_attributes_are_whole(tmp_path):
    from styleclip import data

    for uri in (FACES, str(data.ATTRIBUTES)):
        assert len(load_attributes(uri)) >= 30
    path = tmp_path / "a.yaml"
    path.write_text("- {name: a, positive: x}\n- {name: a, positive: y}\n")
    with pytest.raises(SettingsError, match="'a' is listed twice"):
        load_attributes(str(path))
    path.write_text("- {name: a, postive: x}\n")
    with pytest.raises(SettingsError, match="attribute 1"):
        load_attributes(str(path))
    path.write_text("[]")
    with pytest.raises(SettingsError, match="holds an empty list of attributes; list at least one"):
        load_attributes(str(path))
