"""Feature-space inversion on a small generator: laws of a residual, its search, its file."""

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from styleclip_core.errors import CheckpointError, LayoutMismatchError
from styleclip_core.feature_inversion import feature_side, find_residuals
from styleclip_core.features import FeatureGenerator, FeatureResidual, features_at
from styleclip_core.images import psnr
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig, SynthesisState
from styleclip_core.settings.features import FeatureSettings
from tests.core.test_pivotal import one_thread as one_thread  # a fixture, as are the next two
from tests.core.test_pivotal import pivots as pivots
from tests.core.test_pivotal import targets as targets

SIDE, CHANNELS = 8, 12  # of the features of the generator of 16 px
QUICK = FeatureSettings(steps=6, rank=CHANNELS, chunk=2)


@pytest.fixture(scope="module")
def found(generator, targets, pivots):
    return find_residuals(generator, targets, pivots, QUICK)


def random_residual(generator, seed=0, rank=2, scale=0.5) -> FeatureResidual:
    source = torch.Generator().manual_seed(seed)
    channels = scale * torch.randn(CHANNELS, rank, generator=source)
    places = torch.randn(rank, SIDE * SIDE, generator=source)
    return FeatureResidual(generator.fingerprint, SIDE, channels.half(), places.half())


def dense(residual: FeatureResidual) -> torch.Tensor:
    return (residual.channels.float() @ residual.places.float()).view(CHANNELS, SIDE, SIDE)


def drawn(generator, residuals, w_plus):
    own = FeatureGenerator(generator, residuals, w_plus)
    return own.synthesize(own.styles(w_plus))


def with_features(generator, styles, add):
    """The images of codes, with something added to their features."""
    state = features_at(generator, styles, SIDE)
    return generator.resume(SynthesisState(state.next_layer, state.features + add, state.image), styles)


def bits(residuals):
    return [(each.channels, each.places) for each in residuals]


# ---- what a residual does ----------------------------------------------------------------------------


def test_images_without_a_residual_are_the_generators_own_bit_for_bit(generator, pivots):
    plain = generator.synthesize(generator.styles(pivots))
    assert torch.equal(drawn(generator, [None] * 3, pivots), plain)
    mixed = drawn(generator, [None, random_residual(generator), None], pivots)
    assert torch.equal(mixed[[0, 2]], plain[[0, 2]])
    assert not torch.equal(mixed[1], plain[1])
    zero = random_residual(generator, scale=0.0)
    assert torch.equal(drawn(generator, [zero] * 3, pivots), plain)


def test_the_photograph_itself_is_drawn_with_the_whole_residual(generator, pivots):
    residuals = [random_residual(generator, seed) for seed in range(3)]
    whole = torch.stack([dense(each) for each in residuals])
    expected = with_features(generator, generator.styles(pivots), whole)
    assert_close(drawn(generator, residuals, pivots), expected, atol=1e-5, rtol=1e-5)


def test_an_edit_s_residual_fades_with_the_change_of_the_features_as_the_formula_says(generator, pivots):
    residuals = [random_residual(generator, seed) for seed in range(3)]
    own = FeatureGenerator(generator, residuals, pivots)
    edited = generator.styles(pivots + 0.8 * torch.randn(3, 1, 8, generator=torch.Generator().manual_seed(2)))
    before = features_at(generator, generator.styles(pivots), SIDE).features
    after = features_at(generator, edited, SIDE).features
    factor = torch.zeros(3, 1, SIDE, SIDE)
    for image in range(3):
        scale = before[image].square().mean()
        for y in range(SIDE):
            for x in range(SIDE):
                moved = (after - before)[image, :, y, x].square().mean()
                factor[image, 0, y, x] = torch.exp(-moved / scale)
    assert factor.min() < 0.7 < 0.9 < factor.max()
    whole = torch.stack([dense(each) for each in residuals])
    expected = with_features(generator, edited, factor * whole)
    assert_close(own.synthesize(edited), expected, atol=1e-5, rtol=1e-5)


def test_the_further_an_edit_leads_the_less_of_the_residual_is_left(generator, pivots):
    own = FeatureGenerator(generator, [random_residual(generator)] * 3, pivots)
    other = generator.map(torch.randn(3, 8, generator=torch.Generator().manual_seed(8)))
    left = []
    for share in (0.0, 0.2, 0.5, 1.0):
        state = features_at(generator, generator.styles(pivots.lerp(other, share)), SIDE)
        left.append(own.faded(state.features).square().mean(dim=(1, 2, 3)))
    assert (torch.stack(left).diff(dim=0) < 0).all()
    assert torch.equal(own.faded(own.before), own.residual)


def test_taken_images_keep_their_own_residual(generator, pivots):
    residuals = [random_residual(generator), None, random_residual(generator, seed=9, rank=4)]
    whole = FeatureGenerator(generator, residuals, pivots)
    styles, index = generator.styles(pivots + 0.1), torch.tensor([2, 0, 0])
    taken = whole.take(index).synthesize(styles.select(index))
    assert_close(taken, whole.synthesize(styles)[index], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"2 style codes, but the residuals of 3 images; take\(\)"):
        whole.synthesize(styles.select(slice(0, 2)))
    assert (whole.layout, whole.num_ws, whole.image_size) == (generator.layout, 6, (16, 16))


