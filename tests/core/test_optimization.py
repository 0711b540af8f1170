"""Latent optimization on a small generator: published schedule, loop, preprocessing; batches; failures."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from styleclip_core.descent import Status
from styleclip_core.models.stylegan2 import Generator, SynthesisLayer, ToRGBLayer
from styleclip_core.optimization import (
    OptimizationSettings,
    learning_rate_factor,
    optimize,
    published_embedding,
)
from styleclip_core.style_space import StyleCode

STEPS = 14


class ExactLayer(SynthesisLayer):
    def demodulation(self, style):
        return (style.square() @ self.weight.square().sum(dim=(2, 3)).t() + 1e-8).rsqrt()


class ExactRGB(ToRGBLayer):
    def forward(self, x, style):
        scaled = x * (style * self.weight_gain)[:, :, None, None]
        return F.conv2d(scaled, self.weight) + self.bias[:, None, None]


@pytest.fixture(scope="module")
def exact(generator) -> Generator:
    """The same generator in float64, where a batch equals its parts to the last digits."""
    double = Generator(generator.config)
    double.load_state_dict(generator.state_dict())
    exact_kinds = {SynthesisLayer: ExactLayer, ToRGBLayer: ExactRGB}  # no float32 in between
    for module in double.modules():
        module.__class__ = exact_kinds.get(type(module), type(module))
    return double.double().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def towers():
    """Smooth stand-ins for CLIP's image tower and the identity network: random projections."""
    source = torch.Generator().manual_seed(2)
    filters = [torch.randn(3 * 16 * 16, 6, generator=source, dtype=torch.float64) for _ in range(2)]

    def projection(weight):
        return lambda image: F.normalize(torch.tanh(image.flatten(1).to(weight) @ weight / 8), dim=1)

    return [projection(weight) for weight in filters]


@pytest.fixture(scope="module")
def pairs(exact):
    source = torch.Generator().manual_seed(3)
    z = torch.randn(5, 8, generator=source, dtype=torch.float64)
    text = F.normalize(torch.randn(5, 6, generator=source, dtype=torch.float64), dim=1)
    return exact.map(z), text


def run(generator, towers, w_source, text, **settings):
    chosen = OptimizationSettings(**{"steps": STEPS, "identity_weight": 0.1, **settings})
    return list(optimize(generator, towers[0], w_source, text, chosen, embed_identity=towers[1]))


def reference_loop(generator, towers, w_source, text, steps, l2_lambda, id_lambda, lr=0.1):
    """The published loop for one pair, line by line; the result is the code of the last image it draws."""
    latent = w_source.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([latent], lr=lr)
    with torch.no_grad():
        original = generator.synthesize(generator.styles(w_source))
    losses = []
    for i in range(steps):
        t = i / steps
        ramp = min(1, (1 - t) / 0.25)
        ramp = 0.5 - 0.5 * math.cos(ramp * math.pi)
        ramp = ramp * min(1, t / 0.05)
        optimizer.param_groups[0]["lr"] = lr * ramp
        drawn = latent.detach().clone()
        image = generator.synthesize(generator.styles(latent))
        c_loss = 1 - towers[0](image) @ text.T
        i_loss = 1 - (towers[1](image) * towers[1](original)).sum()
        loss = c_loss + l2_lambda * ((w_source - latent) ** 2).sum() + id_lambda * i_loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return drawn, losses


def test_the_schedule_equals_the_published_one(golden_arrays):
    published = golden_arrays("optimizer_lr")["lr"]
    ours = [0.1 * learning_rate_factor(step, 300) for step in range(300)]
    assert_close(torch.tensor(ours, dtype=torch.float64), torch.from_numpy(published), atol=1e-12, rtol=0)


def test_every_pair_equals_the_published_loop_on_it(exact, towers, pairs):
    w_source, text = pairs
    states = run(exact, towers, w_source, text, l2_weight=0.02)
    assert [state.step for state in states] == list(range(STEPS))
    for index in range(5):
        part = slice(index, index + 1)
        expected, losses = reference_loop(exact, towers, w_source[part], text[part], STEPS, 0.02, 0.1)
        assert_close(states[-1].latents[part], expected, atol=1e-8, rtol=0)
        assert_close(torch.stack([state.loss[index] for state in states]), torch.tensor(losses).double())
    assert states[-1].status.tolist() == [Status.DONE] * 5
    assert (states[-1].loss < states[0].loss).all()


