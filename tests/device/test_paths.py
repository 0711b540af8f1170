"""The paths of a GPU, on an accelerator that keeps account: what is mixed with the host, and what waits.

A budget is of what comes with every further step, code or batch: the difference of two runs of which one does
more of them. What a shard does once is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from styleclip.tasks.directions import relevance, sampling
from styleclip.tasks.directions import style_directions as directions
from styleclip.tasks.editing import plans as planning
from styleclip.tasks.editing import shards as editing
from styleclip.tasks.editing.methods import PreparedEdit
from styleclip.tasks.evaluation import image_scores
from styleclip.tasks.evaluation.attributes import AttributePrompts
from styleclip.tasks.evaluation.labels import LabelPrompt
from styleclip.tasks.evaluation.panel import Panel, Place
from styleclip.tasks.photographs import images, inversion
from styleclip.tasks.photographs.datasets.front import locate
from styleclip.tasks.running import networks
from styleclip.tasks.running.run import Networks, Run, identify_models
from styleclip.tasks.settings import DataSet, Inversion, Relevance, Sampling
from styleclip.tasks.settings.edits import EditVariant, StepVariant
from styleclip_core.descent import Chunks
from styleclip_core.editing import EditedLatents
from styleclip_core.feature_inversion import FeatureSettings, find_residuals
from styleclip_core.inversion import RefinementSettings, refine
from styleclip_core.mapper_training import MapperTraining, MapperTrainingSettings
from styleclip_core.optimization import OptimizationSettings, optimize
from styleclip_core.pivotal import PivotalSettings, tune
from tests.device.accelerator import NAME, Account, accounting, to_device

PHOTOGRAPHS = 4


@pytest.fixture(scope="module", autouse=True)
def whole_parameters() -> Iterator[None]:
    """Let torch put new parameters in place of old ones when a network is moved."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    yield
    torch.__future__.set_overwrite_module_params_on_conversion(False)
    networks._loaded.clear()


