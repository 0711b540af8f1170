"""How a relevance table is cut into tasks: by work, never across a layer, with parts that are found again."""

import pytest

from styleclip.tasks.directions import relevance
from styleclip.tasks.settings import Relevance
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig
from styleclip_core.moves import products_per_move

CONFIG = GeneratorConfig(64, 8, 8, 0, 2, 32 * 512, 512)


@pytest.fixture(scope="module")
def layout():
    return Generator(CONFIG).layout


def _covered(shards):
    """Every channel of every layer, in order."""
    return [(each.layer, channel) for each in shards for channel in range(each.first, each.last)]


@pytest.mark.parametrize("size", [0, 5, 24])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_channel_is_in_one_shard(layout, size, device):
    shards = relevance.shards(layout, Relevance(channels_per_shard=size), device)
    wanted = [(layer.name, channel) for layer in layout.editable for channel in range(layer.channels)]
    assert _covered(shards) == wanted
    assert [each.number for each in shards] == list(range(len(shards)))
    assert {each.total for each in shards} == {len(shards)}


def test_a_gpu_takes_whole_layers_and_a_processor_a_minute_of_work(layout):
    whole = relevance.shards(layout, Relevance(), "cuda")
    assert len(whole) == len(layout.editable)

    cut = relevance.shards(layout, Relevance(), "cpu")
    assert len(cut) > 3 * len(whole)
    for each in cut:
        work = 100 * (each.last - each.first) * 2 * products_per_move(layout, each.layer)
        assert work <= 4.1e12 or each.last - each.first <= 16

    # fewer codes are less work, so that more channels go together
    assert len(relevance.shards(layout, Relevance(samples=1), "cpu")) < len(cut)


def test_products_of_a_move_are_counted_as_by_hand(layout):
    last, before = layout.editable[-1], layout.editable[-2]
    width = CONFIG.channels(64)
    assert products_per_move(layout, last.name) == 2 * 64**2 * width * 3
    assert products_per_move(layout, before.name) == 2 * 64**2 * width * (3 + 9 * width)
    # one lower: its convolution doubles, so it reads a quarter of the pixels
    lower = products_per_move(layout, layout.editable[-3].name) - products_per_move(layout, before.name)
    wide = CONFIG.channels(32)
    assert lower == 2 * 32**2 * (9 * wide * width + wide * 3)


def test_parts_are_named_by_what_they_hold_and_as_before_where_a_size_is_given(layout):
    def names(size, device):
        settings = Relevance(channels_per_shard=size)
        planned = relevance.RelevancePlan.model_construct(folder="w/t", settings=settings)
        return [relevance.part_uri(planned, each) for each in relevance.shards(layout, settings, device)]

    assert names(24, "cpu") == names(24, "cuda")
    assert names(24, "cpu")[1].startswith("w/t/parts/24-part-00001-of-")
    automatic = names(0, "cpu") + names(24, "cpu")
    assert len(set(automatic)) == len(automatic)
    assert names(0, "cuda")[0] == "w/t/parts/b4.conv1-00000-00512.parquet"
