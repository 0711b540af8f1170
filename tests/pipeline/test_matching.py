"""Matched relevance through the flows: codes that CLIP looks at, directions of each image's own, auto."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from styleclip import data
from styleclip.flows.choose_edits import choose_edits
from styleclip.flows.edit_images import edit_images
from styleclip.tasks.artifacts import read_provenance, read_table
from styleclip.tasks.directions.matching import plan
from styleclip.tasks.directions.style_directions import MATCHED_UNIT
from styleclip.tasks.running.run import run_here
from styleclip.tasks.settings import Choosing, Inversion, Models, Sampling
from styleclip.tasks.settings.edits import Edit, EditStep
from styleclip_core import load_clip, load_generator
from styleclip_core.editing import ChannelSelection
from styleclip_core.errors import NoEffectError
from styleclip_core.matching import derivative_direction, likelihood, matched_direction
from styleclip_core.prompts import embed_prompt, text_direction
from styleclip_core.sampling import sample_styles
from tests.left import files_of
from tests.pipeline.test_flows import manifest_of, run
from tests.pipeline.test_methods import models as models  # a fixture, as is the next
from tests.pipeline.test_methods import photos as photos

WANTED = Sampling(looked_at=100, statistics=40, codes=3)
EDIT = Edit(target="grey hair", alpha=0.5, beta=0.0, relevance="matched")


def by_hand(models):
    """Return the direction of the edit from the same seeds, without tasks."""
    generator, clip = load_generator(models.generator), load_clip(models.clip)
    ((_, _, codes),) = sample_styles(generator, seed=5, sample_ids=range(100), truncation_psi=0.7)
    text = text_direction(clip, neutral="face", target="grey hair")
    with torch.no_grad():
        seen = likelihood(clip.embed_images(generator.synthesize(codes)), text, clip.logit_scale)
    return matched_direction(codes, seen, ChannelSelection(beta=0.0))


@pytest.mark.usefixtures("prefect_server")
def test_matched_edits_need_no_table_and_move_each_image_in_its_own_way(models, photos, tmp_path):
    out = tmp_path / "out"
    result = run(models, photos, out, [EDIT], sampling=WANTED)
    assert {step.step for step in result.steps} == {"look-at-codes", "invert-images", "edit-images"}
    rows = manifest_of(result)
    assert set(rows.status) == {"ok"}
    settings = rows.settings[0]
    assert (settings["relevance"], settings["alpha_unit"]) == ("matched", MATCHED_UNIT)
    assert rows.output_key.str.contains("_b0_matched_").all()

    found = by_hand(models)
    assert set(rows.channels) == {found.channels}
    generator, clip = load_generator(models.generator), load_clip(models.clip)
    latents = [pq.read_table(path) for path in (out / "workspace").glob("latents/*/*.attempt-*.parquet")]
    table = pa.concat_tables([each.select(["image_key", "w_plus"]) for each in latents])
    w_plus = torch.tensor(np.stack(table["w_plus"].to_pylist()), dtype=torch.float32)
    before = generator.styles(w_plus.view(len(w_plus), generator.num_ws, -1))
    steps = found.step(before)
    assert not torch.allclose(steps[0], steps[1])
    with torch.no_grad():
        expected = clip.embed_images(generator.synthesize(before.add(0.5 * steps)))
    scores = dict(zip(rows.image_key, rows.clip_after, strict=True))
    target = embed_prompt(clip, "grey hair")
    mine = [scores[key] for key in table["image_key"].to_pylist()]
    assert mine == pytest.approx((expected @ target).tolist(), abs=1e-4)

    files = files_of(out)
    assert [step.computed for step in run(models, photos, out, [EDIT], sampling=WANTED).steps] == [0, 0, 0]
    assert files_of(out) == files


@pytest.mark.usefixtures("prefect_server")
def test_what_clip_saw_serves_all_prompts_and_is_named_after_what_decides_it(models, photos, tmp_path):
    other = EDIT.model_copy(update={"target": "a hat", "alpha": 1.0})
    result = run(models, photos, tmp_path / "out", [EDIT, other], sampling=WANTED)
    looked = next(step for step in result.steps if step.step == "look-at-codes")
    assert looked.rows == 100
    (part,) = (tmp_path / "out" / "workspace" / "seen").glob("*/part-*.parquet")
    assert pq.read_table(part).num_rows == 100

    here = run_here(models, str(tmp_path / "work"))
    base = plan(here, Sampling(looked_at=100)).fingerprint
    assert plan(here, Sampling(looked_at=100, codes=7, statistics=9)).fingerprint == base
    assert plan(here, Sampling(looked_at=100, seed=6)).fingerprint != base
    assert plan(here, Sampling(looked_at=100, truncation_psi=0.5)).fingerprint != base
    assert plan(here, Sampling(looked_at=101)).fingerprint != base


@pytest.mark.usefixtures("prefect_server")
def test_beyond_its_end_the_way_goes_on_by_derivatives(models, photos, tmp_path):
    """Strengths on both sides of the end have directions of their own; the first keeps its name."""
    edit = EDIT.model_copy(update={"alpha": (0.5, 2.0)})
    result = run(models, photos, tmp_path / "out", [edit], sampling=WANTED)
    rows = manifest_of(result)
    assert set(rows.status) == {"ok"}
    folder = tmp_path / "out" / "workspace" / "directions"
    stored = [read_table(str(path)) for path in folder.glob("*/direction.parquet")]
    further, short = sorted(stored, key=lambda table: "further" not in table.column_names)
    assert "further" not in short.column_names
    assert further["delta"][0] == short["delta"][0]

    generator, clip = load_generator(models.generator), load_clip(models.clip)
    ((_, _, codes),) = sample_styles(generator, seed=5, sample_ids=range(100), truncation_psi=0.7)
    text = text_direction(clip, neutral="face", target="grey hair")
    rest = derivative_direction(generator, clip.embed_whole, codes, text, ChannelSelection(beta=0.0))
    assert further["further"][0].as_py() == pytest.approx(rest.delta.tolist(), abs=1e-4)
    channels = rows.groupby("alpha").channels.first()
    assert channels[2.0] >= channels[0.5]


@pytest.mark.usefixtures("prefect_server")
def test_alpha_and_beta_of_a_matched_edit_are_chosen(tmp_path):
    """In the embedded world, whose CLIP knows the prompt, on sampled codes and on photographs alike."""
    models = Models(generator=str(data.GENERATOR), clip=str(data.CLIP), encoder=str(data.ENCODER))
    edit = Edit(target="face with glasses", alpha="auto", beta="auto", relevance="matched")
    given = {
        "sampling": Sampling(statistics=200, codes=4, truncation_psi=1.0, looked_at=100),
        "choosing": Choosing(images=3, thresholds=2, strengths=4),
    }  # fmt: skip
    result = choose_edits(models, [edit], str(tmp_path), **given)
    (choice,) = result.choices
    assert 0 < choice.alpha <= 2.5
    assert choice.weights == "relevance"
    made = read_provenance(choice.uri)
    assert made.parameters["alpha_unit"] == MATCHED_UNIT
    assert {"seen", "styles"} <= made.inputs.keys()
    assert read_table(choice.uri)["alpha"][0].as_py() == 1.0

    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted(data.PHOTOGRAPHS.glob("*.png"))[:3]:
        (photos / path.name).write_bytes(path.read_bytes())
    done = edit_images(
        models,
        str(photos),
        str(tmp_path / "out"),
        [edit],
        str(tmp_path),
        inversion=Inversion(steps=0),
        **given,
    )
    (own,) = done.choices
    rows = manifest_of(done)
    assert set(rows.status) == {"ok"}
    assert (rows.alpha.unique().tolist(), rows.beta.unique().tolist()) == ([own.alpha], [own.beta])

    # a dry run finds the choice, and with it all that was made of it
    said = edit_images(
        models, str(photos), str(tmp_path / "out"), [edit], str(tmp_path), inversion=Inversion(steps=0),
        dry_run=True, **given,
    ).forecast  # fmt: skip
    assert {each.step: (each.found, each.computed) for each in said.steps} == {
        "look-at-codes": (100, 0), "invert-images": (3, 0), "edit-images": (3, 0)
    }  # fmt: skip


@pytest.mark.usefixtures("prefect_server")
def test_a_target_that_hardly_any_code_shows_ends_the_run_with_its_name(
    models, photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "styleclip.tasks.directions.matching.likelihood", lambda embedded, *_: torch.zeros(len(embedded))
    )
    with pytest.raises(
        NoEffectError, match=r"edit 'grey-hair' .*sees the target in 0\.0 of 100 sampled codes"
    ):
        run(models, photos, tmp_path / "out", [EDIT], sampling=WANTED)


def test_shards_hold_every_code_once(models, tmp_path):
    planned = plan(run_here(models, str(tmp_path)), Sampling(looked_at=1001))
    assert [planned.ids(shard) for shard in range(planned.shards)] == [
        range(500), range(500, 1000), range(1000, 1001)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"alpha": 3.0}, r"alpha is a share of the way, 2\.5 at most, got 3; give alpha 1"),
        ({"alpha": (1.0, -2.6)}, r"2\.5 at most, got -2\.6"),
        ({"alpha": 1.0, "weights": "least-squares"}, "matched relevance has none"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given, error):
    with pytest.raises(ValueError, match=error):
        EditStep(target="grey hair", relevance="matched", **given)
