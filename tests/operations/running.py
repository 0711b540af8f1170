"""Parts of a real Prefect installation that the operations tests start, ask and stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sys.executable).parent
POOL = "styleclip-gpu"


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def stop(process: subprocess.Popen, *, kill: bool = False) -> None:
    """Stop a process and those it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL if kill else signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@dataclass
class Prefect:
    """A running server and what a client of it needs."""

    home: Path
    port: int
    environment: dict[str, str]
    processes: list[subprocess.Popen] = field(default_factory=list)

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
        self.processes.append(process)
        return process

    def serve(self) -> subprocess.Popen:
        server = self.start("server", "start", "--host", "127.0.0.1", "--port", str(self.port), name="server")
        wait_until(lambda: _answers(f"{self.url}/api/health"), "the server answers", 120)
        return server

    def work(self) -> subprocess.Popen:
        return self.start("worker", "start", "--pool", POOL, "--type", "process", name="worker")

    def run(self, *arguments: str) -> str:
        command = [str(SCRIPTS / "prefect"), "--no-prompt", *arguments]
        done = subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def post(self, path: str, **body: object) -> object:
        answer = httpx.post(f"{self.url}/api/{path}", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def get(self, path: str) -> dict:
        answer = httpx.get(f"{self.url}/api/{path}", timeout=30)
        answer.raise_for_status()
        return answer.json()

    def state(self, run: str) -> str:
        return str(self.get(f"flow_runs/{run}")["state_name"])

    def wait_for(self, run: str, *states: str, seconds: float = 240) -> str:
        wait_until(lambda: self.state(run) in states, f"run is {' or '.join(states)}", seconds, self.tail)
        return self.state(run)

    def tail(self) -> str:
        logs = sorted(self.home.glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)

    def start_run(self, deployment: str, parameters: dict) -> str:
        found = self.get(f"deployments/name/{deployment}")
        made = self.post(f"deployments/{found['id']}/create_flow_run", parameters=parameters)
        return str(made["id"])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def wait_until(
    true: Callable[[], bool], what: str, seconds: float, explain: Callable[[], str] = lambda: ""
) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {seconds:.0f} s it is not so that {what}\n{explain()}")
        time.sleep(0.5)