def test_gradients_of_the_image_reach_the_code(generator, pivots, found):
    whole = FeatureGenerator(generator, found, pivots)
    moving = pivots.clone().requires_grad_(True)
    whole.synthesize(whole.styles(moving)).square().sum().backward()
    assert moving.grad.isfinite().all()
    assert moving.grad.abs().sum(dim=(1, 2)).min() > 0


def test_what_does_not_belong_together_is_refused(generator, pivots):
    residual = random_residual(generator)
    with pytest.raises(ValueError, match="2 latents for the residuals of 3 images"):
        FeatureGenerator(generator, [residual] * 3, pivots[:2])
    with pytest.raises(LayoutMismatchError, match="the residual is of generator 'other"):
        FeatureGenerator(generator, [replace(residual, generator="other")], pivots[:1])
    with pytest.raises(LayoutMismatchError, match="the residual is of generator"):
        FeatureGenerator(generator, [replace(residual, resolution=4)], pivots[:1])
    coarse = replace(residual, resolution=4, places=residual.places[:, :16])
    with pytest.raises(ValueError, match=r"one resolution, got \[4, 8\]"):
        FeatureGenerator(generator, [residual, coarse], pivots[:2])
    other = Generator(GeneratorConfig(8, z_dim=8, w_dim=8, channel_base=64, channel_max=12))
    with pytest.raises(LayoutMismatchError, match="these style codes have"):
        FeatureGenerator(generator, [residual], pivots[:1]).synthesize(other.styles(torch.zeros(1, 4, 8)))


# ---- how it is found ---------------------------------------------------------------------------------


def test_a_residual_draws_what_the_latent_cannot(generator, pivots, targets, found):
    before = psnr(generator.synthesize(generator.styles(pivots)), targets)
    after = psnr(drawn(generator, found, pivots), targets)
    assert (after > before + 3).all()


def test_more_steps_are_no_worse_and_none_change_nothing(generator, pivots, targets):
    def quality(steps):
        residuals = find_residuals(generator, targets, pivots, replace(QUICK, steps=steps))
        return psnr(drawn(generator, residuals, pivots), targets)

    rising = torch.stack([quality(steps) for steps in (0, 1, 2, 5, 10)])
    assert (rising.diff(dim=0) > -0.01).all()  # but for float16
    assert torch.equal(rising[0], psnr(generator.synthesize(generator.styles(pivots)), targets))


def test_the_first_step_goes_down_the_gradient_and_exactly_so_far_as_helps(generator, pivots, targets):
    styles = generator.styles(pivots)

    def loss(residual):
        return (with_features(generator, styles, residual) - targets).square().sum(dim=(1, 2, 3))

    still = torch.zeros(3, CHANNELS, SIDE, SIDE, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(still).sum(), still)
    near = targets.clone()
    # a small difference, so that what is drawn is nearly linear
    targets = with_features(generator, styles, 0).lerp(near, 0.01)
    (gradient,) = torch.autograd.grad(loss(still).sum(), still)
    residuals = find_residuals(generator, targets, pivots, replace(QUICK, steps=1))
    step = torch.stack([dense(each) for each in residuals])
    cosine = torch.nn.functional.cosine_similarity(step.flatten(1), -gradient.flatten(1))
    assert_close(cosine, torch.ones(3), atol=1e-4, rtol=0)
    assert (loss(step) < torch.minimum(loss(0.9 * step), loss(1.1 * step))).all()


def test_a_residual_that_drew_the_image_is_found_again(generator, pivots):
    residuals = [random_residual(generator, seed, scale=0.1) for seed in range(3)]
    image = drawn(generator, residuals, pivots)
    found = find_residuals(generator, image, pivots, replace(QUICK, steps=80))
    assert (psnr(drawn(generator, found, pivots), image) > 45).all()


def test_a_lower_rank_keeps_the_nearest_residual_of_that_rank(generator, pivots, targets, found):
    low = find_residuals(generator, targets, pivots, replace(QUICK, rank=3))
    for whole, part in zip(found, low, strict=True):
        values = torch.linalg.svdvals(dense(whole).flatten(1))
        missing = (dense(whole) - dense(part)).norm()
        assert missing.item() == pytest.approx(values[3:].norm().item(), rel=1e-2)
        assert part.channels.shape == (CHANNELS, 3)


@given(st.permutations(range(3)), st.integers(1, 3))
def test_a_result_does_not_depend_on_its_batch(generator, pivots, targets, found, order, count):
    index = torch.tensor(order[:count])
    alone = find_residuals(generator, targets[index], pivots[index], QUICK)
    for here, each in zip(index, bits(alone), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(each, bits(found)[here], strict=True))


