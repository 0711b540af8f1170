"""Real parts for the pipeline tests: a Prefect server, small networks on disk, and a real S3 server."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.object_store import S3, object_store
from tests.prefect_server import migrated_home, used_server

sys.path.insert(0, str(Path(__file__).parent.parent / "core"))  # writers of published files


@pytest.fixture(scope="session")
def server_folder(tmp_path_factory) -> Path:
    """Where the one Prefect server has its files."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="session")
def prefect_server(server_folder, tmp_path_factory) -> Iterator[str]:
    """The address of one Prefect server with a database of its own, for all tests and what they start."""
    with used_server(server_folder, tmp_path_factory.mktemp("prefect")) as address:
        yield address


@pytest.fixture
def migrated(prefect_server, server_folder) -> Callable[[Path], Path]:
    """Make a new PREFECT_HOME in which a temporary server is quick to start."""
    return partial(migrated_home, server_folder)


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
