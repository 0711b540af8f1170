"""Edits that keep the person, through the flows: CLIP looks once for all prompts, and what stays stays."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from styleclip import data
from styleclip.flows.train_mapper import train_mapper
from styleclip.tasks.directions import relevant
from styleclip.tasks.editing import mappers
from styleclip.tasks.settings import Execution, MapperTraining, Optimization, Sampling, SettingsError
from styleclip.tasks.settings.edits import Edit
from styleclip_core import load_generator, load_mapper
from styleclip_core.errors import StyleCLIPError
from styleclip_core.mapper_training import MapperTraining as Training
from tests.left import files_of
from tests.pipeline.test_flows import manifest_of, run
from tests.pipeline.test_methods import models as models  # a fixture, as is the next
from tests.pipeline.test_methods import photos as photos

pytestmark = pytest.mark.usefixtures("prefect_server")
WANTED = Sampling(looked_at=100, statistics=40, codes=3)
EDIT = Edit(
    name="kept", target="grey hair", method="optimization",
    optimization=Optimization(preset="faithful", steps=4, chunk=2),
)  # fmt: skip
TRAINING = MapperTraining(preset="faithful", steps=4, validate_every=2, batch_size=2, codes=12, validation=4)


@pytest.fixture
def with_identity(models):
    return models.model_copy(update={"identity": str(data.IDENTITY)})


def test_an_optimization_finds_its_channels_and_leaves_the_others_alone(with_identity, photos, tmp_path):
    out = tmp_path / "out"
    result = run(with_identity, photos, out, [EDIT], sampling=WANTED)
    assert {step.step for step in result.steps} == {"look-at-codes", "invert-images", "edit-images"}
    rows = manifest_of(result)
    assert set(rows.status) == {"ok"}
    assert rows.settings[0]["optimization"]["space"] == "relevant"
    assert "styleclip-79" in str(rows.settings[0])  # both prompts are compared

    # each of the stored codes is that of its latent, but for channels of some width
    (path,) = (out / "workspace").glob("directions/*/channels.parquet")
    width = torch.tensor(pq.read_table(path)["width"][0].as_py())
    generator = load_generator(with_identity.generator)
    may = torch.zeros(generator.layout.num_channels, dtype=torch.bool)
    may[generator.layout.editable_index] = width > 0
    latents = pd.concat(
        pq.read_table(each).to_pandas() for each in (out / "workspace").glob("latents/*/*.attempt-*.parquet")
    ).set_index("image_key")
    for row in rows.itertuples():
        stored = pq.read_table(out / "workspace" / row.steps[0]["latents"]).to_pandas()
        after = torch.from_numpy(np.stack(stored.set_index("image_key").loc[[row.image_key]].s))
        w_plus = torch.from_numpy(np.stack(latents.loc[[row.image_key]].w_plus))
        before = generator.styles(w_plus.view(1, generator.num_ws, -1)).flat().detach()
        # the core's test is bit for bit; here codes were computed in another batch
        assert (after - before)[:, ~may].abs().max() < 1e-5
        assert (after - before)[:, may].abs().max() > 1e-3

    left = files_of(out)
    again = run(with_identity, photos, out, [EDIT], sampling=WANTED)
    assert [step.computed for step in again.steps] == [0] * len(again.steps)
    assert files_of(out) == left


def test_shards_do_not_decide_what_a_faithful_optimization_makes(with_identity, photos, tmp_path):
    one, two = (
        manifest_of(
            run(
                with_identity, photos, tmp_path / str(size), [EDIT], sampling=WANTED,
                execution=Execution(shard_size=size),
            )
        ).set_index("image_key")
        for size in (1, 3)
    )  # fmt: skip
    assert one.clip_after.to_dict() == pytest.approx(two.clip_after.to_dict(), abs=1e-6)


def test_a_dry_run_finds_no_channels_and_names_what_the_run_will(with_identity, photos, tmp_path):
    out = tmp_path / "out"

    def foreseen():
        said = run(with_identity, photos, out, [EDIT], sampling=WANTED, dry_run=True).forecast
        assert not said.unknown
        return {each.step: (each.found, each.computed) for each in said.steps}

    fresh = {"look-at-codes": (0, 100), "invert-images": (0, 3), "edit-images": (0, 3)}
    assert foreseen() == fresh
    assert not list(tmp_path.glob("out/**/channels.parquet"))
    done = run(with_identity, photos, out, [EDIT], sampling=WANTED)
    assert {each.step: (each.rows - each.tried, each.tried) for each in done.steps} == fresh
    assert foreseen() == {name: (count, 0) for name, (_, count) in fresh.items()}


def test_without_an_identity_network_it_is_said_at_once(models, photos, tmp_path):
    with pytest.raises(SettingsError, match="weighs identity with 3, but there is no identity network"):
        run(models, photos, tmp_path / "out", [EDIT], sampling=WANTED)
    with pytest.raises(SettingsError, match="identity_weight is 3, but there is no identity network"):
        train_mapper(models, ["hat"], str(tmp_path), TRAINING)


def test_what_is_left_to_the_presets_keeps_its_name():
    usual = MapperTraining().parameters()
    assert usual["templates"] == "none"
    assert not {"neutral", "effect"} & usual.keys()
    faithful = MapperTraining(preset="faithful").parameters()
    assert (faithful["templates"], faithful["neutral"], faithful["effect"]) == ("styleclip-79", "face", 0.75)
    assert MapperTraining(preset="faithful", neutral="hair").parameters() != faithful
    (variant,) = Edit(target="hat", method="optimization").variants()
    assert "effect" not in variant.parameters()["steps"][0]
    assert variant.steps[0].templates == "none"
    assert EDIT.variants()[0].steps[0].templates == "styleclip-79"


def test_a_mapper_of_relevant_channels_is_trained_resumed_and_applied(
    with_identity, photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(mappers, "Sampling", lambda: WANTED)
    looking = {"look-at-codes": (0, 100), "train-mapper": (0, 4)}
    given = with_identity, ["hat"], str(tmp_path / "one"), TRAINING
    said = train_mapper(*given, dry_run=True).forecast
    assert {each.step: (each.found, each.computed) for each in said.steps} == looking
    trained = train_mapper(*given)
    (whole,), (looked,) = trained.mappers, trained.steps
    assert (looked.step, looked.rows, looked.tried) == ("look-at-codes", 100, 100)
    # with the mapper there, nobody has to look at anything
    assert train_mapper(*given).steps == []
    real, begun = Training.run, []

    def break_off(self):
        for state in real(self):
            begun.append(state.step)
            yield state
            if len(begun) == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(Training, "run", break_off)
    with pytest.raises(BaseException):  # noqa: B017, PT011 - whatever the engine makes of it
        train_mapper(with_identity, ["hat"], str(tmp_path / "two"), TRAINING)
    monkeypatch.setattr(Training, "run", real)
    (resumed,) = train_mapper(with_identity, ["hat"], str(tmp_path / "two"), TRAINING).mappers
    one, two = (load_mapper(each.best).state_dict() for each in (whole, resumed))
    assert all(torch.equal(one[name], two[name]) for name in one)

    edit = Edit(name="mapped", target="hat", method="mapper", mapper=whole.best)
    rows = manifest_of(run(with_identity, photos, tmp_path / "out", [edit]))
    assert set(rows.status) == {"ok"}
    assert 0 < rows.channels[0] <= (one["way.width"] > 0).sum()


def test_a_strength_that_edits_do_not_have_by_default_is_told(models, tmp_path, caplog):
    wanted = MapperTraining(
        preset="small", steps=1, validate_every=1, batch_size=2, codes=6, validation=2, strength=0.2
    )
    for _ in range(2):  # a mapper that is found is told of as well
        caplog.clear()
        train_mapper(models, ["hat"], str(tmp_path), wanted)
        assert "hat: trained at strength 0.2; give edits by it the same" in caplog.text


def test_channels_that_were_replaced_are_refused(with_identity, photos, tmp_path):
    out = tmp_path / "out"
    run(with_identity, photos, out, [EDIT], sampling=WANTED)
    (path,) = (out / "workspace").glob("directions/*/channels.parquet")
    with pytest.raises(relevant.ChangedInputError, match="delete it, and the next run finds them again"):
        relevant.read_channels(str(path), "0" * 32)


@pytest.mark.parametrize("dry_run", [False, True])
def test_prompts_of_mappers_that_cannot_work_are_told_before_anything_is_drawn(
    with_identity, tmp_path, dry_run
):
    with pytest.raises(
        StyleCLIPError, match=r"2 cannot work: mapper of 'face': CLIP cannot tell .*; "
    ) as told:
        train_mapper(
            with_identity, ["hat", "face", "hat " * 100], str(tmp_path / "w"), TRAINING, dry_run=dry_run
        )
    assert "mapper of 'hat hat" in str(told.value)
    assert not list(tmp_path.glob("w/seen")) + list(tmp_path.glob("w/mappers"))
