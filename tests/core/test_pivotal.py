"""Pivotal tuning on a small generator: laws of a change, its file, its descent, and what edits make of it."""

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from styleclip_core.descent import Status
from styleclip_core.editing import EditedLatents
from styleclip_core.errors import CheckpointError, LayoutMismatchError
from styleclip_core.images import psnr
from styleclip_core.mapper_training import MapperTrainingSettings, apply_mapper, new_mapper
from styleclip_core.models.stylegan2 import Generator
from styleclip_core.optimization import OptimizationSettings, optimize
from styleclip_core.pivotal import PivotalSettings, tune
from styleclip_core.tuned import TunedGenerator, Tuning, TuningForm, layer_changes

QUICK = PivotalSettings(steps=25, rank=2, chunk=2, locality_weight=0.0)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small gain nothing from several threads, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pivots(generator):
    z = torch.randn(3, 8, generator=torch.Generator().manual_seed(5))
    return generator.map(z)


@pytest.fixture(scope="module")
def targets(generator, pivots):
    """The pivots' own images, each with a disc that the generator does not draw."""
    image = generator.synthesize(generator.styles(pivots)).clamp(-1, 1)
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    disc = ((y - 6) ** 2 + (x - 9) ** 2 < 12).float()
    return image * (1 - disc) + disc * torch.tensor([0.9, -0.7, 0.2])[:, None, None]


def last(*given, **named):
    *_, end = tune(*given, **named)
    return end


@pytest.fixture(scope="module")
def tuned(generator, targets, pivots):
    return last(generator, targets, pivots, QUICK)


def random_tuning(generator, rank=2, seed=0) -> Tuning:
    form = TuningForm.of(generator, rank)
    return Tuning(form, torch.randn(form.size, generator=torch.Generator().manual_seed(seed)).half())


def dense(generator, tuning: Tuning) -> Generator:
    """The generator with the change written into its weights, one outer product after the other."""
    changed = Generator(generator.config)
    changed.load_state_dict(generator.state_dict())
    changed.eval().requires_grad_(False)
    for name, change in layer_changes(generator, tuning.form, tuning.values[None].float()).items():
        module = changed.modulated(changed.layout.layer(name))
        original = generator.modulated(generator.layout.layer(name))
        for number in range(tuning.form.rank):
            outer = (
                change.write[0, :, number, None, None, None]
                * change.kernel[0, number]
                * change.read[0, number, None, :, None, None]
            )
            module.weight += outer
        module.bias += change.bias[0]
        module.demodulation = original.demodulation  # a tuning keeps to that of the generator
    return changed


def test_a_change_is_what_its_outer_products_say(generator, pivots):
    tunings = [random_tuning(generator, seed=seed) for seed in range(3)]
    styles = generator.styles(pivots)
    together = TunedGenerator(generator, tunings).synthesize(styles)
    for index, tuning in enumerate(tunings):
        alone = dense(generator, tuning).synthesize(styles.select(slice(index, index + 1)))
        assert_close(together[index : index + 1], alone, atol=1e-4, rtol=1e-4)
    assert (together - generator.synthesize(styles)).abs().max() > 0.1


def test_images_without_a_tuning_are_the_generators_own_bit_for_bit(generator, pivots):
    styles = generator.styles(pivots)
    plain = generator.synthesize(styles)
    assert torch.equal(TunedGenerator(generator, [None] * 3).synthesize(styles), plain)
    mixed = TunedGenerator(generator, [None, random_tuning(generator), None]).synthesize(styles)
    assert torch.equal(mixed[[0, 2]], plain[[0, 2]])
    assert not torch.equal(mixed[1], plain[1])
    zero = Tuning(TuningForm.of(generator, 3), torch.zeros(TuningForm.of(generator, 3).size).half())
    assert torch.equal(TunedGenerator(generator, [zero] * 3).synthesize(styles), plain)


def test_tunings_of_several_ranks_share_a_batch(generator, pivots):
    tunings = [random_tuning(generator, rank, seed=rank) for rank in (1, 4, 2)]
    styles = generator.styles(pivots)
    together = TunedGenerator(generator, tunings).synthesize(styles)
    for index, tuning in enumerate(tunings):
        alone = TunedGenerator(generator, [tuning]).synthesize(styles.select(slice(index, index + 1)))
        assert_close(together[index : index + 1], alone, atol=1e-5, rtol=1e-5)


def test_taken_images_keep_their_own_tuning(generator, pivots):
    whole = TunedGenerator(generator, [random_tuning(generator), None, random_tuning(generator, seed=9)])
    styles, index = generator.styles(pivots), torch.tensor([2, 0, 0])
    taken = whole.take(index).synthesize(styles.select(index))
    assert_close(taken, whole.synthesize(styles)[index], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"2 style codes, but the tunings of 3 images; take\(\)"):
        whole.synthesize(styles.select(slice(0, 2)))
    assert (whole.layout, whole.num_ws, whole.image_size) == (generator.layout, 6, (16, 16))