@pytest.mark.parametrize("space", ["w_plus", "s"])
@pytest.mark.parametrize("patience", [None, 3])
def test_a_batch_of_five_equals_five_singles(exact, towers, pairs, space, patience):
    w_source, text = pairs
    settings = {"space": space, "patience": patience, "learning_rate": 0.3, "steps": 22 if patience else 8}
    together = run(exact, towers, w_source, text, **settings)
    for index in range(5):
        alone = run(exact, towers, w_source[index : index + 1], text[index : index + 1], **settings)
        assert_close(together[-1].latents[index], alone[-1].latents[0], atol=1e-7, rtol=0)
        assert together[-1].status[index] == alone[-1].status[0]
        steps = sum(index in state.pairs for state in together)
        assert steps == len(alone)
    if patience:  # pairs end at different steps, and those that have ended cost nothing more
        assert {len(state.pairs) for state in together} > {5}


@pytest.mark.parametrize("space", ["w_plus", "s"])
def test_in_float32_a_batch_of_five_equals_five_singles_bit_for_bit(generator, towers, pairs, space):
    w_source, text = (tensor.float() for tensor in pairs)
    together = run(generator, towers, w_source, text, space=space, chunk=2)[-1].latents
    for index in range(5):
        part = slice(index, index + 1)
        alone = run(generator, towers, w_source[part], text[part], space=space, chunk=2)[-1].latents
        assert torch.equal(together[part], alone)


@pytest.mark.parametrize(("count", "drawn"), [(1, {1}), (4, {1}), (5, {8}), (9, {8})])
def test_a_chunk_fits_the_pairs_where_nobody_says_one(generator, towers, pairs, count, drawn):
    w_source, text = (tensor.float().repeat(2, *[1] * (tensor.ndim - 1))[:count] for tensor in pairs)
    sizes = set()

    def embed(image):
        sizes.add(len(image))
        return towers[0](image)

    *_, fitted = optimize(generator, embed, w_source, text, OptimizationSettings(steps=3))
    assert sizes == drawn
    (chunk,) = drawn
    *_, said = optimize(generator, towers[0], w_source, text, OptimizationSettings(steps=3, chunk=chunk))
    assert torch.equal(fitted.latents, said.latents)


def test_in_style_space_torgb_stays(exact, towers, pairs):
    w_source, text = pairs
    first, *_, end = run(exact, towers, w_source, text, space="s")
    before, after = exact.styles(w_source), end.moved.codes(exact)
    start, stored = (StyleCode.from_flat(exact.layout, state.latents) for state in (first, end))
    for layer in exact.layout.layers:
        assert torch.equal(before[layer.name], after[layer.name]) == layer.is_torgb
        assert torch.equal(start[layer.name], stored[layer.name]) == layer.is_torgb
        assert_close(stored[layer.name], after[layer.name], atol=1e-12, rtol=0)


def test_free_generation_has_the_clip_term_alone(exact, towers, pairs):
    w_source, text = pairs
    free = run(exact, towers, w_source, text, mode="free_generation", l2_weight=5.0)
    assert all(torch.equal(state.loss, state.clip) for state in free)
    bound = run(exact, towers, w_source, text, l2_weight=5.0)[-1]
    assert (bound.l2 < free[-1].l2).all()
    assert (bound.clip > free[-1].clip).all()


