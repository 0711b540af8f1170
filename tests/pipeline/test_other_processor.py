"""A run that begins on one processor and goes on on another: nothing is refused, mixed up or done twice.

The other processor is a process with other kernels and another number of threads. Which bits they change
depends on this machine, so of bits it is asserted that artifacts differ where the kernels do.
"""

import io
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from styleclip.flows.edit_images import edit_images
from styleclip.tasks.artifacts import outcomes
from styleclip.tasks.artifacts.distances import farthest
from styleclip.tasks.directions import relevance, sampling
from styleclip.tasks.editing import shards as editing
from styleclip.tasks.photographs import inversion
from styleclip.tasks.photographs.datasets.front import locate
from styleclip.tasks.photographs.images import index_images, read_shard
from styleclip.tasks.running.run import run_here
from styleclip.tasks.settings import DataSet, Execution, Inversion, Models, Relevance, Sampling
from styleclip.tasks.settings.edits import Edit
from styleclip_core import load_generator
from tests.left import files_of
from tests.pipeline.test_flows import encoded, portrait
from tests.pipeline.test_retry import press_retry

pytestmark = pytest.mark.usefixtures("prefect_server")
ROOT = Path(__file__).parents[2]
OTHER = {
    "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default",
    "OMP_NUM_THREADS": "1" if torch.get_num_threads() > 1 else "2",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin would wait for whatever else has a core
}  # fmt: skip
SETTINGS = {
    "edits": [Edit(target="hat", beta=0.0, templates="none")],
    "sampling": Sampling(statistics=20, codes=2),
    "relevance": Relevance(samples=2, channels_per_shard=8),
    "inversion": Inversion(steps=2),
    "execution": Execution(shard_size=2),
}
PHOTOGRAPHS = [f"p{number}.png" for number in range(6)]
BEGUN = ("b4.conv1", "b8.conv0")  # layers that the first processor measures
LAST = "p0.png"  # photograph whose shard the other processor does not come to
ROUNDING = 1e-3  # of a column's size, as docs/reproducibility.md says
QUOTIENTS = (
    2e-2  # of relevance and what follows from it: rounding, divided by how little a channel moves CLIP
)


def watch(patch, *, layers=None):
    """Note what is measured, inverted and edited; fail at all but some layers."""
    done = defaultdict(list)
    measure, invert, edit = relevance.measure_channels, inversion._invert, editing._edit_batch

    def measuring(*given, layer, channels, **others):
        if layers is not None and layer not in layers:
            raise RuntimeError("injected fault")
        done["measured"].append(f"{layer} {channels}")
        return measure(*given, layer=layer, channels=channels, **others)

    def inverting(run, planned, log, reader, todo):
        done["inverted"] += [key for key, _ in todo]
        return invert(run, planned, log, reader, todo)

    def editing_(planned, sources, batch):
        done["edited"] += [row["image_key"] for row in batch]
        return edit(planned, sources, batch)

    patch.setattr(relevance, "measure_channels", measuring)
    patch.setattr(inversion, "_invert", inverting)
    patch.setattr(editing, "_edit_batch", editing_)
    return done


def compute(models, photos, workspace, *, without=None):
    """Measure and invert all shards but that of one photograph, as tasks of the flow do."""
    run = run_here(models, workspace)
    planned = relevance.plan(run, sampling.plan(run, SETTINGS["sampling"]), SETTINGS["relevance"])
    for shard in relevance.shards(run.generator.layout, planned.settings, run.device):
        relevance.measure_shard.fn(run, planned, shard, None)

    inverted = inversion.plan(run, photos, SETTINGS["inversion"])
    for shard in index_images.fn(run, locate(photos, DataSet()), SETTINGS["execution"].shard_size).shards:
        if without not in dict(read_shard(shard)):
            inversion.invert_shard.fn(run, inverted, shard)


def compute_elsewhere(files, photos, workspace):
    """Be the other processor, and say what was done, and what its kernels make of a face."""
    with pytest.MonkeyPatch.context() as patch:
        done = watch(patch)
        compute(Models(**files), photos, workspace, without=LAST)
    sys.stdout.write(json.dumps(done | {"bits": bits(files["generator"])}))


def bits(generator_file):
    """Return what the kernels of this process make of a face."""
    generator = load_generator(generator_file)
    with torch.no_grad():
        w_plus = generator.mapping.w_avg.expand(1, generator.num_ws, -1) + 0.5
        return generator.synthesize(generator.styles(w_plus)).numpy().tobytes().hex()


