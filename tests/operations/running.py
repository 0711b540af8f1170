"""Parts of a real Prefect installation that the operations tests start, ask and stop."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sys.executable).parent
POOL = "styleclip-gpu"
LIMIT = "gpu-0"  # of the one device that all workers share
LAYER = "b8.conv1"  # the layer whose shard is made to fail
PATIENCE = int(os.environ.get("OPERATIONS_PATIENCE", "1"))  # factor on every deadline, for a busy machine
PAGE = 60_000 * PATIENCE  # milliseconds until a page shows what it should
SCREENSHOTS = ROOT / "build" / "screenshots"


def worker_command(instance: int = 0) -> list[str]:
    """Return a worker's arguments to ``prefect`` as its unit file has them, for one of its instances."""
    unit = (ROOT / "docs" / "systemd" / "styleclip-worker@.service").read_text()
    (line,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    command = line.removeprefix("ExecStart=")
    host = socket.gethostname().partition(".")[0]
    program, *arguments = shlex.split(command.replace("%i", str(instance)).replace("%l", host))
    assert program == "/opt/styleclip/.venv/bin/prefect"
    return arguments


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def family_of(process: subprocess.Popen) -> list[int]:
    """Return a process and all that it and they have started; a worker's runs have sessions of their own."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended
        children.setdefault(parent, []).append(int(entry.parent.name))
    found = [process.pid]
    for pid in found:
        found += children.get(pid, [])
    return found


def stop(process: subprocess.Popen, *, kill: bool = False) -> None:
    """Stop a process and those it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL if kill else signal.SIGTERM)
        try:
            process.wait(timeout=30 * PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@dataclass
class Prefect:
    """A running server and what a client of it needs."""

    home: Path
    port: int
    environment: dict[str, str]
    server: subprocess.Popen | None = None
    workers: list[subprocess.Popen] = field(default_factory=list)
    secrets: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *arguments: str, name: str) -> subprocess.Popen:
        log = (self.home / f"{name}.log").open("ab")
        process = subprocess.Popen(
            [str(SCRIPTS / "prefect"), *arguments], env=self.environment, cwd=ROOT, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        log.close()
        return process

    def serve(self) -> None:
        """Start the server, or start it again, and wait until it answers."""
        if self.server:
            stop(self.server)
        options = ("--host", "127.0.0.1", "--port", str(self.port))
        self.server = self.start("server", "start", *options, name="server")
        wait_until(lambda: _answers(f"{self.url}/api/health"), "the server answers", 120, self.tail)

    def work(self, instance: int = 0) -> subprocess.Popen:
        """Start a worker as its unit does, which takes runs once it is there."""
        worker = self.start(*worker_command(instance), name="worker")
        self.workers.append(worker)
        return worker

    def stop_workers(self) -> None:
        while self.workers:
            stop(self.workers.pop())

    def stop(self) -> None:
        """Stop all that was started: workers first, as they speak to the server."""
        self.stop_workers()
        if self.server:
            stop(self.server)

    def run(self, *arguments: str) -> str:
        return self._call(str(SCRIPTS / "prefect"), "--no-prompt", *arguments)

    def styleclip(self, *arguments: str) -> str:
        return self._call(sys.executable, "-W", "ignore", "-m", "styleclip_cli.main", *arguments)

    def _call(self, *command: str) -> str:
        done = subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=180 * PATIENCE,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def post(self, path: str, **body: object) -> object:
        return self.ask("POST", path, body).raise_for_status().json()

    def get(self, path: str) -> dict:
        return self.ask("GET", path).raise_for_status().json()

    def ask(self, method: str, path: str, body: object = None) -> httpx.Response:
        return patiently(method, f"{self.url}/api/{path}", json=body)

    def state(self, run: str) -> str:
        return str(self.get(f"flow_runs/{run}")["state_name"])

    def wait_for(self, run: str, *states: str, seconds: float = 240) -> str:
        wait_until(lambda: self.state(run) in states, f"run is {' or '.join(states)}", seconds, self.tail)
        return self.state(run)

    def tail(self) -> str:
        logs = sorted(self.home.glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)

    def artifacts(self, run: str) -> dict[str, dict]:
        """Return what a run shows, by key; of several the latest."""
        found = self.post("artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}}, sort="UPDATED_DESC")
        return {each["key"]: each for each in reversed(found)}

    def logs(self, run: str) -> list[str]:
        found = self.post(
            "logs/filter", logs={"flow_run_id": {"any_": [run]}}, sort="TIMESTAMP_ASC", limit=200
        )
        return [each["message"] for each in found]

    def start_run(self, deployment: str, parameters: dict) -> str:
        found = self.get(f"deployments/name/{deployment}")
        # one run, however often it is asked for
        made = self.post(
            f"deployments/{found['id']}/create_flow_run", parameters=parameters, idempotency_key=uuid4().hex
        )
        return str(made["id"])

    @contextmanager
    def scheduled(self, deployment: str, seconds: float) -> Iterator[str]:
        """Give a deployment a schedule for as long as this lasts; yields the first run that it makes."""
        found = self.get(f"deployments/name/{deployment}")["id"]
        wanted = {"schedule": {"interval": seconds}, "active": True}
        made = self.ask("POST", f"deployments/{found}/schedules", [wanted]).raise_for_status().json()
        of = {"deployments": {"id": {"any_": [found]}}, "sort": "EXPECTED_START_TIME_ASC"}
        seen = {run["id"] for run in self.post("flow_runs/filter", **of)}

        def runs() -> list[dict]:
            return [run for run in self.post("flow_runs/filter", **of) if run["id"] not in seen]

        try:
            wait_until(lambda: bool(runs()), "the schedule has made runs", 60, self.tail)
            yield str(runs()[0]["id"])
        finally:
            self.ask("DELETE", f"deployments/{found}/schedules/{made[0]['id']}")


def patiently(method: str, url: str, **options: Any) -> httpx.Response:
    """Call a server as Prefect's own clients do: again where it is away, silent, or its database locked.

    A server that has just begun, or whose disk is slow, may keep a request for longer than a minute.
    """
    deadline = time.monotonic() + 180 * PATIENCE
    while True:
        try:
            answer = httpx.request(method, url, timeout=30 * PATIENCE, **options)
            if answer.status_code < 500 or time.monotonic() > deadline:
                return answer
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
        time.sleep(1)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def wait_until(
    true: Callable[[], bool], what: str, seconds: float, explain: Callable[[], str] = lambda: ""
) -> None:
    seconds *= PATIENCE
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {seconds:.0f} s it is not so that {what}\n{explain()}")
        time.sleep(0.5)