def test_an_image_that_is_no_number_has_no_residual_and_harms_no_other(generator, pivots, targets, found):
    broken = targets.clone()
    broken[1, 0, 3, 3] = torch.nan
    residuals = find_residuals(generator, broken, pivots, QUICK)
    assert residuals[1] is None
    for index in (0, 2):
        for one, other in zip(bits(residuals[index : index + 1])[0], bits(found)[index], strict=True):
            assert torch.equal(one, other)


def test_no_image_and_wrong_settings_and_targets(generator, pivots, targets):
    assert find_residuals(generator, targets[:0], pivots[:0], QUICK) == []
    with pytest.raises(ValueError, match=r"target must be \[3, 3, 16, 16\] for these latents, got"):
        find_residuals(generator, targets[:, :, :8], pivots, QUICK)
    for wrong in ({"steps": -1}, {"rank": 0}, {"rank": 65}, {"resolution": 3}, {"chunk": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at"):
            FeatureSettings(**wrong)


@pytest.mark.parametrize(
    ("image", "most", "side"), [(64, 64, 32), (64, 16, 16), (64, 20, 16), (1024, 64, 64), (8, 64, 4)]
)
def test_features_are_the_largest_within_the_bound_and_below_the_image(image, most, side):
    with torch.device("meta"):
        generator = Generator(GeneratorConfig(image, w_dim=8, z_dim=8, channel_base=4096, channel_max=4))
    assert feature_side(generator, most) == side


def test_images_that_are_no_square_have_residuals_too():
    torch.manual_seed(1)
    config = GeneratorConfig(16, z_dim=8, w_dim=8, mapping_layers=2, channel_base=128, channel_max=12)
    wide = Generator(replace(config, const_width=8)).eval().requires_grad_(False)
    w_plus = wide.map(torch.randn(1, 8))
    target = torch.rand(1, 3, 16, 32) * 2 - 1
    residuals = find_residuals(wide, target, w_plus, QUICK)
    assert residuals[0].places.shape == (CHANNELS, SIDE * 2 * SIDE)
    before = psnr(wide.synthesize(wide.styles(w_plus)), target)
    assert psnr(drawn(wide, residuals, w_plus), target) > before + 1


# ---- its file ----------------------------------------------------------------------------------------


def test_a_residual_comes_back_from_its_file(generator, found):
    content = found[0].to_bytes()
    again = FeatureResidual.from_bytes(content, generator)
    assert torch.equal(again.channels, found[0].channels)
    assert torch.equal(again.places, found[0].places)
    assert content == again.to_bytes()
    assert len(content) < 2 * CHANNELS * (CHANNELS + SIDE * SIDE) + 500


def test_a_residual_of_another_generator_is_refused(generator, found):
    other = Generator(generator.config)
    other.fingerprint = "e" * 64
    with pytest.raises(LayoutMismatchError, match=r"not of 'eeee.*invert the image with the generator"):
        FeatureResidual.from_bytes(found[0].to_bytes(), other)


def forged(residual: FeatureResidual, header=(), **tensors) -> bytes:
    said = {"format": "styleclip-features-1", "generator": "", "resolution": SIDE, **dict(header)}
    tensors = {"channels": residual.channels, "places": residual.places, **tensors}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    return safetensors.torch.save(tensors, {"styleclip": json.dumps(said)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda r: r.to_bytes()[:-10], "is damaged"),
        (lambda r: b"", "is damaged"),
        (lambda r: safetensors.torch.save({"places": r.places}), "is damaged"),
        (
            lambda r: forged(r, {"format": "styleclip-tuning-1"}),
            "no residual of features .format 'styleclip-t",
        ),
        (lambda r: forged(r, {"resolution": 10**9}), "its resolution is 1000000000"),
        (lambda r: forged(r, {"resolution": True}), "its resolution is True"),
        (lambda r: forged(r, {"resolution": [8]}), r"its resolution is \[8\]"),
        (lambda r: forged(r, {"resolution": 4}), "its sizes are not those"),
        (lambda r: forged(r, more=r.places.clone()), "it holds 'channels, more, places'"),
        (lambda r: forged(r, places=None), "it holds 'channels'"),
        (lambda r: forged(r, channels=r.channels[:, :1]), "its sizes are not those"),
        (lambda r: forged(r, channels=r.channels[:-1]), "its sizes are not those"),
        (lambda r: forged(r, places=r.places[0]), "its sizes are not those"),
        (
            lambda r: forged(r, channels=r.channels[:, :0], places=r.places[:0]),
            "its sizes are not those",
        ),
        (lambda r: forged(r, places=r.places.float()), "its numbers are torch.float32"),
        (lambda r: forged(r, places=r.places * torch.inf), "or not finite"),
    ],
)
def test_damaged_and_hostile_files_are_refused(generator, make, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        FeatureResidual.from_bytes(make(random_residual(generator)), generator)
    assert "makes it again" in str(caught.value)
    assert len(str(caught.value)) < 400
