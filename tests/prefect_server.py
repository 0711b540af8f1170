"""One Prefect server for a whole test run: the process that needs it first starts it, all of them use it.

It lies in the folder that the processes of a run share, as a lock and a record of where it listens. Nothing
else of Prefect is started: its migrations and imports cost more than most tests.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import prefect
from filelock import FileLock

from tests.object_store import free_ports

_RECORD = "prefect-server.json"
_started: list[subprocess.Popen[bytes]] = []  # kept, as a forgotten process is a warning
# What a server does on its own account: nothing of it belongs to a flow that is called in a test.
_IDLE = (
    "SCHEDULER", "LATE_RUNS", "FOREMAN", "CANCELLATION_CLEANUP", "PAUSE_EXPIRATIONS", "REPOSSESSOR",
    "TRIGGERS",
)  # fmt: skip


def shared_server(folder: Path) -> str:
    """Return the address of the API, of a server that is started where there is none.

    Args:
        folder: What all processes of the test run share.

    Raises:
        RuntimeError: If it ends or does not answer; says what it wrote.
    """
    record = folder / _RECORD
    with FileLock(folder / f"{_RECORD}.lock"):
        if not record.exists():
            process, port = _start(folder)
            record.write_text(json.dumps({"pid": process.pid, "api": f"http://127.0.0.1:{port}/api"}))
        return str(json.loads(record.read_text())["api"])


def stop_shared_server(folder: Path) -> None:
    """End the server of a run, if it has one; its database is thrown away, so it need not be asked."""
    record = folder / _RECORD
    if record.exists():
        os.killpg(json.loads(record.read_text())["pid"], signal.SIGKILL)
        record.unlink()


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
    _started.append(process)
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
