"""The reference's loops of the methods benchmark are what they say: ours gives the same where both agree."""

from dataclasses import replace

import pyarrow as pa
import pytest
import torch
from torch.testing import assert_close

from benchmarks import methods as benchmark
from benchmarks.gpu import relevance as gpu_relevance
from benchmarks.methods import Sizes, World, methods, summary
from benchmarks.published import PublishedScript
from benchmarks.reference import reference_mapper, reference_optimization, reference_table
from styleclip.data.world.quality import PROMPTS
from styleclip.tasks.settings import fast_relevance
from styleclip_core import load_clip, load_generator
from styleclip_core.inversion import RefinementSettings
from styleclip_core.mapper_training import PRESETS as MAPPER_PRESETS
from styleclip_core.mapper_training import new_mapper
from styleclip_core.optimization import PRESETS, optimize, published_embedding
from styleclip_core.prompts import embed_prompt
from styleclip_core.reference_compat import measure_as_published
from styleclip_core.relevance import RelevanceSettings, RelevanceTable
from styleclip_core.sampling import measure_statistics, sample_styles
from styleclip_core.style_space import StyleCode


@pytest.fixture(scope="module")
def networks(network_files):
    return load_generator(network_files["generator"]), load_clip(network_files["clip"])


@pytest.fixture(scope="module")
def w_plus(networks):
    generator, _ = networks
    random = torch.Generator().manual_seed(3)
    return generator.map(torch.randn(2, generator.config.z_dim, generator=random)).detach()


def test_table_is_that_of_the_compatible_measurement(networks):
    generator, clip = networks
    sampled = sample_styles(generator, seed=5, sample_ids=range(4), truncation_psi=1.0)
    ((_, _, codes),) = sampled
    found = measure_statistics([codes])
    mean, std = (StyleCode.from_flat(codes.layout, each[None].float()) for each in (found.mean, found.std))
    before = codes.flat().clone()
    table = reference_table(generator, clip, codes, mean, std)
    assert torch.equal(codes.flat(), before)
    parts = [
        measure_as_published(
            generator, clip.embed_images, codes, layer=layer.name, channels=range(layer.channels),
            mean=mean, std=std, settings=RelevanceSettings(batch_size=8),
        )
        for layer in generator.layout.editable
    ]  # fmt: skip
    ours = RelevanceTable.from_parts(generator.layout, parts)
    # PIL rounds CLIP's input to 8 bits
    cosine = torch.cosine_similarity(table.direction, ours.direction, dim=1)
    assert cosine.median() > 0.99


@pytest.mark.parametrize("space", ["w_plus", "s"])
def test_optimization_is_ours_without_batches(networks, w_plus, space):
    generator, clip = networks
    text = clip.embed_text(["grey hair"])
    settings = replace(PRESETS["published"], space=space, steps=6, epsilon=1e-4)
    *_, ours = optimize(generator, clip.embed_images, w_plus, text.expand(2, -1), settings)
    for index in range(2):
        one = w_plus[index : index + 1]
        codes = reference_optimization(generator, clip.embed_images, one, text[0], settings)
        latents = ours.latents[index : index + 1]
        expected = latents if space == "s" else generator.styles(latents).flat()
        assert_close(codes.flat(), expected, atol=1e-4, rtol=0)
        assert not torch.equal(codes.flat(), generator.styles(one).flat())


def test_mapper_lowers_the_published_loss(networks, w_plus):
    generator, clip = networks
    text = clip.embed_text(["grey hair"])[0]
    levels = replace(MAPPER_PRESETS["published"], levels=("coarse", "medium"), learning_rate=10)

    @torch.no_grad()
    def loss(mapper):
        step = 0.1 * mapper.step(w_plus)
        images = generator.synthesize(generator.styles(w_plus + step))
        return (1 - (clip.embed_images(images) @ text).mean() + 0.8 * step.square().mean()).item()

    trained = reference_mapper(generator, clip.embed_images, w_plus, text, 40, levels)
    assert loss(trained) < loss(new_mapper(generator, levels)) - 1e-4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The embedded world, with two photographs hardly refined and mappers of a handful of codes."""
    sizes = Sizes(photographs=2, slow=1, looked_at=100, steps=4, mapper_steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "RefinementSettings", lambda: RefinementSettings(steps=1))
        patch.setattr(benchmark, "_TRAINING_CODES", 8)
        patch.setattr(benchmark, "_VALIDATION_CODES", 2)
        yield World(sizes, tmp_path_factory.mktemp("methods"))


@pytest.mark.parametrize("name", ["optimization", "mapper"])
def test_faithful_rows_move_what_the_prompt_concerns_and_other_rows_more(world, name):
    prompt, rows = PROMPTS[0], methods(world)
    before = world.generator.styles(world.w_plus).editable()
    concerned = world.relevant(prompt).width > 0
    assert 0 < concerned.sum() < len(concerned)

    count, edit = rows[f"{name}, faithful"]
    edited = edit(prompt)
    moved = _moved(before, edited)
    assert count == edited.codes.batch_size == 2
    assert moved.any()
    assert not moved[~concerned].any()
    assert edited.prepared > 0  # of the channels, which no other row looks for

    assert _moved(before, rows[name][1](prompt))[~concerned].any()


def _moved(before, edited):
    # what only rounding tells apart, as other batches do, has not moved
    return ((edited.codes.editable() - before).abs() > 1e-5).any(dim=0)


def test_a_faithful_optimization_of_the_table_is_the_preset_of_the_core(world):
    prompt, settings = PROMPTS[1], replace(PRESETS["faithful"], steps=4)
    *_, ours = optimize(
        world.generator, world.clip.embed_images, world.w_plus,
        embed_prompt(world.clip, prompt.target).expand(2, -1), settings,
        embed_identity=world.identity.embed, neutral=embed_prompt(world.clip, prompt.neutral).expand(2, -1),
        scale=world.clip.logit_scale, channels=world.relevant(prompt),
    )  # fmt: skip
    edited = methods(world)["optimization, faithful"][1](prompt)
    assert torch.equal(edited.codes.flat(), ours.latents)


def test_summary_by_hand():
    def table(target):
        rest = {"others": [0.5] * 2, "identity": [1.0] * 2, "seconds": [0.25] * 2, "prepared": [3.0] * 2}
        return pa.table({"target": target, **rest})

    # means 2 and 3; variances of the means 1 and 0; the error is sqrt(1 + 0) / 2
    cells = summary([table([1.0, 3.0]), table([3.0, 3.0])])
    assert cells == ["2", "2.500 ± 0.500", "0.500 ± 0.000", "1.000 ± 0.000", "0.25", "3"]


def test_a_gpu_is_measured_with_the_fast_mode_of_the_pipeline():
    usual = fast_relevance({})
    assert (usual.derivatives, usual.tolerance, usual.minimum) == (
        gpu_relevance.DIRECTIONS, gpu_relevance.TOLERANCE, gpu_relevance.MINIMUM,
    )  # fmt: skip


def test_the_published_script_is_ours_with_the_published_losses(networks, w_plus):
    generator, clip = networks
    settings = replace(PRESETS["published"], steps=6, epsilon=1e-4)
    text = clip.embed_text(["grey hair"]).expand(2, -1)
    *_, ours = optimize(generator, published_embedding(clip), w_plus, text, settings)
    script = PublishedScript(generator, clip)
    for index in range(2):
        found = script.optimize(w_plus[index : index + 1], "grey hair", settings)
        assert_close(found[0], ours.latents[index], atol=1e-4, rtol=0)
        assert not torch.equal(found[0], w_plus[index])
