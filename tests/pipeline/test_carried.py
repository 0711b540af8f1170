"""Words that no channel carries: the warning before images are edited, and the refusal."""

from __future__ import annotations

import pytest

from styleclip.flows.inspect_prompts import inspect_prompts
from styleclip.tasks.inspection import carried
from styleclip.tasks.inspection.carried import Carried, warnings
from styleclip.tasks.settings import Execution, Models, Relevance, Sampling
from styleclip.tasks.settings.edits import Edit
from styleclip_core.errors import PromptError
from tests.pipeline.test_flows import encoded, portrait, run

EDIT = Edit(name="grey", target="grey hair", alpha=1.0, beta=0.0)


def test_a_pair_of_prompts_is_warned_of_by_the_best_of_its_settings(monkeypatch):
    monkeypatch.setattr(carried, "CARRIED", 0.1)
    near, far = (Carried(neutral="face", target="hat", distance=0.5, share=share) for share in (0.1, 0.6))
    other = Carried(neutral="face", target="astronaut", distance=0.02, share=0.5)
    (line,) = warnings([near, far, other])
    assert line.startswith(
        "face -> astronaut: no channel carries these words. CLIP holds the prompts 0.020 apart"
    )
    assert "cosine 0.50, which makes 0.010; below 0.1" in line
    assert len(warnings([near])) == 1


@pytest.mark.usefixtures("prefect_server")
def test_a_run_warns_and_goes_on_and_a_strict_one_ends_before_it_edits(
    network_files, tmp_path, monkeypatch, caplog
):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "p0.png").write_bytes(encoded(portrait(0)))
    models = Models(**network_files)

    def edited(place, **settings):
        return run(models, tmp_path / "photos", tmp_path / place, [EDIT], **settings)

    monkeypatch.setattr(carried, "CARRIED", 3.0)  # more than two unit vectors can be apart
    with pytest.raises(PromptError, match="face -> grey hair: no channel carries these words"):
        edited("strict", execution=Execution(strict=True))
    assert not (tmp_path / "strict" / "images").exists()

    assert edited("warned").report.rows == 1
    assert "no channel carries these words" in caplog.text

    monkeypatch.setattr(carried, "CARRIED", 0.0)
    assert edited("carried", execution=Execution(strict=True)).report.rows == 1


@pytest.mark.usefixtures("prefect_server")
def test_prompts_that_are_looked_into_say_it_too(network_files, tmp_path, monkeypatch):
    monkeypatch.setattr(carried, "CARRIED", 3.0)
    settings = {"sampling": Sampling(statistics=20, codes=3), "relevance": Relevance(samples=3)}
    models, workspace = Models(**network_files), str(tmp_path / "workspace")
    found = inspect_prompts(models, [EDIT], workspace, **settings)
    assert [line.partition(":")[0] for line in found.uncarried] == ["face -> grey hair"]