def test_a_pair_that_fails_ends_alone(exact, towers, pairs):
    w_source, text = pairs
    calls = []

    def breaks(image):
        embedded = towers[0](image)
        calls.append(len(image))
        if len(calls) == 6:  # the sixth step, whose only chunk holds all five
            embedded = embedded * torch.tensor([1, 1, math.nan, 1, 1]).double()[:, None]
        return embedded

    settings = OptimizationSettings(steps=STEPS, chunk=5)
    states = list(optimize(exact, breaks, w_source, text, settings))
    assert states[-1].status.tolist() == [Status.DONE, Status.DONE, Status.DIVERGED, Status.DONE, Status.DONE]
    assert states[5].pairs.tolist() == [0, 1, 2, 3, 4]
    assert states[6].pairs.tolist() == [0, 1, 3, 4]
    assert torch.equal(states[-1].latents[2], states[4].latents[2])  # the last that was finite
    others = list(optimize(exact, towers[0], w_source, text, settings))[-1].latents
    kept = torch.tensor([0, 1, 3, 4])
    assert_close(states[-1].latents[kept], others[kept], atol=1e-8, rtol=0)


def test_a_code_that_runs_away_ends(exact, towers, pairs):
    w_source, text = pairs
    states = run(exact, towers, w_source, text, learning_rate=50.0, l2_weight=0.0, max_move=2.0)
    assert set(states[-1].status.tolist()) == {Status.DIVERGED}
    assert len(states) < STEPS
    assert states[-1].latents.isfinite().all()


def test_no_pair_stops_at_the_start_and_the_start_stays(exact, towers, pairs):
    w_source, text = pairs
    copy = w_source.clone()
    states = run(exact, towers, w_source, text, steps=1)
    assert torch.equal(states[0].latents, copy)
    assert torch.equal(w_source, copy)
    assert (states[0].l2 == 0).all()
    assert states[0].identity.abs().max() < 1e-12


def test_an_earlier_edit_stays_in_the_image(exact, towers, pairs):
    w_source, text = pairs
    offset = torch.zeros(5, exact.layout.num_channels, dtype=torch.float64)
    offset[:, :4] = 0.7
    settings = OptimizationSettings(steps=2)
    first = next(optimize(exact, towers[0], w_source, text, settings, offset=offset))
    codes = StyleCode.from_flat(exact.layout, exact.styles(w_source).flat() + offset)
    expected = 1 - (towers[0](exact.synthesize(codes)) * text).sum(dim=1)
    assert_close(first.clip, expected)
    in_s = OptimizationSettings(steps=2, space="s")
    assert_close(next(optimize(exact, towers[0], w_source, text, in_s, offset=offset)).latents, codes.flat())


@pytest.mark.parametrize(("size", "factor"), [(32, 7), (64, 7), (96, 7), (256, 7)])
def test_the_box_filter_equals_repeating_and_averaging(clip_model, size, factor):
    from styleclip_core.optimization import _box_filter

    image = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    published = F.avg_pool2d(F.interpolate(image, scale_factor=factor), kernel_size=size // 32)
    weights = _box_filter(size, 32 * factor)
    assert_close(weights @ image @ weights.T, published, atol=1e-12, rtol=0)


def test_published_embedding_feeds_raw_pixels(clip_model):
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        raw = F.normalize(clip_model.model.encode_image(F.avg_pool2d(image, 2)), dim=1)  # 32-pixel CLIP
        assert_close(published_embedding(clip_model)(image), raw, atol=1e-6, rtol=0)
        assert (published_embedding(clip_model)(image) - clip_model.embed_images(image)).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"learning_rate": 0.0}, r"learning_rate must be more than 0, got 0\.0"),
        ({"l2_weight": -1.0}, r"l2_weight must be at least 0, got -1\.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        OptimizationSettings(**change)


def test_inputs_that_do_not_fit_are_refused(generator, towers, pairs):
    w_source, text = (tensor.float() for tensor in pairs)
    with pytest.raises(ValueError, match=r"w_source must be \[P, 6, 8\], got \[5, 5, 8\]"):
        next(optimize(generator, towers[0], w_source[:, :5], text, OptimizationSettings()))
    with pytest.raises(ValueError, match=r"text must be \[5, D\].*got \[4, 6\]"):
        next(optimize(generator, towers[0], w_source, text[:4], OptimizationSettings()))
    with pytest.raises(ValueError, match=r"identity_weight is 0\.1, but there is no identity network"):
        next(optimize(generator, towers[0], w_source, text, OptimizationSettings(identity_weight=0.1)))
