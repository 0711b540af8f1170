"""Seeded samples and statistics that merge exactly."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from styleclip_core.errors import LayoutMismatchError
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig
from styleclip_core.sampling import ChannelStatistics, measure_statistics, sample_styles, sample_z


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=6, unique=True), st.data())
def test_a_sample_does_not_depend_on_its_batch(ids, data):
    chosen = data.draw(st.sampled_from(ids))
    whole = sample_z(7, ids, 5)
    assert torch.equal(whole[ids.index(chosen)], sample_z(7, [chosen], 5)[0])


def test_samples_are_normal_and_differ_by_seed():
    z = sample_z(0, range(4000), 8)
    assert z.mean().item() == pytest.approx(0, abs=0.02)
    assert z.std().item() == pytest.approx(1, abs=0.02)
    assert not torch.equal(sample_z(1, range(3), 8), sample_z(0, range(3), 8))


def test_style_batches_do_not_change_the_codes(generator):
    def run(batch_size):
        settings = {"seed": 3, "sample_ids": range(5), "truncation_psi": 0.7, "truncation_cutoff": 2}
        batches = list(sample_styles(generator, batch_size=batch_size, **settings))
        assert [i for ids, _, _ in batches for i in ids] == [0, 1, 2, 3, 4]
        return torch.cat([styles.flat() for _, _, styles in batches])

    torch.testing.assert_close(run(2), run(5))
    expected = generator.map(sample_z(3, range(5), 8), truncation_psi=0.7, truncation_cutoff=2)
    torch.testing.assert_close(run(5), generator.styles(expected).flat())


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 10**6), st.floats(0, 1e4))
def test_merged_statistics_are_those_of_the_whole(sizes, seed, offset):
    values = np.random.default_rng(seed).normal(offset, 1.0, (sum(sizes), 3))
    parts = np.split(values, np.cumsum(sizes)[:-1])
    measured = [ChannelStatistics.from_codes(torch.from_numpy(part)) for part in parts]
    measured.sort(key=lambda part: part.mean[0].item())  # any order will do
    merged = measured[0]
    for part in measured[1:]:
        merged = merged.merge(part)
    assert merged.n == len(values)
    np.testing.assert_allclose(merged.mean, values.mean(axis=0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(merged.std, values.std(axis=0), rtol=1e-9, atol=1e-9)
    assert np.array_equal(merged.min, values.min(axis=0))
    assert np.array_equal(merged.max, values.max(axis=0))


def test_statistics_of_a_stream_are_numpys_on_the_whole(generator):
    settings = {"seed": 0, "sample_ids": range(11), "truncation_psi": 0.7}
    stream = (styles for _, _, styles in sample_styles(generator, batch_size=3, **settings))
    measured = measure_statistics(stream)
    ((_, _, whole),) = sample_styles(generator, batch_size=11, **settings)
    codes = whole.flat().double().numpy()
    assert measured.n == 11
    np.testing.assert_allclose(measured.mean, codes.mean(axis=0), atol=1e-6)  # codes are float32
    np.testing.assert_allclose(measured.std, codes.std(axis=0), atol=1e-6)


def test_nothing_to_measure_and_foreign_statistics_are_refused():
    with pytest.raises(ValueError, match="no style codes to measure; sample at least one"):
        measure_statistics([])
    with pytest.raises(ValueError, match=r"with B from 1, got \[0, 3\]"):
        ChannelStatistics.from_codes(torch.zeros(0, 3))
    three, one = (ChannelStatistics.from_codes(torch.zeros(2, width)) for width in (3, 1))
    with pytest.raises(LayoutMismatchError, match="statistics of 3 and of 1 style channels"):
        three.merge(one)


def test_a_conditional_generator_is_sampled_for_one_class():
    torch.manual_seed(0)
    network = Generator(GeneratorConfig(8, 8, 8, 3, 2, 64, 8)).eval()
    settings = {"seed": 0, "sample_ids": range(4), "truncation_psi": 1.0}
    with pytest.raises(ValueError, match="has 3 classes, the label is None: give a label from 0 to 2"):
        next(sample_styles(network, **settings))
    with pytest.raises(ValueError, match="the label is 3"):
        next(sample_styles(network, **settings, label=3))
    ((_, first, _),) = sample_styles(network, **settings, label=0)
    ((_, second, _),) = sample_styles(network, **settings, label=2)
    z = sample_z(0, range(4), 8)
    torch.testing.assert_close(first, network.mapping(z, torch.tensor([[1.0, 0, 0]]).expand(4, -1)))
    assert not torch.allclose(first, second)


def test_a_label_for_an_unconditional_generator_is_refused(generator):
    with pytest.raises(ValueError, match="has 0 classes, the label is 1: leave the label out"):
        next(sample_styles(generator, seed=0, sample_ids=[0], truncation_psi=1.0, label=1))
