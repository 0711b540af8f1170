"""Mappers and optimizations through the flows: trained, resumed, mixed with style directions in one run."""

from pathlib import Path

import av
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from prefect.exceptions import ParameterTypeError

from styleclip.flows.invert_images import invert_images
from styleclip.flows.train_mapper import train_mapper
from styleclip.tasks.artifacts import read_provenance
from styleclip.tasks.editing import optimization as optimization_task
from styleclip.tasks.running.run import run_here
from styleclip.tasks.running.texts import target_embedding
from styleclip.tasks.settings import (
    Execution,
    Instant,
    Inversion,
    MapperTraining,
    Models,
    Optimization,
    SettingsError,
)
from styleclip.tasks.settings.edits import Edit, load_edits
from styleclip.tasks.storage import read_bytes
from styleclip_core import load_clip, load_generator, load_mapper
from styleclip_core.editing import EditedLatents
from styleclip_core.errors import LayoutMismatchError, PromptError
from styleclip_core.images import decode_image
from styleclip_core.mapper_training import MapperTraining as Training
from styleclip_core.mapper_training import MapperTrainingSettings, apply_mapper, new_mapper
from styleclip_core.metrics import clip_similarity
from styleclip_core.models.identity import IdentityNetwork, save_identity
from styleclip_core.models.mapper import save_mapper
from styleclip_core.style_space import StyleCode
from tests.left import files_of
from tests.pipeline.test_flows import encoded, manifest_of, portrait, run

pytestmark = pytest.mark.usefixtures("prefect_server")
TRAINING = MapperTraining(
    levels=("coarse",),
    steps=6,
    validate_every=2,
    identity_weight=0,
    learning_rate=0.1,
    codes=12,
    validation=4,
)
OPTIMIZED = Edit(
    name="optimized", target="grey hair", method="optimization", optimization=Optimization(steps=5, chunk=2)
)


@pytest.fixture
def models(network_files) -> Models:
    return Models(**network_files)


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        (folder / f"p{index}.png").write_bytes(encoded(portrait(index)))
    return folder


@pytest.fixture
def mapper_file(models, tmp_path) -> str:
    settings = MapperTrainingSettings(levels=("coarse",), identity_weight=0)
    save_mapper(new_mapper(load_generator(models.generator), settings), tmp_path / "mapper.safetensors")
    return str(tmp_path / "mapper.safetensors")


def test_one_run_mixes_three_methods_and_a_second_computes_nothing(models, photos, tmp_path, mapper_file):
    edits = [
        Edit(name="direction", target="grey hair", alpha=2, beta=0.0),
        Edit(name="mapped", target="grey hair", method="mapper", mapper=mapper_file, strength=(0.1, 0.3)),
        OPTIMIZED,
    ]
    out = tmp_path / "out"
    result = run(models, photos, out, edits)
    rows = manifest_of(result)
    assert len(rows) == 3 * 4
    assert set(rows.status) == {"ok"}
    methods = {name: set(part.method) for name, part in rows.groupby("edit")}
    assert methods == {"direction": {"global"}, "mapped": {"mapper"}, "optimized": {"optimization"}}
    settings = {row.edit: row.settings for row in rows.itertuples()}
    assert settings["direction"]["alpha_unit"].startswith("standard deviations")
    assert settings["mapped"]["strength_unit"].startswith("times the mapper's output")
    assert settings["optimized"]["optimization"]["l2_weight"] == 0.008
    assert sorted(rows[rows.edit == "mapped"].strength.unique()) == [0.1, 0.3]
    assert rows[rows.method != "global"].alpha.isna().all()
    mapped = rows[rows.edit == "mapped"].iloc[0]  # the coarse rows of w_plus drive the first layers
    assert mapped.layers[0] == "b4.conv1"
    assert 0 < mapped.channels < load_generator(models.generator).layout.num_channels
    assert "mapper x 0.3" in read_bytes(result.report.page).decode()
    before = files_of(out)
    again = run(models, photos, out, edits)
    assert [step.computed for step in again.steps] == [0] * len(again.steps)
    assert files_of(out) == before


