"""Real parts for the pipeline tests: a Prefect server, small networks on disk, and a real S3 server."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.context import refresh_global_settings_context
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker

from tests.object_store import S3, object_store
from tests.prefect_server import server_in

sys.path.insert(0, str(Path(__file__).parent.parent / "core"))  # writers of published files


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory) -> Iterator[str]:
    """The address of one Prefect server with a database of its own, for all tests and what they start."""
    with server_in(tmp_path_factory.mktemp("server")) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", address)
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))  # where results are kept
        refresh_global_settings_context()
        yield os.environ["PREFECT_API_URL"]
        # what is still to be sent would be tried for a minute, to a server that has gone
        for worker in (APILogWorker, EventsWorker):
            worker.drain_all(timeout=30)
    refresh_global_settings_context()


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