@pytest.fixture(scope="module")
def played(prefect_server, network_files, tmp_path_factory):
    """A run undisturbed; and again: begun here, continued elsewhere, and retried here."""
    photos, out = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("processors") / "out"
    for number, name in enumerate(PHOTOGRAPHS):
        (photos / name).write_bytes(encoded(portrait(number)))
    parameters = {"models": Models(**network_files), "photos": str(photos), "out": str(out), **SETTINGS}

    # in the same place, as names of results depend on it
    edit_images(**parameters)
    undisturbed = files_of(out)
    shutil.rmtree(out)

    with pytest.MonkeyPatch.context() as patch:
        begun = watch(patch, layers=BEGUN)
        first = edit_images(**parameters, return_state=True)
        assert first.is_failed(), first.message

    sent = json.dumps([network_files, str(photos), str(out / "workspace")])
    code = "import json, sys; from tests.pipeline import test_other_processor as here; "
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        f"{code}here.compute_elsewhere(*json.loads(sys.argv[1]))",
    ]
    environment = os.environ | OTHER | {"PYTHONPATH": str(ROOT)}
    other = subprocess.run([*command, sent], env=environment, capture_output=True, text=True, check=False)
    assert other.returncode == 0, other.stdout[-2000:] + other.stderr[-4000:]
    elsewhere = json.loads(other.stdout.splitlines()[-1])

    with pytest.MonkeyPatch.context() as patch:
        retried = watch(patch)
        second = press_retry(edit_images, first.state_details.flow_run_id, parameters)
    return SimpleNamespace(
        photos=str(photos), out=out, undisturbed=undisturbed, begun=begun, elsewhere=elsewhere,
        retried=retried, second=second, files=files_of(out),
    )  # fmt: skip


def test_the_other_processors_artifacts_are_found_and_only_what_is_missing_is_computed(played):
    assert played.second.is_completed(), played.second.message
    assert {each.split()[0] for each in played.begun["measured"]} == set(BEGUN)
    assert not set(played.begun["measured"]) & set(played.elsewhere["measured"])
    assert len(played.elsewhere["measured"]) == 3
    assert played.retried["measured"] == []

    assert LAST in played.retried["inverted"]
    assert len(played.elsewhere["inverted"]) >= 2
    assert sorted(played.elsewhere["inverted"] + played.retried["inverted"]) == PHOTOGRAPHS
    assert sorted(played.retried["edited"]) == PHOTOGRAPHS
    assert [step.computed for step in played.second.result().steps[:2]] == [0, 0]


def test_artifacts_are_those_of_an_undisturbed_run_but_for_rounding(played, network_files):
    assert set(played.files) == set(played.undisturbed)
    differing = set()
    for name, data in played.files.items():
        versions = [io.BytesIO(each) for each in (data, played.undisturbed[name])]
        if name.endswith(".parquet") and "pages" not in name:
            column, distance = farthest(*map(pq.ParquetFile, versions))
            tolerance = ROUNDING if name.startswith(("workspace/styles", "workspace/latents")) else QUOTIENTS
            assert distance <= tolerance, (name, column, distance)
            differing |= {name} if distance else set()
        elif name.startswith("images/"):
            here, there = (np.asarray(Image.open(each), int) for each in versions)
            assert abs(here - there).max() <= 2, name  # levels of 255

    # on a processor whose kernels are all alike there is nothing to tell apart
    assert bool(differing) == (played.elsewhere["bits"] != bits(network_files["generator"]))


def test_two_writers_with_different_kernels_do_not_refuse_each_other(played, network_files, monkeypatch):
    # this one looked before the others wrote: it computes everything, and then finds it written
    for module in (relevance, outcomes):
        monkeypatch.setattr(module, "is_complete", lambda _: False)
    done = watch(monkeypatch)
    compute(Models(**network_files), played.photos, str(played.out / "workspace"))

    assert sorted(done["measured"]) == sorted(played.begun["measured"] + played.elsewhere["measured"])
    assert sorted(done["inverted"]) == PHOTOGRAPHS
    now = {name: data for name, data in files_of(played.out).items() if name.endswith(".parquet")}
    assert now == {name: data for name, data in played.files.items() if name.endswith(".parquet")}