# ---- the descent -------------------------------------------------------------------------------------


def test_tuning_draws_what_the_pivot_cannot(generator, pivots, targets, tuned):
    styles = generator.styles(pivots)
    drawn = TunedGenerator(generator, [tuned.tuning(index) for index in range(3)]).synthesize(styles)
    before, after = psnr(generator.synthesize(styles), targets), psnr(drawn, targets)
    assert (after > before + 0.5).all()
    assert (after - before).mean() > 1


def test_a_result_does_not_depend_on_its_batch(generator, pivots, targets, tuned):
    for index in range(3):
        part = slice(index, index + 1)
        alone = last(generator, targets[part], pivots[part], QUICK)
        assert_close(alone.values[0], tuned.values[index], atol=1e-5, rtol=0)
        assert_close(alone.loss[0], tuned.loss[index], atol=1e-5, rtol=0)


def test_locality_holds_the_generator_at_random_codes(generator, pivots, targets, tuned):
    settings = replace(QUICK, steps=15, locality_weight=3.0, locality_codes=2)
    held = last(generator, targets, pivots, settings)
    alone = last(generator, targets[1:2], pivots[1:2], settings)
    assert_close(alone.values[0], held.values[1], atol=1e-5, rtol=0)
    z = torch.randn(3, 8, generator=torch.Generator().manual_seed(77))
    styles = generator.styles(pivots.lerp(generator.map(z), 0.5))
    before = generator.synthesize(styles)

    def change(state):
        tunings = [state.tuning(index) for index in range(3)]
        return (TunedGenerator(generator, tunings).synthesize(styles) - before).square().mean()

    assert change(held) < 0.8 * change(tuned)


def test_the_perceptual_term_is_weighed_and_each_images_own(generator, pivots, targets):
    def distance(image, target):
        return F.avg_pool2d(image - target, 8).abs().mean(dim=(1, 2, 3))

    first = next(tune(generator, targets, pivots, QUICK)).loss
    settings = replace(QUICK, perceptual_weight=2.0)
    with_term = next(tune(generator, targets, pivots, settings, perceptual=distance)).loss
    drawn = generator.synthesize(generator.styles(pivots))
    assert_close(with_term - first, 2 * distance(drawn, targets), atol=1e-5, rtol=1e-4)


def test_an_image_that_diverges_has_no_tuning_and_harms_no_other(generator, pivots, targets, tuned):
    broken = targets.clone()
    broken[1, 0, 3, 3] = torch.nan
    end = last(generator, broken, pivots, QUICK)
    assert end.status.tolist()[1] == Status.DIVERGED
    assert end.tuning(1) is None
    for index in (0, 2):
        assert_close(end.values[index], tuned.values[index], atol=1e-5, rtol=0)


def test_images_that_are_done_stop_and_no_steps_change_nothing(generator, pivots):
    own = generator.synthesize(generator.styles(pivots))
    states = list(tune(generator, own, pivots, replace(QUICK, steps=60, patience=4)))
    assert states[-1].step < 20
    assert (states[-1].status == Status.CONVERGED).all()
    still = last(generator, own, pivots, replace(QUICK, steps=0))
    tunings = [still.tuning(index) for index in range(3)]
    assert torch.equal(TunedGenerator(generator, tunings).synthesize(generator.styles(pivots)), own)


def test_wrong_settings_and_targets_are_refused(generator, pivots):
    with pytest.raises(ValueError, match="steps must be at least 0, got -1"):
        PivotalSettings(steps=-1)
    with pytest.raises(ValueError, match="rank must be at most 64, got 65"):
        PivotalSettings(rank=65)
    with pytest.raises(ValueError, match="locality_weight must be a finite number, got nan"):
        PivotalSettings(locality_weight=float("nan"))
    with pytest.raises(ValueError, match=r"target must be \[3, 3, 16, 16\]"):
        next(tune(generator, torch.zeros(3, 3, 8, 8), pivots, QUICK))


# ---- the file ----------------------------------------------------------------------------------------


def test_bytes_are_a_round_trip_of_a_known_size(generator, tuned):
    tuning = tuned.tuning(0)
    content = tuning.to_bytes()
    assert content == tuning.to_bytes()
    again = Tuning.from_bytes(content, generator)
    assert again.form == tuning.form
    assert torch.equal(again.values, tuning.values)
    by_hand = sum(2 * (layer.inputs + layer.outputs + 9) + layer.outputs for layer in tuning.form.layers)
    assert tuning.form.size == by_hand
    assert len(content) < 2 * by_hand + 1000


