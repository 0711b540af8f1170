"""One Prefect server for all tests of a process, and for what they start.

Where tests run in several processes, each has a server of its own: they would wait for each other's lock on
one SQLite database, a minute at a time.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import prefect
import pytest
from prefect.context import refresh_global_settings_context
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker

from tests.object_store import free_ports

# What a server does on its own account: nothing of it belongs to a flow that is called in a test.
_IDLE = (
    "SCHEDULER", "LATE_RUNS", "FOREMAN", "CANCELLATION_CLEANUP", "PAUSE_EXPIRATIONS", "REPOSSESSOR",
    "TRIGGERS", "CLEANUP_RECONCILER",
)  # fmt: skip
# What flows do not ask for: to write task runs down takes the server as long as all else together.
_RECORDER = "TASK_RUN_RECORDER"
_EMPTY = "empty.db"


@contextmanager
def server_in(folder: Path, *, task_runs: bool = False) -> Iterator[str]:
    """Start a server with its database in a folder; yields the address of its API.

    Args:
        folder: Where it has its files.
        task_runs: Whether it can be asked for task runs.

    Raises:
        RuntimeError: If it ends or does not answer; says what it wrote.
    """
    process, port = _start(folder, _IDLE if task_runs else (*_IDLE, _RECORDER))
    _keep_empty(folder)
    try:
        yield f"http://127.0.0.1:{port}/api"
    finally:  # its database is thrown away, so it need not be asked to end
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def used_server(folder: Path, home: Path, *, task_runs: bool = False) -> Iterator[str]:
    """Start a server that flows of this process and of those it starts use; yields the address of its API.

    Args:
        folder: Where the server has its files.
        home: Where flows keep their results.
        task_runs: Whether it can be asked for task runs.
    """
    with server_in(folder, task_runs=task_runs) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", address)
        patch.setenv("PREFECT_HOME", str(home))
        refresh_global_settings_context()
        yield address
        # what is still to be sent would be tried for a minute, to a server that has gone
        for worker in (APILogWorker, EventsWorker):
            worker.drain_all(timeout=30)
    refresh_global_settings_context()


def migrated_home(folder: Path, home: Path) -> Path:
    """Give a server to come the database of the one in ``folder``, as it was before anything was written.

    To make one takes half of a server's start.
    """
    home.mkdir(parents=True)
    shutil.copy(folder / _EMPTY, home / "prefect.db")
    return home


def _keep_empty(folder: Path) -> None:
    with (
        closing(sqlite3.connect(folder / "prefect-server" / "prefect.db")) as made,
        closing(sqlite3.connect(folder / _EMPTY)) as kept,
    ):
        made.backup(kept)


def _start(folder: Path, idle: tuple[str, ...]) -> tuple[subprocess.Popen[bytes], int]:
    home = folder / "prefect-server"
    home.mkdir(exist_ok=True)
    (port,) = free_ports(1)

    # as prefect.testing.utilities.prefect_test_harness does, whose server ends with the process that owns it
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | {
        "PREFECT_HOME": str(home), "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1",
        "PREFECT_UI_ENABLED": "0", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1",
        **{f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in idle},
    }  # fmt: skip
    command = [
        sys.executable, "-m", "uvicorn", "--app-dir", str(Path(prefect.__file__).parents[1]), "--factory",
        "prefect.server.api.server:create_app", "--host", "127.0.0.1", "--port", str(port),
        "--log-level", "error", "--lifespan", "on",
    ]  # fmt: skip
    log = home / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    _wait_until_it_answers(process, port, log)
    return process, port


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 600  # a first start on a busy machine migrates for minutes
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    process.kill()
    raise RuntimeError(f"Prefect's server did not start: {log.read_text(errors='replace')[-2000:]}")