def test_optimized_latents_and_trajectories_are_stored_and_are_those_of_the_scores(models, photos, tmp_path):
    out = tmp_path / "out"
    result = run(models, photos, out, [OPTIMIZED])
    assert {step.step for step in result.steps} == {"invert-images", "edit-images"}  # no table is built
    rows = manifest_of(result)
    generator, clip = load_generator(models.generator), load_clip(models.clip)
    text = clip.embed_text(["grey hair"])[0]
    for row in rows.itertuples():
        (step,) = row.steps
        place = out / "workspace" / step["latents"]
        latents = pq.read_table(place).to_pandas().set_index("image_key")
        w_plus = torch.from_numpy(np.stack(latents.loc[[row.image_key]].w_plus)).view(1, generator.num_ws, -1)
        image = generator.synthesize(generator.styles(w_plus))
        assert row.clip_after == pytest.approx(
            clip_similarity(clip.embed_images(image), text).item(), abs=1e-5
        )
        steps = pd.read_parquet(str(place).replace(".latents-", ".trajectory-"))
        mine = steps[steps.image_key == row.image_key]
        assert mine.step.tolist() == [0, 1, 2, 3, 4]
        assert mine["clip"].iloc[0] == pytest.approx(1 - row.clip_before, abs=1e-5)
        assert mine["clip"].iloc[-1] == pytest.approx(1 - row.clip_after, abs=1e-5)


def test_instant_relevance_needs_no_table(models, photos, tmp_path):
    edit = Edit(target="grey hair", alpha=2, top_k=5, relevance="instant")
    result = run(models, photos, tmp_path / "out", [edit], instant=Instant(codes=4, probes=4))
    assert {step.step for step in result.steps} == {"sample-styles", "invert-images", "edit-images"}
    rows = manifest_of(result)
    assert set(rows.status) == {"ok"}
    assert set(rows.channels) == {5}
    assert rows.settings[0]["relevance"] == "instant"
    both = [edit, Edit(target="grey hair", alpha=2, top_k=5)]
    rows = manifest_of(run(models, photos, tmp_path / "out", both, instant=Instant(codes=4, probes=4)))
    assert rows.output_key.str.contains("_instant_").sum() == 3
    assert len(rows) == 6


def test_a_sequence_starts_each_step_at_the_result_of_the_one_before(models, photos, tmp_path, mapper_file):
    grey = {"target": "grey hair", "alpha": 2.0, "beta": 0.0}
    mapped = {"target": "hat", "method": "mapper", "mapper": mapper_file, "strength": (0.1, 0.3)}
    gentle = {"target": "smile", "method": "optimization", "optimization": {"preset": "gentle", "steps": 3}}
    edits = [
        Edit(**grey, name="alone"),
        Edit(**grey, name="all", then=[mapped, gentle]),
        Edit(**mapped, name="mapped"),
        Edit(**grey, name="both", then=[mapped]),
        Edit(**mapped, name="other-order", then=[grey]),
    ]
    out = tmp_path / "out"
    rows = manifest_of(run(models, photos, out, edits)).set_index(["image_key", "edit"]).sort_index()
    assert set(rows.status) == {"ok"}
    whole = rows.loc["p0.png", "all"]
    assert list(whole.method) == ["global+mapper+optimization"] * 2  # at both strengths of the mapper
    assert whole.target.iloc[0] == "grey hair; hat; smile"
    first, second, third = whole.steps.iloc[0]
    alone = rows.loc[("p0.png", "alone")]
    for name in ("clip_before", "clip_after", "directional", "channels", "alpha", "beta"):
        assert first[name] == pytest.approx(alone[name], abs=1e-6)
    assert second["strength"] == 0.1
    assert third["clip_before"] != pytest.approx(third["clip_after"], abs=1e-6)
    generator, clip = load_generator(models.generator), load_clip(models.clip)
    flat = pq.read_table(out / "workspace" / third["latents"]).to_pandas().set_index("image_key")
    codes = StyleCode.from_flat(generator.layout, torch.from_numpy(np.stack(flat.loc[["p0.png"]].s)))
    seen = clip.embed_images(generator.synthesize(codes))
    expected = [clip_similarity(seen, clip.embed_text([t])[0]).item() for t in ("hat", "smile")]
    assert third["clip_after"] == pytest.approx(expected[1], abs=1e-5)
    assert whole.clip_after.iloc[0] == pytest.approx(
        np.mean([clip_similarity(seen, target_embedding(run_here(models), *text)).item() for text in (
            ("grey hair", "styleclip-79"), ("hat", "none"), ("smile", "none"))]), abs=1e-5,
    )  # fmt: skip
    # a move in W+ and one in style space commute, each of them alone leads elsewhere
    pictures = {
        name: np.stack([
            np.asarray(decode_image(read_bytes(str(out / key)))).astype(float)
            for key in rows.loc[("p0.png", name)].output_key
        ])
        for name in ("both", "other-order", "mapped")
    }  # fmt: skip
    assert np.abs(pictures["both"] - pictures["other-order"]).max() <= 1
    assert np.abs(pictures["both"] - pictures["mapped"]).max() > 1


