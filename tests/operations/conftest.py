"""A Prefect server, workers and a browser, as real as in production: started here, stopped by pid."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, sync_playwright

from styleclip_core import save_generator
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig

sys.path.insert(0, str(Path(__file__).parent))

from running import POOL, ROOT, Prefect, free_port, stop


@pytest.fixture
def prefect(tmp_path: Path, network_files: dict[str, str]) -> Iterator[Prefect]:
    """A server with a database and result storage of its own, and the work pool."""
    port, home = free_port(), tmp_path / "prefect"
    home.mkdir()
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "AWS_", "STYLECLIP_"))},
        "PREFECT_HOME": str(home), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "1", "PYTHONPATH": str(ROOT), "STYLECLIP_WORKERS": "1",
        "STYLECLIP_GENERATOR": network_files["generator"], "STYLECLIP_CLIP": network_files["clip"],
        "STYLECLIP_WORKSPACE": str(tmp_path / "workspace"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    running = Prefect(home, port, environment)
    try:
        running.serve()
        running.run("work-pool", "create", POOL, "--type", "process", "--overwrite")
        yield running
    finally:
        for process in reversed(running.processes):
            stop(process)


@pytest.fixture(scope="session")
def network_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A small generator and CLIP, as files."""
    from clip.model import CLIP

    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    config = GeneratorConfig(16, 8, 8, mapping_layers=2, channel_base=64, channel_max=6)
    save_generator(Generator(config).eval(), folder / "generator.safetensors")
    torch.save(CLIP(16, 32, (1, 1, 1, 1), 8, None, 77, 49408, 64, 1, 1).state_dict(), folder / "clip.pt")
    return {"generator": str(folder / "generator.safetensors"), "clip": str(folder / "clip.pt")}


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium of the operating system."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.fail("Chromium is missing; `make test` installs it with apt, or put one on the PATH")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()
