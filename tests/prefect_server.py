"""One Prefect server for all tests of a process, and for what they start.

Where tests run in several processes, each has a server of its own: they would wait for each other's lock on
one SQLite database, a minute at a time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import prefect

from tests.object_store import free_ports

# What a server does on its own account: nothing of it belongs to a flow that is called in a test.
_IDLE = (
    "SCHEDULER", "LATE_RUNS", "FOREMAN", "CANCELLATION_CLEANUP", "PAUSE_EXPIRATIONS", "REPOSSESSOR",
    "TRIGGERS",
)  # fmt: skip


@contextmanager
def server_in(folder: Path) -> Iterator[str]:
    """Start a server with its database in a folder; yields the address of its API.

    Raises:
        RuntimeError: If it ends or does not answer; says what it wrote.
    """
    process, port = _start(folder)
    try:
        yield f"http://127.0.0.1:{port}/api"
    finally:  # its database is thrown away, so it need not be asked to end
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _start(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    home = folder / "prefect-server"
    home.mkdir(exist_ok=True)
    (port,) = free_ports(1)

    # as prefect.testing.utilities.prefect_test_harness does, whose server ends with the process that owns it
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | {
        "PREFECT_HOME": str(home), "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1",
        "PREFECT_UI_ENABLED": "0", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1",
        **{f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in _IDLE},
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
