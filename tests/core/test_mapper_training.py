"""Training of latent mappers on a small generator: losses by hand, what moves, resuming to the same bits."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from styleclip_core import load_mapper
from styleclip_core.editing import EditedLatents
from styleclip_core.errors import ArtifactConflictError, CheckpointError, TrainingDivergedError
from styleclip_core.mapper_training import MapperTraining, MapperTrainingSettings, apply_mapper, new_mapper
from styleclip_core.models.mapper import save_mapper
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig
from tests.forked import completed, started

SMALL = {"steps": 12, "identity_weight": 0.0, "validate_every": 4, "learning_rate": 0.2}


def small_training(**changes) -> MapperTraining:
    """A training of seconds, the same in every process."""
    torch.manual_seed(0)
    config = GeneratorConfig(8, 8, 8, mapping_layers=1, channel_base=64, channel_max=8)
    generator = Generator(config).eval().requires_grad_(False)
    source = torch.Generator().manual_seed(1)
    weight = torch.randn(3 * 8 * 8, 6, generator=source)
    embed = lambda image: F.normalize(torch.tanh(image.flatten(1) @ weight / 8), dim=1)  # noqa: E731
    w_plus = generator.map(torch.randn(9, 8, generator=source))
    text = F.normalize(torch.randn(6, generator=source), dim=0)
    levels = {"levels": ("coarse",)} if changes.get("kind", "levels") == "levels" else {}
    settings = MapperTrainingSettings(**{**SMALL, **levels, **changes})
    identity = embed if settings.identity_weight else None
    return MapperTraining(generator, embed, text, w_plus[:6], w_plus[6:], settings, embed_identity=identity)


def weights(training: MapperTraining) -> dict[str, torch.Tensor]:
    both = {"mapper": training.mapper, "best": training.best}
    return {f"{name}.{k}": v.clone() for name, module in both.items() for k, v in module.state_dict().items()}


def same(one, two) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("kind", ["levels", "single", "style", "style-full"])
def test_training_lowers_the_loss_of_codes_it_has_not_seen(kind):
    training = small_training(kind=kind, steps=40, l2_weight=0.1)
    before = training.validate()
    *_, last = training.run()
    assert last.finished
    assert last.best < before.total
    assert training.step == 40


def test_losses_are_those_of_the_paper():
    training = small_training(identity_weight=0.1, clip_weight=2.0, l2_weight=0.8)
    generator, w_plus = training.generator, training._validation
    moved = w_plus + 0.1 * training.mapper.step(w_plus)
    before, after = (generator.synthesize(generator.styles(each)) for each in (w_plus, moved))
    clip = 1 - (training._embed_images(after) @ training._text).mean()
    identity = 1 - (training._embed_images(after) * training._embed_images(before)).sum(dim=1).mean()
    l2 = F.mse_loss(moved, w_plus)
    found = training.validate()
    expected = [clip, identity, l2, 2 * clip + 0.1 * identity + 0.8 * l2]
    assert_close(
        torch.tensor([found.clip, found.identity, found.l2, found.total]), torch.stack(expected).detach()
    )


@pytest.mark.parametrize("kind", ["style", "style-full"])
def test_in_style_space_the_l2_term_is_summed_over_layers(kind):
    training = small_training(kind=kind)
    codes = training.generator.styles(training._validation)
    source = EditedLatents(training._validation)
    moved = apply_mapper(training.mapper, training.generator, source, 0.1).codes(training.generator)
    expected = sum(F.mse_loss(moved[name], codes[name]) for name in codes)
    assert training.validate().l2 == pytest.approx(expected.item(), rel=1e-5)
    rgb = [layer.name for layer in codes.layout.layers if layer.is_torgb]
    assert all(torch.equal(moved[name], codes[name]) == (kind == "style") for name in rgb)


def test_levels_that_are_left_out_stay(generator):
    settings = MapperTrainingSettings(levels=("medium",), identity_weight=0)
    mapper = new_mapper(generator, settings)
    w_plus = generator.map(torch.randn(2, 8, generator=torch.Generator().manual_seed(0)))
    step = mapper.step(w_plus)
    assert not step[:, :4].any()
    assert step[:, 4:].abs().min() > 0
    unmoved = apply_mapper(mapper, generator, EditedLatents(w_plus), 0.0)
    assert torch.equal(unmoved.codes(generator).flat(), generator.styles(w_plus).flat())
    with pytest.raises(ValueError, match="6 rows of w_plus, none of them fine; leave that level out"):
        new_mapper(generator, MapperTrainingSettings(levels=("coarse", "fine")))


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_training_stopped_at_any_step_resumes_to_the_same_bits(stop):
    undisturbed = small_training(decay=0.5)
    list(undisturbed.run())
    first = small_training(decay=0.5)
    for done in first.run():
        if done.step == stop:
            break
    second = small_training(decay=0.5)
    second.restore(first.to_bytes())
    assert second.step == stop
    list(second.run())
    assert same(weights(second), weights(undisturbed))
    assert second.curve == undisturbed.curve
    assert second.best_loss == undisturbed.best_loss


def train_on() -> None:
    """Train in a process of its own, from where the file that it is given has come, and say each step."""
    training, path = small_training(steps=60), Path(sys.argv[1])
    if path.exists():
        training.restore(path.read_bytes())
    for done in training.run():
        aside = path.with_suffix(".aside")
        aside.write_bytes(training.to_bytes())
        aside.replace(path)
        sys.stdout.write(f"{done.step}\n")
        sys.stdout.flush()


def test_a_killed_training_resumes_to_the_same_bits(tmp_path):
    path = tmp_path / "training.safetensors"
    begun = []
    for wanted in (5, 21):
        with started([path], os.environ, train_on) as (child, printed):
            for line in printed:
                begun.append(int(line))
                if begun[-1] >= wanted:
                    break
            child.kill()
            assert child.wait() == -signal.SIGKILL
    assert completed([path], os.environ, train_on).returncode == 0
    resumed, undisturbed = small_training(steps=60), small_training(steps=60)
    resumed.restore(path.read_bytes())
    list(undisturbed.run())
    assert resumed.finished
    assert same(weights(resumed), weights(undisturbed))
    assert resumed.curve == undisturbed.curve


def test_every_code_is_seen_once_per_epoch():
    training = small_training(batch_size=4)
    seen = []
    for step in range(3):  # 12 places: two epochs of 6 codes
        training.step = step
        seen += training._batch().tolist()
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))
    assert seen[:6] != seen[6:]


def test_training_ends_when_validation_stands_still():
    training = small_training(steps=400, learning_rate=1e-12, validate_every=1, patience=3)
    *_, last = training.run()
    assert training.step <= 12
    assert last.finished
    again = small_training(steps=400, learning_rate=1e-12, validate_every=1, patience=3)
    again.restore(training.to_bytes())
    assert list(again.run()) == []


def test_the_rate_is_constant_then_falls_to_zero():
    training = small_training(steps=10, decay=0.4)
    rates = []
    for step in range(10):
        training.step = step
        rates.append(training._learning_rate())
    assert rates[:7] == [0.2] * 7
    assert rates[7] > rates[8] > rates[9] > 0


def test_a_loss_that_is_no_number_ends_the_training_before_it_harms_the_weights():
    training = small_training()
    training._embed_images = lambda image: image.flatten(1)[:, :6] * float("nan")
    before = weights(training)
    with pytest.raises(TrainingDivergedError, match=r"loss of step 1 is nan .*lower the learning rate"):
        list(training.run())
    assert same(weights(training), before)


def test_other_settings_codes_or_damage_are_refused():
    stored = small_training().to_bytes()
    with pytest.raises(ArtifactConflictError, match="another learning_rate"):
        small_training(learning_rate=0.1).restore(stored)
    other = small_training()
    other._codes = other._codes + 1
    with pytest.raises(ArtifactConflictError, match="another codes or prompt"):
        other.restore(stored)
    small_training(steps=99).restore(stored)  # longer is no other training
    for damaged in (stored[:50], b"", stored[:-40], b"\x00" * 64):
        with pytest.raises(CheckpointError, match="damaged"):
            small_training().restore(damaged)


@pytest.mark.parametrize("kind", ["levels", "single", "style", "style-full"])
def test_a_trained_mapper_is_a_mapper_file(tmp_path, kind):
    training = small_training(kind=kind, steps=2)
    list(training.run())
    save_mapper(training.mapper, tmp_path / "m.safetensors")
    loaded = load_mapper(tmp_path / "m.safetensors")
    assert loaded.config == training.mapper.config
    source, generator = EditedLatents(training._codes), training.generator
    codes = [
        apply_mapper(each, generator, source, 0.1).codes(generator).flat()
        for each in (loaded, training.mapper)
    ]
    assert torch.equal(codes[0], codes[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"levels": ()}, "levels must be some of coarse, medium, fine"),
        ({"l2_weight": -1}, "l2_weight must be at least 0, got -1"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        MapperTrainingSettings(**change)


def test_an_identity_term_needs_its_network():
    training = small_training()
    settings = MapperTrainingSettings(levels=("coarse",))
    with pytest.raises(ValueError, match=r"identity_weight is 0\.1, but there is no identity network"):
        MapperTraining(training.generator, training._embed_images, training._text, training._codes,
                       training._codes, settings)  # fmt: skip
