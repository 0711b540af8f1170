"""Derivatives stand in for moves: exact where they must be, and nearer than the moves they save."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from styleclip_core.derivatives import embedding_basis, unit_derivatives
from styleclip_core.relevance import RelevanceSettings, measure_channels

LAYER, CHANNELS = "b8.conv1", range(12)


def _embed(images):
    """A smooth stand-in for CLIP, 7 wide."""
    features = torch.cat([images.mean(dim=(2, 3)), images[:, :, 3, 3], torch.ones(len(images), 1)], dim=1)
    return F.normalize(features, dim=1)


def _moved(generator, codes, expected=None, **settings):
    std = torch.full((12,), 0.1)
    return measure_channels(
        generator, _embed, codes, layer=LAYER, channels=CHANNELS, mean=torch.zeros(12), std=std,
        settings=RelevanceSettings(**settings), expected=expected,
    )  # fmt: skip


def _expected(generator, codes, basis=None):
    basis = torch.eye(7) if basis is None else basis
    part = generator.layout.editable_slices[LAYER]
    found = torch.cat(list(unit_derivatives(generator, _embed, codes, basis, batch_size=7)))
    return found[:, part] @ basis


@pytest.fixture
def many(generator):
    z = torch.randn(40, 8, generator=torch.Generator().manual_seed(3))
    return generator.styles(generator.map(z))


def test_derivatives_are_moves_of_no_size(generator, codes):
    moved = _moved(generator, codes, strength=0.2)
    mean = _expected(generator, codes).mean(dim=0)
    assert F.cosine_similarity(mean, moved.direction, dim=1).median() > 0.999


def test_moves_at_all_codes_need_no_expectation(generator, codes):
    found = _moved(generator, codes, _expected(generator, codes), strength=20)
    assert_close(found.direction, _moved(generator, codes, strength=20).direction, atol=1e-5, rtol=0)


@pytest.mark.parametrize("directions", [7, 4])
def test_few_moves_and_derivatives_are_nearer_than_few_moves(generator, many, directions):
    exact = _moved(generator, many, strength=20).direction
    basis = embedding_basis(generator, _embed, many, directions)
    expected = _expected(generator, many, basis)
    found = _moved(generator, many, expected, strength=20, tolerance=10, minimum=5)
    few = _moved(generator, many.select(slice(0, 5)), strength=20).direction
    assert found.n.tolist() == [40] * 12
    assert (found.direction - exact).norm(dim=1).mean() < 0.7 * (few - exact).norm(dim=1).mean()


def test_a_tighter_tolerance_is_nearer(generator, many):
    exact = _moved(generator, many, strength=40).direction
    expected = _expected(generator, many)
    errors = [
        (_moved(generator, many, expected, strength=40, tolerance=tolerance, minimum=3).direction - exact)
        .norm(dim=1)
        .mean()
        for tolerance in (1e-9, 0.2, 10)
    ]
    assert errors[0] < 1e-5
    assert errors[0] <= errors[1] < errors[2]


def test_what_moves_cannot_show_stays_invisible(generator, codes):
    std, expected = torch.zeros(12), _expected(generator, codes)
    found = measure_channels(
        generator, _embed, codes, layer=LAYER, channels=CHANNELS, mean=std, std=std,
        settings=RelevanceSettings(tolerance=0.1, minimum=2), expected=expected,
    )  # fmt: skip
    assert found.n.tolist() == [0] * 12
    assert found.direction.abs().max() == 0


def test_a_basis_is_orthonormal_and_no_longer_than_the_codes_allow(generator, many):
    basis = embedding_basis(generator, _embed, many, 4)
    assert_close(basis @ basis.t(), torch.eye(4), atol=1e-5, rtol=0)
    assert len(embedding_basis(generator, _embed, many.select(slice(0, 3)), 100)) == 3
