"""Inversion, encoder and scores, on a small generator whose own images are the targets."""

import pytest
import torch
from torch.testing import assert_close

from styleclip_core import load_encoder
from styleclip_core.errors import CheckpointError
from styleclip_core.inversion import RefinementSettings, reconstruction_loss, refine
from styleclip_core.metrics import clip_similarity, directional_similarity
from styleclip_core.models.encoder import Encoder, EncoderConfig, save_encoder


@pytest.fixture
def problem(generator):
    z = torch.randn(3, 8, generator=torch.Generator().manual_seed(5))
    w_plus = generator.map(z)
    return generator.synthesize(generator.styles(w_plus)), w_plus + 0.2


def _last(generator, target, start, **settings):
    *_, end = refine(generator, target, start, RefinementSettings(**settings))
    return end


def test_refinement_improves_and_leaves_the_start_alone(generator, problem):
    target, start = problem
    before, copy = reconstruction_loss(generator.synthesize(generator.styles(start)), target), start.clone()
    end = _last(generator, target, start, steps=30, latent_weight=0.0)
    after = reconstruction_loss(generator.synthesize(generator.styles(end.w_plus)), target)
    assert (after < 0.5 * before).all()
    assert torch.equal(start, copy)


def test_a_result_does_not_depend_on_its_batch(generator):
    w_plus = generator.map(torch.randn(12, 8, generator=torch.Generator().manual_seed(5)))
    target, start = generator.synthesize(generator.styles(w_plus)), w_plus + 0.2
    settings = {"steps": 25, "patience": 3, "latent_weight": 0.01, "chunk": 3}
    together = _last(generator, target, start, **settings)
    for size in (5, 1):
        apart = [
            _last(generator, images, codes, **settings)
            for images, codes in zip(target.split(size), start.split(size), strict=True)
        ]
        assert torch.equal(torch.cat([each.w_plus for each in apart]), together.w_plus)
        assert torch.equal(torch.cat([each.loss for each in apart]), together.loss)


def test_images_that_have_ended_leave_the_others_as_they_would_be(generator, problem):
    target, start = problem
    start = torch.cat([start[:1] - 0.2, start[1:]])  # the first is perfect and ends early
    settings = RefinementSettings(steps=25, patience=3)
    states = list(refine(generator, target, start, settings))
    assert any(state.active.tolist() == [False, True, True] for state in states)
    *_, alone = refine(generator, target[1:], start[1:], settings)
    assert torch.equal(states[-1].w_plus[1:], alone.w_plus)


def test_a_loss_that_is_no_number_ends_its_image_alone(generator, problem):
    target, start = problem
    broken = target.clone()
    broken[1] = torch.nan
    states = list(refine(generator, broken, start, RefinementSettings(steps=15)))
    assert states[0].active.tolist() == [True, False, True]
    assert states[-1].loss.isfinite().tolist() == [True, False, True]
    assert torch.equal(states[-1].w_plus[1], start[1])
    whole = _last(generator, target, start, steps=15)
    assert torch.equal(states[-1].w_plus[::2], whole.w_plus[::2])


def test_no_steps_keep_the_encoders_code_and_draw_nothing(generator, problem, monkeypatch):
    target, start = problem
    monkeypatch.setattr(type(generator), "synthesize", lambda *_: pytest.fail("an image was drawn"))
    (only,) = refine(generator, target, start, RefinementSettings(steps=0))
    assert torch.equal(only.w_plus, start)
    assert not only.active.any()


def test_an_image_that_is_done_stops(generator, problem):
    target, start = problem
    perfect = start - 0.2
    states = list(refine(generator, target, perfect, RefinementSettings(steps=60, patience=3)))
    assert states[-1].step < 10
    assert_close(states[-1].w_plus, perfect, atol=1e-2, rtol=0)


def test_wrong_settings_and_targets_are_refused(generator):
    with pytest.raises(ValueError, match="steps must be at least 0, got -1"):
        RefinementSettings(steps=-1)
    with pytest.raises(ValueError, match=r"target must be \[1, 3, 16, 16\]"):
        next(refine(generator, torch.zeros(1, 3, 8, 8), torch.zeros(1, 6, 8), RefinementSettings()))


def test_encoder_files_are_a_round_trip(tmp_path):
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(16, 6, 8, widths=(4, 4, 4, 4), hidden=8)).eval()
    save_encoder(encoder, tmp_path / "e.safetensors")
    again = load_encoder(tmp_path / "e.safetensors")
    image = torch.rand(2, 3, 16, 16)
    assert again.encode(image).shape == (2, 6, 8)
    assert_close(again.encode(image), encoder.encode(image), atol=1e-2, rtol=1e-2)  # stored in float16
    assert again.encode(torch.rand(2, 3, 50, 50)).shape == (2, 6, 8)


def test_another_file_is_no_encoder(tmp_path, generator):
    from styleclip_core import save_generator

    save_generator(generator, tmp_path / "g.safetensors")
    with pytest.raises(CheckpointError, match="is not an encoder of this project"):
        load_encoder(tmp_path / "g.safetensors")


def test_scores_by_hand():
    before = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    after = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    text = torch.tensor([0.0, 1.0])
    assert_close(clip_similarity(before, text), torch.tensor([0.0, 1.0]))
    # the first moved by (-1, 1): cosine 1 / sqrt 2; the second did not move
    assert_close(directional_similarity(before, after, text), torch.tensor([0.5**0.5, 0.0]))