def test_an_optimization_leaves_a_video_of_its_way(models, photos, tmp_path):
    edit = OPTIMIZED.model_copy(update={"optimization": Optimization(steps=5, chunk=2, frames=5)})
    out = tmp_path / "out"
    row = manifest_of(run(models, photos, out, [edit])).iloc[0]
    with av.open(str(out / row.steps[0]["video"])) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 5
    picture = np.asarray(decode_image(read_bytes(str(out / row.output_key)))).astype(float)
    assert np.abs(frames[-1] - picture).mean() < np.abs(frames[0] - picture).mean()
    assert row.settings["others"] is None


def test_how_many_are_drawn_at_once_fits_the_images_of_an_edit_and_no_shard(models, photos, tmp_path):
    for index in range(3, 5):
        (photos / f"p{index}.png").write_bytes(encoded(portrait(index)))
    fitted, eight = Optimization(steps=3), Optimization(steps=3, chunk=8)
    edits = [
        Edit(name="every", target="grey hair", method="optimization", optimization=fitted),
        Edit(name="few", target="grey hair", method="optimization", optimization=fitted, where="key < 'p3'"),
    ]
    said = [edits[0].model_copy(update={"optimization": eight}),
            edits[1].model_copy(update={"optimization": Optimization(steps=3, chunk=1)})]  # fmt: skip

    rows = manifest_of(run(models, photos, tmp_path / "out", edits))
    chunks = {
        name: {each["optimization"]["chunk"] for each in mine.settings} for name, mine in rows.groupby("edit")
    }
    assert chunks == {"every": {8}, "few": {1}}

    # the same results under the same names, however the images are divided and whoever says the size
    again = manifest_of(run(models, photos, tmp_path / "out", said, execution=Execution(shard_size=1)))
    assert sorted(again.output_key) == sorted(rows.output_key)
    apart = manifest_of(run(models, photos, tmp_path / "apart", said, execution=Execution(shard_size=1)))
    contents = [
        {key.partition("/")[2].partition("/")[2] + name: read_bytes(str(tmp_path / out / key))
         for key, name in zip(each.output_key, each.edit, strict=True)}
        for out, each in (("out", rows), ("apart", apart))
    ]  # fmt: skip
    assert contents[0] == contents[1]


def test_a_photograph_whose_optimization_diverges_is_a_row(models, photos, tmp_path, monkeypatch):
    real = optimization_task.optimize

    def diverge_first(generator, embed, w_source, text, settings, **others):
        calls = []

        def breaks(image):
            calls.append(1)
            harm = torch.ones(len(image), 1)
            harm[0] = torch.nan if len(calls) == 1 else 1
            return embed(image) * harm

        return real(generator, breaks, w_source, text, settings, **others)

    monkeypatch.setattr(optimization_task, "optimize", diverge_first)
    edit = OPTIMIZED.model_copy(update={"optimization": Optimization(steps=3, chunk=3)})
    settings = {"execution": Execution(shard_size=10)}
    rows = manifest_of(run(models, photos, tmp_path / "out", [edit], **settings)).set_index("image_key")
    assert rows.status.value_counts().to_dict() == {"ok": 2, "failed": 1}
    failed = rows[rows.status == "failed"].iloc[0]
    assert failed.error_type == "RunawayError"
    assert pd.isna(failed.output_key)
    monkeypatch.setattr(optimization_task, "optimize", real)
    again = manifest_of(run(models, photos, tmp_path / "out", [edit], **settings))
    assert set(again.status) == {"ok"}


