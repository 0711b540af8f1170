"""Channel relevance: on a generator and an embedding whose answers are known, and by laws of merging."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from styleclip_core.errors import ArtifactConflictError, LayoutMismatchError, NotFiniteError
from styleclip_core.images import from_uint8, to_uint8
from styleclip_core.relevance import (
    ChannelDirections,
    RelevanceSettings,
    RelevanceTable,
    fastest_batch,
    measure_channels,
    standard_error,
)
from styleclip_core.style_space import StyleLayer, StyleLayout

LAYOUT = StyleLayout(
    (StyleLayer("b4.conv1", 4, 2, 0), StyleLayer("b4.torgb", 4, 2, 1, True), StyleLayer("b8.conv0", 8, 3, 1))
)


def _embed(images):
    """A stand-in for CLIP: the mean colour and a few pixels, as a unit vector."""
    features = torch.cat([images.mean(dim=(2, 3)), images[:, :, 3, 3], torch.ones(len(images), 1)], dim=1)
    return F.normalize(features, dim=1)


def _measure(generator, codes, layer="b8.conv1", channels=range(4), **settings):
    std = torch.full((generator.layout.layer(layer).channels,), 0.3)
    return measure_channels(
        generator, _embed, codes, layer=layer, channels=channels,
        mean=torch.zeros_like(std), std=std, settings=RelevanceSettings(**{"batch_size": 8, **settings}),
    )  # fmt: skip


def _by_definition(generator, codes, layer, channel, centre="sample"):
    """The definition, one image at a time."""
    units = []
    for index in range(codes.batch_size):
        one = codes.select(slice(index, index + 1))
        ends = []
        for sign in (5, -5):
            style = one[layer].clone()
            style[:, channel] = (style[:, channel] if centre == "sample" else 0.0) + sign * 0.3
            ends.append(_embed(generator.synthesize(one.replace(layer, style)))[0].double())
        units.append(F.normalize(ends[0] - ends[1], dim=0))
    return torch.stack(units).mean(dim=0).float()


@pytest.mark.parametrize("layer", ["b4.conv1", "b8.conv0", "b16.conv1"])
@pytest.mark.parametrize("centre", ["sample", "mean"])
def test_directions_equal_the_definition(generator, codes, layer, centre):
    measured = _measure(generator, codes, layer, range(2, 5), centre=centre)
    for row, channel in enumerate(range(2, 5)):
        expected = _by_definition(generator, codes, layer, channel, centre)
        assert_close(measured.direction[row], expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize(("precision", "lowest"), [("bfloat16", 0.99), ("float16", 0.999)])
@pytest.mark.parametrize("layer", ["b4.conv1", "b8.conv0", "b8.conv1", "b16.conv0", "b16.conv1"])
def test_directions_in_16_bits_point_where_those_of_32_do(generator, codes, layer, precision, lowest):
    half, whole = (_measure(generator, codes, layer, precision=each) for each in (precision, "float32"))
    assert F.cosine_similarity(half.direction, whole.direction).min() > lowest


def test_a_channel_does_not_depend_on_the_others_in_its_run(generator, codes):
    alone = _measure(generator, codes, channels=[3])
    together = _measure(generator, codes, channels=range(6))
    assert_close(alone.direction[0], together.direction[3], atol=1e-5, rtol=0)


def test_batch_size_does_not_change_directions(generator, codes):
    small, large = (_measure(generator, codes, batch_size=size) for size in (2, 64))
    assert_close(small.direction, large.direction, atol=1e-4, rtol=0)


def test_codes_are_left_as_they_were(generator, codes):
    before = codes.flat().clone()
    _measure(generator, codes)
    assert torch.equal(codes.flat(), before)


def test_a_channel_without_effect_is_invisible_not_nan(generator, codes):
    measured = measure_channels(
        generator, lambda images: _embed(images * 0), codes, layer="b4.conv1", channels=[0],
        mean=torch.zeros(12), std=torch.ones(12), settings=RelevanceSettings(),
    )  # fmt: skip
    assert measured.n.tolist() == [0]
    assert measured.direction.abs().max() == 0


def test_torgb_and_unknown_channels_are_refused(generator, codes):
    with pytest.raises(LayoutMismatchError, match="toRGB layer"):
        _measure(generator, codes, "b8.torgb")
    with pytest.raises(LayoutMismatchError, match=r"channels 0\.\.11, asked for 0\.\.20"):
        _measure(generator, codes, channels=[0, 20])


def test_a_channel_ends_where_its_direction_is_certain(generator, codes):
    # all codes alike: every unit change is the same, and two codes show that
    alike = codes.select(torch.zeros(12, dtype=torch.int64))
    measured = _measure(generator, alike, tolerance=0.1, minimum=3)
    assert set(measured.n.tolist()) <= {0, 3}
    assert_close(measured.direction, _measure(generator, alike).direction, atol=1e-4, rtol=0)


def test_what_is_left_out_depends_on_the_channel_alone(generator):
    z = torch.randn(24, 8, generator=torch.Generator().manual_seed(7))
    codes = generator.styles(generator.map(z))
    settings = {"tolerance": 0.4, "minimum": 3}
    together = _measure(generator, codes, channels=range(12), **settings)
    assert 3 <= together.n.min() < together.n.max() <= 24
    for channels in ([5], range(4, 9)):
        some = _measure(generator, codes, channels=channels, **settings)
        assert some.n.tolist() == together.n[list(channels)].tolist()
        assert torch.equal(some.direction, together.direction[list(channels)])
    # what is measured is the start of what would be
    first = int(together.n[5])
    start = _measure(generator, codes.select(slice(0, first)), channels=[5])
    assert_close(start.direction[0], together.direction[5], atol=1e-4, rtol=0)
    errors = RelevanceTable(_layout(12), together.n, together.direction)
    certain = together.n < 24
    assert (errors.standard_error / errors.consistency)[certain].max() <= 0.4 + 1e-6


def _layout(channels):
    return StyleLayout((StyleLayer("b8.conv1", 8, channels, 0),))


def truncated(images):
    """Return images as a cast to 8 bits leaves them, as the published PyTorch script writes them."""
    return from_uint8(((images + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize(
    ("rule", "written"), [("round", lambda images: from_uint8(to_uint8(images))), ("truncate", truncated)]
)
def test_eight_bits_are_those_of_an_image_file(generator, codes, rule, written):
    def shown(**settings):
        seen = []

        def embed(images):
            seen.append(images.clone())
            return _embed(images)

        std = torch.full((12,), 0.3)
        measure_channels(
            generator, embed, codes, layer="b8.conv1", channels=[1], mean=std, std=std,
            settings=RelevanceSettings(**settings),
        )  # fmt: skip
        return seen

    for whole, images in zip(shown(), shown(eight_bit=True, eight_bit_by=rule), strict=True):
        assert_close(images, written(whole), atol=1e-6, rtol=0)


def test_memory_that_is_too_small_halves_the_batch(generator, codes):
    sizes = []

    def embed(images):
        sizes.append(len(images))
        if len(images) > 4:
            raise torch.OutOfMemoryError("too small")
        return _embed(images)

    std = torch.full((12,), 0.3)
    given = {"layer": "b8.conv1", "channels": range(6), "mean": std, "std": std}
    settings = RelevanceSettings(batch_size=16)
    measured = measure_channels(generator, embed, codes, settings=settings, **given)
    whole = measure_channels(generator, _embed, codes, settings=settings, **given)
    assert_close(measured.direction, whole.direction, atol=1e-5, rtol=0)
    # six channels up and down, then three, then one, for all three codes
    assert sizes == [12, 6] + [2] * 6 * 3


def _table(direction, n=10):
    counts = torch.full((5,), n) if isinstance(n, int) else torch.tensor(n)
    return RelevanceTable(LAYOUT, counts, torch.as_tensor(direction, dtype=torch.float32))


def _random_table(seed, n):
    source = torch.Generator().manual_seed(seed)
    units = F.normalize(torch.randn(5, n, 4, generator=source), dim=2)
    return units, _table(units.mean(dim=1), n)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 1000))
def test_merging_equals_measuring_the_union(first, second, seed):
    units_a, a = _random_table(seed, first)
    units_b, b = _random_table(seed + 1, second)
    union = torch.cat([units_a, units_b], dim=1).mean(dim=1)
    merged = a.merge(b)
    assert_close(merged.direction, union, atol=1e-6, rtol=0)
    assert_close(b.merge(a).direction, merged.direction, atol=1e-7, rtol=0)
    assert merged.n.tolist() == [first + second] * 5


@given(st.integers(2, 30), st.integers(0, 1000))
def test_standard_error_is_that_of_the_mean_of_unit_vectors(n, seed):
    units, table = _random_table(seed, n)
    # variance of the sample, summed over coordinates, divided by n for that of the mean
    expected = (units - units.mean(dim=1, keepdim=True)).square().sum(dim=(1, 2)) / (n * (n - 1))
    assert_close(table.standard_error, expected.sqrt(), atol=1e-4, rtol=1e-3)


def test_one_code_has_no_standard_error():
    assert standard_error(torch.tensor([1.0]), torch.tensor([1])).item() == float("inf")


def test_relevance_is_the_cosine_and_zero_for_invisible_or_broken_rows():
    table = _table([[0.5, 0], [0, 0.2], [0, 0], [-0.3, 0.3], [float("nan"), 1]], n=[9, 9, 0, 9, 9])
    expected = torch.tensor([1.0, 0.0, 0.0, -(0.5**0.5), 0.0])
    assert_close(table.relevance(torch.tensor([1.0, 0.0])), expected)


def test_text_of_another_clip_is_refused():
    with pytest.raises(ValueError, match=r"2 wide, the text direction \[3\]"):
        _table(torch.ones(5, 2)).relevance(torch.ones(3))


def test_parts_assemble_in_any_order_and_never_twice():
    top = ChannelDirections("b4.conv1", torch.tensor([0, 1]), torch.tensor([4, 5]), torch.eye(2))
    low = ChannelDirections("b8.conv0", torch.tensor([2]), torch.tensor([6]), torch.ones(1, 2))
    table = RelevanceTable.from_parts(LAYOUT, [low, top])
    assert table.n.tolist() == [4, 5, 0, 0, 6]
    assert_close(table.direction[4], torch.ones(2))
    with pytest.raises(ArtifactConflictError, match="two parts"):
        RelevanceTable.from_parts(LAYOUT, [top, top])
    with pytest.raises(ArtifactConflictError, match="build the parts first"):
        RelevanceTable.from_parts(LAYOUT, [])


@pytest.mark.parametrize(
    ("precision", "size", "factor"), [("float16", 1e6, 1.0), ("float32", 1.0, float("nan"))]
)
def test_what_is_not_finite_is_an_error_and_no_change_unseen(generator, codes, precision, size, factor):
    def embed(images):
        # as CLIP would, which takes infinity for white
        return _embed(images.clamp(-1, 1).nan_to_num()) * factor

    layer = "b8.conv1"
    strong = codes.replace("b8.torgb", codes["b8.torgb"] * size)
    std = torch.ones(12)
    given = {"layer": layer, "channels": range(3), "mean": torch.zeros(12), "std": std}
    with pytest.raises(NotFiniteError, match=f"of moves of b8.conv1 are not finite in {precision}; use"):
        measure_channels(generator, embed, strong, settings=RelevanceSettings(precision=precision), **given)
    fine = measure_channels(generator, _embed, strong, settings=RelevanceSettings(), **given)
    assert fine.n.tolist() == [3] * 3


def test_moves_are_cut_into_equal_batches_that_fill_the_device(generator, codes):
    sizes = []

    def embed(images):
        sizes.append(len(images))
        return _embed(images)

    def measure(channels, size):
        std = torch.full((12,), 0.3)
        sizes.clear()
        measure_channels(
            generator, embed, codes.select(slice(0, 1)), layer="b8.conv1", channels=channels, mean=std,
            std=std, settings=RelevanceSettings(batch_size=size),
        )  # fmt: skip
        return list(sizes)

    assert measure(range(9), 16) == [10, 8]  # not 16 and 2
    assert measure(range(12), 8) == [8, 8, 8]
    assert measure(range(12), 0) == [24]
    assert fastest_batch(torch.device("cuda")) > fastest_batch(torch.device("cpu")) >= 12
