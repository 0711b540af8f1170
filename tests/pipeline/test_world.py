"""The embedded world, as it ships: its files, its truth, and one edit that does what its text says."""

import pytest
import torch

from styleclip import data
from styleclip.data.world import photographs
from styleclip.data.world.captions import ATTRIBUTES, HELD_OUT_TEMPLATES, TRAIN_TEMPLATES, caption, truths
from styleclip.data.world.identity_quality import (
    best_threshold,
    equal_error_rate,
    generated_by,
    latents_of,
    sensitivity,
    verify,
)
from styleclip.data.world.quality import area_under_curve, clip_scores, generator_scores
from styleclip.data.world.regressor import load_regressor
from styleclip.data.world.renderer import (
    FACTORS,
    INDEX,
    NUM_FACTORS,
    factors_of,
    hair_mask,
    render,
    strengths,
    visible,
)
from styleclip.data.world.train_clip import CompactTokens, build_towers, contrastive_loss, openai_state
from styleclip.data.world.train_identity import (
    FAMILIES,
    IDENTITY,
    MIN_DIFFERENCE,
    families,
    supervised_contrastive,
)
from styleclip.data.world.training import draw
from styleclip_core import load_clip, load_encoder, load_generator, load_identity
from styleclip_core.images import decode_image, fit, psnr


@pytest.fixture(scope="module")
def world():
    return (
        load_generator(data.GENERATOR), load_clip(data.CLIP), load_encoder(data.ENCODER),
        load_regressor(data.REGRESSOR),
    )  # fmt: skip


def test_weights_are_light_and_complete():
    files = [data.GENERATOR, data.CLIP, data.ENCODER, data.REGRESSOR, data.IDENTITY]
    assert sum(path.stat().st_size for path in files) < 45e6
    assert all(path.stat().st_size < 30e6 for path in files)


def test_photographs_are_the_renderers_portraits_of_their_factors():
    truth = photographs.read_factors(data.PHOTOGRAPHS)
    assert len(truth) == photographs.COUNT == 96
    for name in ("portrait-000.png", "portrait-095.png"):
        pixels = fit(decode_image((data.PHOTOGRAPHS / name).read_bytes()), 64, 64)
        assert psnr(pixels[None], render(truth[name][None])).item() > 45  # but for rounding to 8 bits


def test_clip_tells_attributes_apart_in_templates_it_has_not_seen(world):
    auc = clip_scores(world[1], count=600)
    assert len(auc) >= 40
    assert sum(auc.values()) / len(auc) > 0.985
    assert min(auc.values()) > 0.93


def test_generator_draws_the_factors_of_its_z(world):
    scores = generator_scores(world[0], world[3], count=200)
    assert scores.psnr_mean > 31
    assert min(scores.correlation.values()) > 0.9


def test_encoder_finds_the_photographs(world):
    truth = photographs.read_factors(data.PHOTOGRAPHS)
    images = render(torch.stack(list(truth.values())))
    drawn = world[0].synthesize(world[0].styles(world[2].encode(images)))
    assert psnr(drawn, images).mean() > 27


@pytest.mark.filterwarnings("ignore::FutureWarning")  # clip.load tries TorchScript first
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_clip_package_reads_the_weights_like_any_download(world):
    import clip

    model, _ = clip.load(str(data.CLIP), device="cpu")
    tokens = clip.tokenize(["face with grey hair"])
    ours = world[1].embed_text(["face with grey hair"])
    theirs = torch.nn.functional.normalize(model.encode_text(tokens).float(), dim=1)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_every_factor_is_smooth_and_changes_the_picture():
    base = torch.full((1, NUM_FACTORS), 0.5)
    base[:, INDEX["hair_dye"]] = 0.75  # so that a hue of dye shows
    for index, name in enumerate(FACTORS):
        steps = base.repeat(33, 1)
        if name in ("hair_light", "hair_red", "hair_grey"):
            steps[:, INDEX["hair_dye"]] = steps[:, INDEX["hair_grey"]] = 0
        steps[:, index] = torch.linspace(0, 1, 33)
        change = render(steps).diff(dim=0).abs().mean(dim=(1, 2, 3))
        assert change.sum() > 0.002, name  # of 2; lips are a hundredth of the picture
        assert change.max() < 0.35 * change.sum(), name  # no jump


def test_what_hides_is_not_read():
    factors = factors_of(torch.randn(200, 64, generator=torch.Generator().manual_seed(0)))
    dyed = factors.clone()
    dyed[:, INDEX["hair_dye"]] = 1
    seen = visible(dyed)
    assert seen[:, INDEX["hair_grey"]].max() < 1e-6
    assert (seen[:, INDEX["hair_light"]] - 0.5).abs().max() < 1e-6
    assert torch.equal(visible(factors)[:, INDEX["smile"]], strengths(factors)[:, INDEX["smile"]])
    assert 0.05 < hair_mask(factors[:8]).mean() < 0.5


def test_captions_say_only_what_is_true():
    import random

    factors = factors_of(torch.randn(50, 64, generator=torch.Generator().manual_seed(3)))
    rng = random.Random(0)
    for row in truths(factors):
        true = row.nonzero().flatten().tolist()
        text, named = caption(true, rng, count=2)
        assert set(named) <= set(true)
        assert all(any(phrase in text for phrase in ATTRIBUTES[index].phrases) for index in named)
    assert not set(HELD_OUT_TEMPLATES) & set(TRAIN_TEMPLATES)
    assert len(HELD_OUT_TEMPLATES) + len(TRAIN_TEMPLATES) == 80


