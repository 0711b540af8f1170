"""Small networks for the core tests: real classes, few channels, weights from fixed seeds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from styleclip_core.models.stylegan2 import Generator, GeneratorConfig
from tests.small_networks import write_clip

GOLDEN = Path(__file__).parent.parent / "golden"
sys.path[:0] = [str(GOLDEN), str(Path(__file__).parent)]

TINY = GeneratorConfig(resolution=16, z_dim=8, w_dim=8, mapping_layers=2, channel_base=128, channel_max=12)


@pytest.fixture(scope="session")
def generator() -> Generator:
    torch.manual_seed(0)
    built = Generator(TINY)
    with torch.no_grad():
        built.mapping.w_avg.normal_(std=0.1)
        for name, parameter in built.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.05)
    return built.eval().requires_grad_(False)


@pytest.fixture
def codes(generator):
    z = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    return generator.styles(generator.map(z))


@pytest.fixture(scope="session")
def golden_state():
    """Weights of the reference runs: a pattern of names and shapes, see tests/golden/fill.py."""
    from fill import fill_state

    def load(name: str, keep: tuple[str, ...]) -> dict[str, torch.Tensor]:
        keys = json.loads((GOLDEN / f"{name}.keys.json").read_text())
        state = fill_state({k: tuple(v) for k, v in keys.items()}, equalized=True, keep=keep)
        return {key: torch.from_numpy(np.asarray(value)) for key, value in state.items()}

    return load


_PARITY: list[tuple[str, float, float]] = []


@pytest.fixture
def parity(request):
    """Compare with a golden array: within 1e-4 of its range; the figure is shown at the end of the run."""

    def check(
        what: str, actual: torch.Tensor, expected: np.ndarray, bar: float = 1e-4, extent: float | None = None
    ) -> None:
        extent = float(np.ptp(expected)) if extent is None else extent
        difference = float(np.abs(actual.detach().numpy() - expected).max())
        _PARITY.append((what, difference, extent))
        assert difference <= bar * extent

    return check


def pytest_terminal_summary(terminalreporter):
    if _PARITY:
        terminalreporter.section("largest difference to the published implementations")
        for what, difference, extent in sorted(_PARITY):
            terminalreporter.line(
                f"{what:<54} {difference:8.1e}  of a range of {extent:7.3g}: {difference / extent:8.1e}"
            )


@pytest.fixture(scope="session")
def golden_arrays():
    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            return dict(arrays)

    return load


@pytest.fixture(scope="session")
def tiny_clip_path(tmp_path_factory) -> Path:
    """A CLIP of OpenAI's architecture with 32-pixel input, as a plain state dict."""
    from clip.model import CLIP

    torch.manual_seed(3)
    model = CLIP(16, 32, (1, 1, 1, 1), 8, None, 77, 49408, 64, 1, 1)
    path = tmp_path_factory.mktemp("clip") / "tiny.pt"
    write_clip(model, path)
    return path


@pytest.fixture(scope="session", params=["vision transformer", "residual network"])
def any_clip_path(request, tiny_clip_path, tmp_path_factory) -> Path:
    """A CLIP of either of OpenAI's two image towers."""
    if request.param == "vision transformer":
        return tiny_clip_path
    from clip.model import CLIP

    torch.manual_seed(4)
    model = CLIP(24, 64, (1, 1, 1, 1), 8, None, 77, 49408, 64, 1, 1)
    path = tmp_path_factory.mktemp("clip") / "residual.pt"
    write_clip(model, path)
    return path


@pytest.fixture(scope="session")
def clip_model(tiny_clip_path):
    from styleclip_core import load_clip

    return load_clip(tiny_clip_path)
