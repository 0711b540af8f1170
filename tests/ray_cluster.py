"""A real Ray cluster for tests and benchmarks: a head and workers on loopback, killed by their process group.

Each node is a ``ray start`` of its own with an address of its own (127.0.0.2, 127.0.0.3, ...) and a token
that strangers do not have. A node's environment is that of the tests without their credentials.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.object_store import free_ports

ROOT = Path(__file__).parents[1]
# Ray reads these when it is imported, so this module must be imported first
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
_SECRETS = ("AWS_", "FSSPEC_", "STYLECLIP_", "PREFECT_")
_SAME = {name: value for name, value in os.environ.items() if name == "STYLECLIP_COMMIT"}


@dataclass
class Cluster:
    """A running cluster; nodes are numbered from 0, the head."""

    folder: Path
    port: int
    client_port: int
    environment: dict[str, str]
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.2:{self.port}"

    @property
    def client(self) -> str:
        return f"ray://127.0.0.2:{self.client_port}"

    def start(self, *, gpus: int = 0, cores: int = 1, given: Mapping[str, str] | None = None) -> int:
        """Start one more node and return its number; ``given`` is its own environment."""
        number = len(self.nodes)
        role = [f"--address={self.address}"] if number else [
            "--head", f"--port={self.port}", f"--ray-client-server-port={self.client_port}",
            f"--temp-dir={self.folder}", "--include-dashboard=false",
        ]  # fmt: skip
        command = [
            str(Path(sys.executable).parent / "ray"), "start", *role,
            f"--node-ip-address=127.0.0.{number + 2}", f"--num-cpus={cores}", f"--num-gpus={gpus}",
            "--object-store-memory=100000000", "--min-worker-port=0", "--max-worker-port=0",
            "--dashboard-agent-listen-port=0", "--disable-usage-stats", "--block",
        ]  # fmt: skip
        log = self.folder / f"node-{number}.log"
        with log.open("wb") as output:
            node = subprocess.Popen(
                command, env=self.environment | dict(given or {}), cwd=ROOT, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.nodes.append(node)
        _wait_until_started(node, log)
        return number

    def kill(self, number: int) -> None:
        """End a node as a power cut does: all its processes, at once."""
        node = self.nodes[number]
        for signalled in (node.pid, *_children(node.pid)):
            try:
                os.killpg(signalled, signal.SIGKILL)
            except ProcessLookupError:
                continue
        node.wait()


def _children(group: int) -> list[int]:
    """Return the groups of processes that were started in a session; workers of a node have their own."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if int(fields[3]) == group:
            found.add(int(fields[2]))
    return sorted(found)


def _wait_until_started(node: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while "Ray runtime started" not in log.read_text(errors="replace"):
        if node.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"ray did not start: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.2)


@contextmanager
def ray_cluster() -> Iterator[Cluster]:
    """A cluster without nodes; those that are started are killed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # a socket's path must be short
    port, client_port = free_ports(2)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_SECRETS)}
    environment = inherited | _SAME | {
        "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
        "RAY_memory_monitor_refresh_ms": "0",  # others may fill the machine's memory
        "RAY_worker_niceness": "0",  # beside other work, Ray's 15 would starve them
        "RAY_raylet_start_wait_time_s": "150", "RAY_agent_register_timeout_ms": "150000",
        "RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "5",
    }  # fmt: skip
    cluster = Cluster(folder, port, client_port, environment)
    try:
        yield cluster
    finally:
        for number in range(len(cluster.nodes)):
            cluster.kill(number)
        shutil.rmtree(folder, ignore_errors=True)