def test_compact_tokens_compute_what_clip_computes(tmp_path):
    towers = build_towers()
    texts = ["a photo of a face with grey hair.", "hat"]
    compact = towers.embed_tokens(towers.tokens(texts))
    towers.model.eval()
    torch.save(openai_state(towers), tmp_path / "clip.pt")
    full = load_clip(tmp_path / "clip.pt").embed_text(texts)
    torch.testing.assert_close(torch.nn.functional.normalize(compact, dim=1), full, atol=5e-3, rtol=0)
    assert CompactTokens().size < 400


def test_contrastive_loss_is_lowest_when_true_pairs_are_close():
    matches = torch.tensor([[1.0, 0, 1], [0, 1, 1], [0, 0, 1]])
    good = contrastive_loss(20 * matches, matches)
    assert good < contrastive_loss(torch.zeros(3, 3), matches) < contrastive_loss(-20 * matches, matches)


def test_area_under_curve_by_hand():
    score, truth = torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([False, False, True, True])
    assert area_under_curve(score, truth) == pytest.approx(0.75)  # three of four pairs in order


def test_an_optimization_moves_what_its_prompt_says_whatever_its_batch(world):
    from dataclasses import replace

    from styleclip_core.optimization import PRESETS, optimize
    from styleclip_core.prompts import embed_prompt
    from styleclip_core.style_space import StyleCode

    generator, clip, encoder, regressor = world
    factors = photographs.held_out_factors(photographs.VALIDATION_SEED, 24)
    shown = strengths(factors)
    plain = (shown[:, [INDEX[name] for name in ("hat", "hair_grey", "hair_dye")]] < 0.4).all(dim=1)
    w_source = encoder.encode(render(factors[plain][:5]))
    text = embed_prompt(clip, "face with grey hair").expand(len(w_source), -1)
    settings = replace(PRESETS["gentle"], chunk=5)
    *_, together = optimize(generator, clip.embed_images, w_source, text, settings)
    codes = StyleCode.from_flat(generator.layout, together.latents)
    before = regressor.read(generator.synthesize(generator.styles(w_source)))
    moved = (regressor.read(generator.synthesize(codes)) - before).mean(dim=0)
    assert moved[INDEX["hair_grey"]] > 0.25
    assert moved[INDEX["glasses"]].abs() < 0.3
    short = replace(settings, steps=8)
    *_, together = optimize(generator, clip.embed_images, w_source, text, short)
    *_, alone = optimize(generator, clip.embed_images, w_source[1:2], text[:1], short)
    assert torch.equal(alone.latents[0], together.latents[1])


def test_supervised_contrastive_loss_by_hand():
    angles = torch.tensor([0.0, 0.3, 2.0, 2.9])
    rows, person = torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor([0, 0, 1, 1])
    similarity = (rows @ rows.T / 0.5).exp()
    expected = [
        -(similarity[i, j] / (similarity[i].sum() - similarity[i, i])).log()
        for i, j in ((0, 1), (1, 0), (2, 3), (3, 2))
    ]
    torch.testing.assert_close(supervised_contrastive(rows, person, 0.5), torch.stack(expected).mean())
    confused = supervised_contrastive(rows, torch.tensor([0, 1, 0, 1]), 0.5)
    assert confused > supervised_contrastive(rows, person, 0.5)


def test_relatives_differ_in_one_shape():
    shapes = families(draw(1, 2)).view(FAMILIES, 1 + len(IDENTITY), len(IDENTITY))
    assert shapes.min() >= 0
    assert shapes.max() <= 1
    change = (shapes[:, 1:] - shapes[:, :1]).abs()
    itself = torch.eye(len(IDENTITY), dtype=torch.bool)
    assert change[:, ~itself].max() == 0
    assert change[:, itself].min() >= MIN_DIFFERENCE - 1e-6


def test_identity_is_kept_by_nuisances_and_changed_by_shapes(world):
    network = load_identity(data.IDENTITY)
    score = verify(network, people=200)
    assert score.auc > 0.99
    assert score.accuracy > 0.95
    assert score.same[0] > 0.9
    assert abs(score.different[0]) < 0.15
    cosine = sensitivity(network, count=40)
    assert max(cosine[name] for name in IDENTITY) < 0.85
    assert min(value for name, value in cosine.items() if name not in IDENTITY) > 0.95
    # portraits of the generator, which training never saw
    factors = torch.rand(8, NUM_FACTORS, generator=torch.Generator().manual_seed(0))
    z = latents_of(factors, torch.randn(8, 64 - NUM_FACTORS, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(factors_of(z), factors, atol=2e-3, rtol=0)
    generated = verify(network, portray=generated_by(world[0], draw(3, 4)), people=100)
    assert generated.auc > 0.97


def test_equal_error_rate_by_hand():
    same, different = torch.tensor([0.9, 0.8, 0.7, 0.2]), torch.tensor([0.75, 0.3, 0.25, 0.0])
    assert equal_error_rate(same, different) == pytest.approx(0.25)
    assert best_threshold(same, different).item() == pytest.approx(0.7)  # six of eight are right
