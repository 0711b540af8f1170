"""Real parts for the pipeline tests: a Prefect server, small networks on disk, and a real S3 server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from prefect.testing.utilities import prefect_test_harness

from styleclip_core import save_generator
from styleclip_core.models.encoder import Encoder, EncoderConfig, save_encoder
from styleclip_core.models.stylegan2 import Generator, GeneratorConfig
from tests.object_store import S3, object_store

sys.path.insert(0, str(Path(__file__).parent.parent / "core"))  # writers of published files


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """One Prefect server with a database of its own for all tests."""
    with prefect_test_harness(server_startup_timeout=600):
        yield


@pytest.fixture(scope="session")
def network_files(tmp_path_factory) -> dict[str, str]:
    """A small generator, CLIP and encoder, as files."""
    from clip.model import CLIP

    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    config = GeneratorConfig(
        resolution=16, z_dim=8, w_dim=8, mapping_layers=2, channel_base=64, channel_max=6
    )
    save_generator(Generator(config).eval(), folder / "generator.safetensors")
    clip = CLIP(16, 32, (1, 1, 1, 1), 8, None, 77, 49408, 64, 1, 1)
    torch.save(clip.state_dict(), folder / "clip.pt")
    encoder = Encoder(EncoderConfig(16, 6, 8, widths=(4, 4, 4, 4), hidden=8)).eval()
    save_encoder(encoder, folder / "encoder.safetensors")
    return {
        "generator": str(folder / "generator.safetensors"),
        "clip": str(folder / "clip.pt"),
        "encoder": str(folder / "encoder.safetensors"),
    }


@pytest.fixture(scope="session")
def s3(tmp_path_factory) -> Iterator[S3]:
    """SeaweedFS with a read-only identity for ``photographs`` and a writer for ``results``."""
    with object_store(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture
def s3_identities(s3, monkeypatch) -> S3:
    """The identities of a production run: a reader for the input bucket, a writer for the output."""
    monkeypatch.setenv("STYLECLIP_STORAGE_OPTIONS", str(s3.options))
    return s3