def test_a_tuning_of_another_generator_is_refused(generator, tuned):
    content = tuned.tuning(0).to_bytes()
    other = Generator(generator.config)
    other.fingerprint = "e" * 64
    with pytest.raises(LayoutMismatchError, match=r"not of 'eeee.*invert the image with the generator"):
        Tuning.from_bytes(content, other)
    with pytest.raises(LayoutMismatchError, match="not of 'eeee"):
        TunedGenerator(other, [tuned.tuning(0)])


def forged(tuning: Tuning, values=None, **changes) -> bytes:
    header = {**tuning.form.to_dict(), **changes}
    values = tuning.values if values is None else values
    return safetensors.torch.save({"values": values}, {"styleclip": json.dumps(header)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: t.to_bytes()[:-10], "is damaged"),
        (lambda t: b"", "is damaged"),
        (lambda t: b"<html>no such key</html>", "is damaged"),
        (lambda t: safetensors.torch.save({"values": t.values}), "is damaged"),
        (lambda t: safetensors.torch.save({"values": t.values}, {"styleclip": "[1]"}), "header is no object"),
        (lambda t: safetensors.torch.save({"a": t.values}, {"styleclip": "[" * 100_000}), "is damaged"),
        (lambda t: forged(t, format="other"), "no tuning of a generator .format 'other'"),
        (lambda t: forged(t, rank=10**9), "its rank is 1000000000"),
        (lambda t: forged(t, rank="2"), "its rank is '2'"),
        (lambda t: forged(t, rank=3), "its sizes are not those"),
        (lambda t: forged(t, layers={}), "its sizes are not those"),
        (lambda t: forged(t, t.values[:-1]), "its sizes are not those"),
        (lambda t: forged(t, t.values.float()), "its numbers are torch.float32"),
        (lambda t: forged(t, t.values * torch.inf), "or not finite"),
    ],
)
def test_damaged_and_hostile_files_are_refused(generator, tuned, make, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        Tuning.from_bytes(make(tuned.tuning(0)), generator)
    assert "makes it again" in str(caught.value)
    assert len(str(caught.value)) < 400


# ---- what edits make of it ---------------------------------------------------------------------------


def test_optimization_draws_each_pair_with_its_own_tuning(generator, pivots, tuned):
    whole = TunedGenerator(generator, [tuned.tuning(0), None, tuned.tuning(2)])
    source = torch.Generator().manual_seed(4)
    weight = torch.randn(3 * 256, 6, generator=source)
    text = F.normalize(torch.randn(3, 6, generator=source), dim=1)

    def embed(image):
        return F.normalize(torch.tanh(image.flatten(1) @ weight / 8), dim=1)

    # the second pair, given its pivot's own embedding, converges and leaves the others alone
    settings = OptimizationSettings(steps=8, chunk=2, patience=3, epsilon=1e-3)
    with torch.no_grad():
        text[1] = embed(generator.synthesize(generator.styles(pivots[1:2])))[0]
    states = list(optimize(whole, embed, pivots, text, settings))
    assert states[0].clip[0] == pytest.approx(
        1 - (embed(whole.synthesize(whole.styles(pivots)))[0] @ text[0]).item(), abs=1e-5
    )
    assert states[-1].status.tolist()[1] == Status.CONVERGED
    assert len(states[-1].pairs) == 2
    for index in range(3):
        part = slice(index, index + 1)
        one = whole.take(torch.tensor([index]))
        *_, alone = optimize(one, embed, pivots[part], text[part], settings)
        # what the second one follows are rounding errors, as it begins where it is to go
        assert_close(alone.latents[0], states[-1].latents[index], atol=1e-4 if index == 1 else 1e-6, rtol=0)


def test_a_mapper_moves_codes_of_a_tuned_generator(generator, pivots, tuned):
    whole = TunedGenerator(generator, [tuned.tuning(index) for index in range(3)])
    mapper = new_mapper(generator, MapperTrainingSettings(levels=("coarse",), identity_weight=0))
    source = EditedLatents(pivots)
    mine, theirs = (apply_mapper(mapper, each, source, 0.1).codes(each).flat() for each in (whole, generator))
    assert torch.equal(mine, theirs)


def test_gradients_of_the_image_reach_the_code(generator, pivots, tuned):
    whole = TunedGenerator(generator, [tuned.tuning(index) for index in range(3)])
    moving = pivots.clone().requires_grad_(True)
    whole.synthesize(whole.styles(moving)).square().sum().backward()
    assert moving.grad.abs().sum(dim=(1, 2)).min() > 0
