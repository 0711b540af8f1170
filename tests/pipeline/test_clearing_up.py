"""Every flow deletes what killed writers left aside where it writes, before it does anything else."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from styleclip.flows import engine
from styleclip.flows import run as runs
from styleclip.flows.build_relevance import build_relevance
from styleclip.flows.explore_channels import Question
from styleclip.tasks.settings import Execution, FaceSource, Models, Relevance, Sampling
from styleclip.tasks.settings.edits import Edit
from styleclip.tasks.storage.temporaries import PREFIX

ROOT = Path(__file__).parents[2]
DEPLOYED = sorted(
    {each["entrypoint"] for each in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}
)
GIVEN = {
    "models": Models(generator="g.pkl", encoder="e.pt"), "edits": [Edit(target="hat", alpha=2.0)],
    "question": Question(target="hat"), "targets": ["hat"], "source": FaceSource(landmarks="l.parquet"),
    "photos": "photos", "images": "photos", "prompts": [], "workspace": "work", "out": "out",
    "manifest": "out/batches/0/manifest.parquet",
}  # fmt: skip


class ClearedUpError(Exception):
    pass


@pytest.mark.parametrize("entrypoint", [each for each in DEPLOYED if "paste_faces" not in each])
def test_a_flow_clears_up_first(entrypoint, monkeypatch):
    """Pasting first reads the table that says where its photographs are, which must not be written to."""

    def work(execution):
        raise ClearedUpError

    places = []
    monkeypatch.setattr(runs, "delete_stale_temporaries", places.append)
    monkeypatch.setattr(engine, "pick_device", work)
    monkeypatch.setattr(runs, "_check_inputs", lambda *_: None)  # none of these places is there
    module, name = entrypoint.split(":")
    function = getattr(importlib.import_module(module), name).fn
    wanted = [each for each in inspect.signature(function).parameters if each in GIVEN]
    with pytest.raises(ClearedUpError):
        function(**{each: GIVEN[each] for each in wanted})
    assert "work" in places
    assert not any(place.startswith("photos") for place in places)


@pytest.mark.usefixtures("prefect_server")
def test_what_a_killed_build_left_aside_is_gone_after_the_next(network_files, tmp_path):
    aside = tmp_path / "relevance" / "parts"
    aside.mkdir(parents=True)
    program = (
        "from styleclip.tasks.storage.temporaries import temporary_name; "
        f"open({str(aside)!r} + '/' + temporary_name(), 'w')"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
    assert any(path.name.startswith(PREFIX) for path in aside.iterdir())
    models = Models(generator=network_files["generator"], clip=network_files["clip"])
    execution = Execution(device="cpu")
    build_relevance(models, str(tmp_path), Sampling(statistics=20, codes=2), Relevance(samples=2), execution)
    assert not any(path.name.startswith(PREFIX) for path in tmp_path.rglob("*"))
