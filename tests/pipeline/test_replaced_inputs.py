"""What a run reads may be replaced while it waits for its Retry: nothing new is filed under the old name."""

import ast
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from styleclip.tasks.artifacts import ChangedInputError
from styleclip.tasks.directions import relevance, sampling
from styleclip.tasks.directions import style_directions as directions
from styleclip.tasks.editing import mappers
from styleclip.tasks.editing import plans as planning
from styleclip.tasks.editing import shards as editing
from styleclip.tasks.editing.methods import PreparedEdit
from styleclip.tasks.photographs import images, inversion
from styleclip.tasks.photographs.datasets.front import locate
from styleclip.tasks.running import networks as models
from styleclip.tasks.running.run import Networks, run_here
from styleclip.tasks.settings import DataSet, Inversion, MapperTraining, Relevance, Sampling
from styleclip.tasks.settings.edits import EditVariant, StepVariant
from styleclip_core import load_generator
from styleclip_core.mapper_training import MapperTrainingSettings, new_mapper
from styleclip_core.models.identity import CompactIdentity, IdentityConfig, save_identity
from styleclip_core.models.mapper import save_mapper
from tests.small_networks import write_small_networks

pytestmark = pytest.mark.usefixtures("prefect_server")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def networks(tmp_path) -> Networks:
    """Networks in files of this test's own, to be replaced."""
    found = write_small_networks(tmp_path / "networks")
    torch.manual_seed(0)
    place = tmp_path / "networks" / "identity.safetensors"
    save_identity(CompactIdentity(IdentityConfig(16, (4, 6), 10, 5)).eval(), place)
    return Networks(**found, identity=str(place))