def test_identity_is_scored_where_there_is_a_network(models, photos, tmp_path):
    torch.manual_seed(0)
    save_identity(IdentityNetwork().eval(), tmp_path / "identity.safetensors")
    with_identity = models.model_copy(update={"identity": str(tmp_path / "identity.safetensors")})
    weighted = Optimization(steps=2, chunk=3, identity_weight=0.005)
    edits = [
        Edit(name="none", target="grey hair", alpha=0.0, beta=0.0),
        OPTIMIZED.model_copy(update={"optimization": weighted}),
    ]
    (photos / "p2.png").unlink()
    rows = manifest_of(run(with_identity, photos, tmp_path / "out", edits))
    assert rows[rows.edit == "none"].identity.to_numpy() == pytest.approx(1, abs=1e-4)
    assert (rows.identity <= 1 + 1e-4).all()
    assert manifest_of(run(models, photos, tmp_path / "out", edits[:1])).identity.isna().all()
    with pytest.raises(
        SettingsError, match=r"towards 'grey hair' weighs identity with 0\.005, but there is no identity"
    ):
        run(models, photos, tmp_path / "other", edits[1:])


def test_training_writes_mapper_and_curve_once(models, tmp_path):
    (ref,) = train_mapper(models, ["grey hair"], str(tmp_path), TRAINING).mappers
    mapper = load_mapper(ref.best)
    assert mapper.config.levels == ("course",)
    curve = pd.read_parquet(ref.curve)
    assert curve[~curve.validation].step.tolist() == [1, 2, 3, 4, 5, 6]
    assert curve[curve.validation].step.tolist() == [2, 4, 6]
    assert ref.loss == pytest.approx(curve[curve.validation].loss.min())
    made = read_provenance(ref.curve)
    assert made.parameters["target"] == "grey hair"
    assert made.generator == load_generator(models.generator).fingerprint
    again = train_mapper(models, ["grey hair"], str(tmp_path), TRAINING).mappers[0]
    assert again.reused
    assert not ref.reused


def test_a_training_that_broke_off_goes_on_to_the_same_weights(models, tmp_path, monkeypatch):
    (undisturbed,) = train_mapper(models, ["hat"], str(tmp_path / "one"), TRAINING).mappers
    real, begun = Training.run, []

    def break_off(self):
        for state in real(self):
            begun.append(state.step)
            if state.step == 5 and len(begun) == 5:
                raise RuntimeError("injected fault")
            yield state

    monkeypatch.setattr(Training, "run", break_off)
    with pytest.raises(RuntimeError, match="injected fault"):
        train_mapper(models, ["hat"], str(tmp_path / "two"), TRAINING)
    (resumed,) = train_mapper(models, ["hat"], str(tmp_path / "two"), TRAINING).mappers
    assert begun == [1, 2, 3, 4, 5, 5, 6]  # stored at each validation, the last at step 4
    for name in ("best", "last", "curve"):
        assert read_bytes(getattr(resumed, name)) == read_bytes(getattr(undisturbed, name))


def test_a_mapper_learns_from_stored_latents(models, photos, tmp_path):
    inverted = invert_images(models, str(photos), str(tmp_path / "w"), Inversion(steps=1))
    settings = TRAINING.model_copy(update={"latents": inverted.latents, "validation": 1, "steps": 2})
    (ref,) = train_mapper(models, ["hat"], str(tmp_path), settings).mappers
    assert ref.steps == 2
    with pytest.raises(SettingsError, match="there are 3 codes, 3 of them for validation"):
        train_mapper(models, ["hat"], str(tmp_path), settings.model_copy(update={"validation": 3}))
    with pytest.raises(SettingsError, match="no latents under"):
        train_mapper(models, ["hat"], str(tmp_path), settings.model_copy(update={"latents": str(photos)}))


