"""Ranger against its formulas, written out, and a training with it against the published loop."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from styleclip_core.mapper_training import PRESETS, MapperTraining
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig
from styleclip_core.optimization import published_embedding
from styleclip_core.ranger import Ranger
from tests.core.test_mapper_training import same, small_training, weights


class ByFormula:
    """Ranger as the papers write it, one number at a time over all weights."""

    def __init__(self, parameters: list[torch.Tensor], rate: float) -> None:
        self.parameters, self.rate, self.time = parameters, rate, 0
        self.first = [torch.zeros_like(each) for each in parameters]
        self.second = [torch.zeros_like(each) for each in parameters]
        self.slow = [each.detach().clone() for each in parameters]

    @torch.no_grad()
    def step(self) -> None:
        b1, b2 = 0.95, 0.999
        self.time += 1
        longest = 2 / (1 - b2) - 1
        length = longest - 2 * self.time * b2**self.time / (1 - b2**self.time)
        for place, weight in enumerate(self.parameters):
            gradient = weight.grad
            if gradient.ndim > 1:
                gradient = gradient - gradient.flatten(1).mean(dim=1).view(-1, *[1] * (gradient.ndim - 1))
            self.first[place] = b1 * self.first[place] + (1 - b1) * gradient
            self.second[place] = b2 * self.second[place] + (1 - b2) * gradient**2
            move = self.first[place] / (1 - b1**self.time)
            if length > 5:
                top = (length - 4) * (length - 2) * longest
                rectified = math.sqrt(top / ((longest - 4) * (longest - 2) * length))
                move = rectified * math.sqrt(1 - b2**self.time) * move / (self.second[place].sqrt() + 1e-5)
            weight -= self.rate * move
            if self.time % 6 == 0:
                self.slow[place] += 0.5 * (weight - self.slow[place])
                weight.copy_(self.slow[place])


def bowl(parameters: list[torch.Tensor]) -> torch.Tensor:
    """A loss whose gradients differ in every weight, and have a mean."""
    scales = (torch.arange(1, each.numel() + 1, dtype=each.dtype).view_as(each) for each in parameters)
    return sum((scale * (each - 1) ** 2).sum() + (each.sum() - 3) ** 2
               for scale, each in zip(scales, parameters, strict=True))  # fmt: skip


def test_steps_are_those_of_the_formulas():
    shapes = [(3, 4), (4,), (2, 3, 2)]
    start = [
        torch.randn(each, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) for each in shapes
    ]
    ours, theirs = ([each.clone().requires_grad_() for each in start] for _ in range(2))
    one, two = Ranger(ours, lr=0.05), ByFormula(theirs, rate=0.05)
    for _ in range(40):  # without and with rectification, and through six Lookaheads
        for parameters, optimizer in ((ours, one), (theirs, two)):
            for each in parameters:
                each.grad = None
            bowl(parameters).backward()
            optimizer.step()
        for mine, other in zip(ours, theirs, strict=True):
            assert_close(mine, other, rtol=1e-10, atol=1e-12)


def test_every_loss_of_a_published_training_is_that_of_the_published_loop():
    training = small_training(optimizer="ranger", steps=30, validate_every=30)
    other = small_training(optimizer="ranger", steps=30, validate_every=30)
    optimizer = ByFormula(list(other.mapper.parameters()), other.settings.learning_rate)
    for step in training.run():
        loss, losses = other._losses(other.mapper, other._codes[other._batch()])
        assert losses.total == pytest.approx(step.losses.total, rel=1e-5)
        other.mapper.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        other.step += 1
    for mine, theirs in zip(training.mapper.parameters(), other.mapper.parameters(), strict=True):
        assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def published_losses(generator, clip, identity, mapper, w, tokens):
    """The three terms as the published training has them, one image at a time, and their weighted sum."""
    moved = w + 0.1 * mapper.step(w)
    clip_loss, identity_loss = torch.zeros(()), torch.zeros(())
    for before, after in zip(w.split(1), moved.split(1), strict=True):
        drawn = generator.synthesize(generator.styles(after))
        with torch.no_grad():
            known = identity(generator.synthesize(generator.styles(before)))
        enlarged = F.interpolate(drawn, scale_factor=7)  # of 64 pixels, for a CLIP of 32
        logits, _ = clip.model(F.avg_pool2d(enlarged, 14), tokens)
        clip_loss = clip_loss + (1 - logits.squeeze() / clip.logit_scale) / len(w)
        identity_loss = identity_loss + (1 - identity(drawn)[0].dot(known[0])) / len(w)
    l2 = F.mse_loss(moved, w)
    return clip_loss, identity_loss, l2, 1.0 * clip_loss + 0.1 * identity_loss + 0.8 * l2


def test_the_published_preset_has_every_loss_of_the_published_training(clip_model):
    torch.manual_seed(0)
    config = GeneratorConfig(64, 8, 8, mapping_layers=1, channel_base=256, channel_max=8)
    generator = Generator(config).eval().requires_grad_(False)
    w_plus = generator.map(torch.randn(9, 8))
    weight = torch.randn(3 * 64 * 64, 6)
    identity = lambda image: F.normalize(torch.tanh(image.flatten(1) @ weight / 32), dim=1)  # noqa: E731
    settings = replace(PRESETS["published"], steps=20, validate_every=20)
    training = MapperTraining(
        generator, published_embedding(clip_model), clip_model.embed_text(["grey hair"])[0],
        w_plus[:6], w_plus[6:], settings, embed_identity=identity,
    )  # fmt: skip

    mapper, tokens = copy.deepcopy(training.mapper), clip_model.network.tokenize(["grey hair"])
    optimizer = ByFormula(list(mapper.parameters()), rate=0.5)
    for _ in range(20):
        batch = training._codes[training._batch()]
        step = next(training.run())
        expected = published_losses(generator, clip_model, identity, mapper, batch, tokens)
        found = (step.losses.clip, step.losses.identity, step.losses.l2, step.losses.total)
        assert found == pytest.approx(
            [each.item() for each in expected], rel=1e-4, abs=1e-6
        )  # one less a cosine
        mapper.zero_grad(set_to_none=True)
        expected[-1].backward()
        optimizer.step()


@pytest.mark.parametrize("stop", [3, 6, 7])
def test_a_training_stopped_between_lookaheads_resumes_to_the_same_bits(stop):
    whole = small_training(optimizer="ranger")
    list(whole.run())
    stopped = small_training(optimizer="ranger")
    for step in stopped.run():
        if step.step == stop:
            break
    resumed = small_training(optimizer="ranger")
    resumed.restore(stopped.to_bytes())
    list(resumed.run())
    assert same(weights(whole), weights(resumed))
    assert resumed.curve == whole.curve


def test_the_published_preset_trains_with_the_published_optimizer():
    published = PRESETS["published"]
    assert (published.optimizer, published.reference_compat) == ("ranger", True)
    training: MapperTraining = small_training(optimizer="ranger")
    assert isinstance(training._optimizer, Ranger)
    assert (training._optimizer.defaults["betas"], training._optimizer.defaults["eps"]) == (
        (0.95, 0.999),
        1e-5,
    )