@pytest.fixture
def photos(tmp_path) -> str:
    (tmp_path / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photos" / "p.png")
    return str(tmp_path / "photos")


def direction(run, variant, table):
    """Compute the style direction of one step."""
    (step,) = directions.compute_directions.fn(
        run, [directions.NamedStep(name="grey", variant=variant)], table
    )
    return step


def replace(uri: str) -> bytes:
    """Put other weights of the same architecture in place of a file, and forget what is loaded of it."""
    before, changed = Path(uri).read_bytes(), bytearray(Path(uri).read_bytes())
    if uri.endswith(".pt"):
        held = torch.load(uri, weights_only=True)
        larger = {name: value * 1.01 for name, value in held["state_dict"].items()}
        torch.save({**held, "state_dict": larger}, uri)
    else:
        changed[-2] ^= 1  # a bit of the last number
        Path(uri).write_bytes(changed)
    restart()
    return before


def restart() -> None:
    """Forget all networks, as a new process of a worker would not know them."""
    models._loaded.clear()


def put_back(uri: str, before: bytes) -> None:
    Path(uri).write_bytes(before)
    restart()


@pytest.mark.parametrize("kind", ["generator", "clip", "encoder", "identity"])
def test_replaced_weights_are_refused_at_the_point_of_use_with_both_names(networks, tmp_path, kind):
    run, uri = run_here(networks, str(tmp_path)), getattr(networks, kind)
    old = getattr(run.hashes, kind)
    before = replace(uri)
    new = getattr(run_here(networks).hashes, kind)
    assert new != old
    restart()
    with pytest.raises(models.ChangedWeightsError, match=rf"{kind} .*{new[:16]}.*{old[:16]}.*put the old"):
        getattr(run, kind)
    put_back(uri, before)
    assert getattr(run, kind).fingerprint == old


def test_a_process_that_has_loaded_the_old_weights_goes_on_with_them(networks, tmp_path):
    run = run_here(networks, str(tmp_path))
    network = run.generator
    file = Path(networks.generator)
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    assert run.generator is network
    # the next run of the same process sees the new ones
    assert run_here(networks).hashes.generator != run.hashes.generator


def test_no_task_loads_a_network_past_that_check():
    """Networks are reached through the run, or with the hash that their user's results are named after."""
    made = {True: [], False: []}
    for path in sorted([*(ROOT / "tasks").rglob("*.py"), *(ROOT / "flows").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and "Wanted" in ast.unparse(node.func):
                expects = len(node.args) > 3 or any(each.arg == "expected" for each in node.keywords)
                made[expects].append(path.stem)
    assert sorted(made[True]) == ["faces", "mappers", "run"]  # what computes
    assert sorted(made[False]) == ["faces", "mappers", "run"]  # what names results


def edit_plan(run, photos):
    """An inverted photograph and an edit by a direction along every channel."""
    (shard,) = images.index_images.fn(run, locate(photos, DataSet()), 10).shards
    inverted = inversion.plan(run, photos, Inversion(steps=1))
    styles = sampling.plan(run, Sampling(statistics=20, codes=2))
    sampling.sample_codes.fn(run, styles)
    part = sampling.sample_shard.fn(run, styles, 0)
    sampling.merge_statistics.fn(run, styles, [part.uri])
    table = relevance.plan(run, styles, Relevance(samples=2))
    return shard, inverted, styles, table


def measured(run, table):
    layout = run.generator.layout
    parts = [
        relevance.measure_shard.fn(run, table, each, None).uri
        for each in relevance.shards(layout, table.settings, run.device)
    ]
    relevance.merge_relevance.fn(run, table, parts)
    return directions.TableRef(
        relevance=table.table, statistics=table.styles.statistics, fingerprint=table.fingerprint
    )


def written(workspace: Path) -> set[Path]:
    return {path for path in workspace.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["generator", "clip", "encoder", "identity"])
def test_every_step_that_uses_a_replaced_network_stops_before_it_writes(networks, photos, tmp_path, kind):
    run = run_here(networks, str(tmp_path / "w"), str(tmp_path / "out"))
    shard, inverted, styles, table = edit_plan(run, photos)
    built = measured(run, table)
    variant = StepVariant(neutral="hair", target="grey hair", alpha=1.0, beta=0.0)
    step = direction(run, variant, built)
    edit = PreparedEdit(variant=EditVariant(name="grey", steps=(variant,)), steps=[step])
    plans = [planning.plan(run, edit, inverted)]
    inversion.invert_shard.fn(run, inverted, shard)

    other = run.model_copy(update={"workspace": str(tmp_path / "v")})  # nothing is done there yet
    users = {
        "generator": ["sample", "measure", "invert", "edit", "direction", "mapper"],
        "clip": ["measure", "edit", "direction", "mapper"],
        "encoder": ["invert"],
        "identity": ["invert", "edit"],
    }[kind]
    elsewhere = sampling.plan(other, Sampling(statistics=20, codes=3))
    fresh = inversion.plan(other, photos, Inversion(steps=1))
    here = relevance.plan(other, styles, Relevance(samples=2))
    first = relevance.shards(run.generator.layout, here.settings, run.device)[0]
    work = {
        "sample": lambda: sampling.sample_codes.fn(other, elsewhere),
        "measure": lambda: relevance.measure_shard.fn(other, here, first, None),
        "invert": lambda: inversion.invert_shard.fn(other, fresh, shard),
        "edit": lambda: editing.edit_shard.fn(run, plans, shard),
        "direction": lambda: direction(other, variant, built),
        "mapper": lambda: mappers.train_mapper.fn(
            other, mappers.plan(other, "hat", MapperTraining(steps=1, codes=4, validation=1))
        ),
    }
    before = replace(getattr(networks, kind))
    kept = written(tmp_path)
    for name in users:
        restart()
        directions_cached = mappers.target_embedding.__globals__
        directions_cached["_direction"].cache_clear()
        directions_cached["_embedding"].cache_clear()
        with pytest.raises(models.ChangedWeightsError, match=kind):
            work[name]()
    assert written(tmp_path) == kept

    # with the old weights back, Retry finishes what it began
    put_back(getattr(networks, kind), before)
    assert editing.edit_shard.fn(run, plans, shard).failed == 0


def test_a_replaced_mapper_is_refused(networks, tmp_path):
    run = run_here(networks, str(tmp_path))
    generator = load_generator(networks.generator)
    place = tmp_path / "mapper.safetensors"
    save_mapper(new_mapper(generator, MapperTrainingSettings(seed=1, levels=("coarse", "medium"))), place)
    variant = StepVariant(neutral="face", target="hat", method="mapper", mapper=str(place), strength=0.1)
    step = mappers.prepare_mapper.fn(run, variant)
    assert mappers.prepared_mapper(run, step).fingerprint == step.content
    save_mapper(new_mapper(generator, MapperTrainingSettings(seed=2, levels=("coarse", "medium"))), place)
    restart()
    with pytest.raises(models.ChangedWeightsError, match=f"mapper at .* named after {step.content[:16]}"):
        mappers.prepared_mapper(run, step)
    assert mappers.prepare_mapper.fn(run, variant).fingerprint != step.fingerprint  # a new run takes it


def test_a_replaced_table_or_direction_is_refused(networks, photos, tmp_path):
    run = run_here(networks, str(tmp_path / "w"))
    *_, table = edit_plan(run, photos)
    built = measured(run, table)
    variant = StepVariant(neutral="hair", target="grey hair", alpha=1.0, beta=0.0)
    step = direction(run, variant, built)
    other = step.model_copy(update={"fingerprint": "0" * 32})
    with pytest.raises(ChangedInputError, match=f"{step.fingerprint[:16]}, not 0000000000000000"):
        directions.read_direction(other.uri, other.fingerprint)

    # another table of the same networks in the place of the one that the run began with
    second = relevance.plan(run, table.styles, Relevance(samples=1))
    replacement = measured(run, second)
    shutil.copy(replacement.relevance, built.relevance)
    shutil.rmtree(Path(step.uri).parent)
    with pytest.raises(ChangedInputError, match=r"or its statistics have changed since this run began"):
        direction(run, variant, built)