def test_what_cannot_work_is_refused_before_any_work(models, photos, tmp_path):
    with pytest.raises(SettingsError, match="no identity network; give --identity"):
        train_mapper(models, ["hat"], str(tmp_path), TRAINING.model_copy(update={"identity_weight": 0.1}))
    with pytest.raises(ParameterTypeError, match="targets: List should have at least 1 item"):
        train_mapper(models, [], str(tmp_path), TRAINING)
    with pytest.raises(PromptError, match="cannot tell 'hat' from 'hat'"):
        run(models, photos, tmp_path / "out", [Edit(target="hat", neutral="hat", method="optimization")])
    other = load_generator(models.generator)
    settings = MapperTrainingSettings(kind="style", identity_weight=0)
    mapper = new_mapper(other, settings)
    average = EditedLatents(other.mapping.w_avg.expand(1, other.num_ws, -1))
    unmoved = apply_mapper(mapper, other, average, 0.0).codes(other)
    assert unmoved.flat().equal(average.codes(other).flat())
    widths = tuple((index, width + 1) for index, width in mapper.config.widths)
    wrong = type(mapper)(type(mapper.config)("style", widths=widths))
    save_mapper(wrong, tmp_path / "wrong.safetensors")
    edit = Edit(target="hat", method="mapper", mapper=str(tmp_path / "wrong.safetensors"))
    with pytest.raises(LayoutMismatchError, match="give the generator it was trained with"):
        run(models, photos, tmp_path / "out", [edit])
    assert not (tmp_path / "out" / "images").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- {target: hat, method: mapper}", "method mapper needs the URI of a mapper"),
        ("- {target: hat, mapper: m.pt}", "method global has no mapper; leave it out"),
        ("- {target: hat, method: optimization, alpha: 2}", "method optimization has no alpha; leave it out"),
        ("- {target: hat, method: mapper, mapper: m.pt, beta: 0.1}", "method mapper has no beta"),
        ("- {target: hat, strength: 0.2}", "method global has no strength"),
        ("- {target: hat, method: optimization, optimization: {steps: 0}}", "greater than or equal to 1"),
    ],
)
def test_settings_of_another_method_are_refused(tmp_path, content, message):
    (tmp_path / "edits.yaml").write_text(content)
    with pytest.raises(SettingsError, match=message):
        load_edits(str(tmp_path / "edits.yaml"))


def test_presets_and_overrides():
    gentle = Optimization(preset="gentle", steps=7).settings()
    assert (gentle.steps, gentle.space) == (7, "s")
    published = Optimization().settings()
    assert (published.steps, published.learning_rate, published.l2_weight) == (300, 0.1, 0.008)
    trained = MapperTraining().settings()
    assert (trained.learning_rate, trained.strength, trained.l2_weight) == (0.5, 0.1, 0.8)
    assert Edit(target="x", method="optimization").variants()[0].label == "x_o300"
    small = MapperTraining(preset="small", batch_size=3).settings()
    assert (small.kind, small.batch_size, small.identity_weight) == ("style", 3, 0)
    assert small.steps < 1000


def test_a_preset_and_its_values_written_out_are_one_training():
    given = MapperTraining(steps=9, learning_rate=0.3)
    assert given.parameters() == {
        "kind": "levels", "levels": ["coarse", "medium", "fine"], "steps": 9, "batch_size": 2,
        "learning_rate": 0.3, "optimizer": "ranger", "reference_compat": True, "decay": 0.0,
        "clip_weight": 1.0, "identity_weight": 0.1, "l2_weight": 0.8,
        "validate_every": 2000, "patience": None, "seed": 0, "precision": "float32", "templates": "none",
        "latents": "", "codes": 5000, "truncation_psi": 0.7, "validation": 100,
    }  # fmt: skip
    small = MapperTraining(preset="small", seed=4)
    spelled = small.parameters()
    assert MapperTraining.model_validate(spelled).parameters() == spelled
    assert MapperTraining.model_validate(small.model_dump(mode="json")).settings() == small.settings()
