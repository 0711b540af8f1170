"""Real parts for the pipeline tests: a Prefect server, small networks on disk, and a real S3 server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.testing.utilities import prefect_test_harness

from tests.object_store import S3, object_store
from tests.small_networks import write_small_networks

sys.path.insert(0, str(Path(__file__).parent.parent / "core"))  # writers of published files


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """One Prefect server with a database of its own for all tests."""
    with prefect_test_harness(server_startup_timeout=600):
        yield


@pytest.fixture(scope="session")
def network_files(tmp_path_factory) -> dict[str, str]:
    """A small generator, CLIP and encoder, as files."""
    return write_small_networks(tmp_path_factory.mktemp("networks"))


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