@pytest.fixture(scope="module")
def run(network_files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose networks are on the accelerator."""
    folder, chosen = tmp_path_factory.mktemp("device"), Networks(**network_files)
    networks._loaded.clear()
    with accounting() as account:
        hashes = identify_models.fn(chosen, NAME)
    assert account.of("mismatch") == {}
    return Run(
        models=chosen, hashes=hashes, workspace=str(folder / "work"), out=str(folder / "out"), device=NAME
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(PHOTOGRAPHS):
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def latents(run: Run, count: int) -> torch.Tensor:
    z = torch.randn(count, run.generator.config.z_dim, generator=torch.Generator().manual_seed(1))
    return run.generator.map(to_device(z)).detach()


def per_more(work: Callable[[int], object], fewer: int, more: int, kind: str) -> dict[str, float]:
    """Return how often each function crosses for one more step; of those that do at all."""
    accounts = list[Account]()
    for count in (fewer, more):
        with accounting() as account:
            work(count)
        assert account.of("mismatch") == {}
        accounts.append(account)
    few, many = (account.of(kind) for account in accounts)
    found = {place: (many[place] - few.get(place, 0)) / (more - fewer) for place in many}
    return {place: each for place, each in found.items() if each > 0}


def test_the_account_sees_what_a_gpu_would_refuse_or_wait_for():
    with accounting() as account:
        there = torch.zeros(3, device=NAME)
        there + torch.ones(3)
    assert sum(account.of("mismatch").values()) == 1
    with accounting() as account:
        there.sum().item()
        there[there > 0]
        there.cpu()
        torch.tensor([1.0], device=NAME)
        there[torch.tensor([0, 1])]
    assert sum(account.of("sync").values()) == 3
    assert sum(account.of("upload").values()) == 2
    with accounting(), pytest.raises(NotImplementedError):
        there[[0, 1]]  # CUDA makes a tensor of the list, and waits: not to be found anywhere
    with accounting() as account:
        torch.nn.functional.normalize(there + 1, dim=0).square().mean()
    assert not account.found


def test_synthesis_waits_for_nothing(run):
    w_plus = latents(run, 2)
    with accounting() as account, torch.no_grad():
        Chunks(1).over(
            2, w_plus.device,
            lambda index: run.clip.embed_whole(run.generator.synthesize(run.generator.styles(w_plus[index]))),
        )  # fmt: skip
    assert not account.found


def test_a_step_of_inversion_waits_once(run):
    target = run.generator.synthesize(run.generator.styles(latents(run, 2))).detach()
    start = latents(run, 2) * 0.5

    def refined(steps: int) -> None:
        list(refine(run.generator, target, start, RefinementSettings(steps=steps, patience=None)))

    assert per_more(refined, 2, 6, "sync") == {"styleclip_core/descent.py:judge": 1}
    assert per_more(refined, 2, 6, "upload") == {}


@pytest.mark.parametrize("space", ["w_plus", "s"])
def test_a_step_of_an_optimization_waits_once(run, space):
    text = torch.nn.functional.normalize(to_device(torch.randn(2, run.clip.embedding_dim)), dim=1)

    def optimized(steps: int) -> None:
        settings = OptimizationSettings(space=space, steps=steps)
        list(optimize(run.generator, run.clip.embed_whole, latents(run, 2), text, settings))

    assert per_more(optimized, 3, 7, "sync") == {"styleclip_core/descent.py:judge": 1}
    assert per_more(optimized, 3, 7, "upload") == {}


def test_a_step_of_pivotal_tuning_waits_once(run):
    target = run.generator.synthesize(run.generator.styles(latents(run, 2))).detach()

    def tuned(steps: int) -> None:
        list(tune(run.generator, target, latents(run, 2), PivotalSettings(steps=steps)))

    assert per_more(tuned, 2, 5, "sync") == {"styleclip_core/descent.py:judge": 1}
    # random codes that hold the generator elsewhere, drawn by the host so that a seed means the same anywhere
    assert per_more(tuned, 2, 5, "upload") == {"styleclip_core/pivotal.py:_codes": 1}


def test_a_step_towards_a_residual_never_waits(run):
    target = run.generator.synthesize(run.generator.styles(latents(run, 2))).detach()

    def found(steps: int) -> None:
        find_residuals(run.generator, target, latents(run, 2), FeatureSettings(steps=steps))

    assert per_more(found, 2, 5, "sync") == {}
    assert per_more(found, 2, 5, "upload") == {}


def test_a_step_of_a_mapper_s_training_waits_once(run):
    with accounting():
        codes, text = latents(run, 8), run.clip.embed_text(["hat"])[0]

    def trained(steps: int) -> None:
        settings = MapperTrainingSettings(
            kind="style", steps=steps, batch_size=2, identity_weight=0.0, validate_every=1000
        )
        training = MapperTraining(run.generator, run.clip.embed_whole, text, codes[:6], codes[6:], settings)
        list(training.run())

    assert per_more(trained, 2, 6, "sync") == {"styleclip_core/mapper_training.py:_losses": 1}


@pytest.fixture(scope="module")
def shard(run, photos):
    (found,) = images.index_images.fn(run, locate(str(photos), DataSet()), 10).shards
    return found


@pytest.fixture(scope="module")
def table(run) -> directions.TableRef:
    """A relevance table that was measured on the accelerator."""
    with accounting() as account:
        styles = sampling.plan(run, Sampling(statistics=20, codes=4))
        sampling.sample_codes.fn(run, styles)
        part = sampling.sample_shard.fn(run, styles, 0)
        sampling.merge_statistics.fn(run, styles, [part.uri])
        planned = relevance.plan(run, styles, Relevance(samples=4))
        parts = [
            relevance.measure_shard.fn(run, planned, each, None).uri
            for each in relevance.shards(run.generator.layout, planned.settings, run.device)
        ]
        relevance.merge_relevance.fn(run, planned, parts)
    assert account.of("mismatch") == {}
    return directions.TableRef(
        relevance=planned.table, statistics=styles.statistics, fingerprint=planned.fingerprint
    )


def test_a_code_more_costs_exact_relevance_nothing_but_its_moves(run, table):
    layer = run.generator.layout.editable[0].name
    codes = run.generator.styles(latents(run, 6))
    width = run.generator.layout.layer(layer).channels
    mean, std = torch.zeros(width), torch.ones(width)

    def measured(count: int) -> None:
        relevance.measure_channels(
            run.generator, run.clip.embed_whole, codes.select(slice(0, count)), layer=layer,
            channels=range(width), mean=mean, std=std, settings=Relevance(samples=4),
        )  # fmt: skip

    assert per_more(measured, 2, 6, "sync") == {}


def test_invert_and_edit_go_through_and_wait_by_the_batch(run, photos, shard, table):
    variant = StepVariant(neutral="hair", target="grey hair", alpha=1.0, beta=0.0)
    with accounting() as account:
        inverted = inversion.plan(run, str(photos), Inversion(steps=1))
        assert inversion.invert_shard.fn(run, inverted, shard).failed == 0
    assert account.of("mismatch") == {}
    # scores and latents of a batch cross together, not image by image
    assert sum(account.of("sync").values()) < 3 * PHOTOGRAPHS

    with accounting() as account:
        named = directions.NamedStep(name="grey", variant=variant)
        (step,) = directions.compute_directions.fn(run, [named], table)
        edit = PreparedEdit(variant=EditVariant(name="grey", steps=(variant,)), steps=[step])
        plan = planning.plan(run, edit, inverted)
        assert editing.edit_shard.fn(run, [plan], shard).failed == 0
    assert account.of("mismatch") == {}
    assert account.of("sync").get("styleclip/tasks/editing/shards.py:_per_image", 0) == 1


def test_what_was_edited_there_is_what_is_edited_here(run, photos, shard, table, network_files, tmp_path):
    source = EditedLatents(latents(run, 2))
    there = run.generator.synthesize(source.codes(run.generator)).detach().cpu()
    from styleclip_core import load_generator

    here = load_generator(network_files["generator"])
    w_plus = source.w_plus.detach().cpu()
    torch.testing.assert_close(there, here.synthesize(here.styles(w_plus)), rtol=0, atol=1e-6)


def test_images_are_scored_by_prompts_there(run, photos, shard):
    prompts = [
        LabelPrompt(prompt="a hat", group="on the head"), LabelPrompt(prompt="a crown", group="on the head"),
        LabelPrompt(prompt="a smile", negative="a face"),
    ]  # fmt: skip
    with accounting() as account:
        planned = image_scores.plan_scores.fn(run, str(photos), prompts, "none")
        assert image_scores.score_shard.fn(run, planned, shard).failed == 0
    assert account.of("mismatch") == {}


def test_edits_are_evaluated_there_and_their_scores_cross_once(run):
    pictures = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    attributes = [AttributePrompts(name="grey", positive="grey hair", negative="hair")]
    prompts = (("hair", "grey hair"),)
    places = [Place(number // 2, prompts, "sweep", float(number % 2 * 2 - 1)) for number in range(4)]
    with accounting() as account:
        panel = Panel(run, "none", attributes)
        found = panel.score(pictures[:2], pictures[2:], places)
    assert len(found) == 4
    assert account.of("mismatch") == {}
    # scores, and logits of either side
    assert account.of("sync")["styleclip/tasks/evaluation/panel.py:score"] == 3
