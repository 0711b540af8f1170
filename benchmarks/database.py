"""How Prefect's database grows with every task run, by its tables: ``python -m benchmarks.database``.

Builds relevance tables of small networks on a server of its own with SQLite, once as it comes and once
without stored events, and writes the bytes of the database per task run. What a server has before any run is
left out.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx

from tests.object_store import free_ports
from tests.small_networks import write_small_networks

_BUILDS = 4  # runs, each of some forty tasks
_EVENTS = "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED"
_BUILD = """
import sys
from styleclip.flows.build_relevance import build_relevance
generator, clip, workspace = sys.argv[1:]
small = {"statistics": 50, "codes": 2}, {"samples": 2, "channels_per_shard": 1}
build_relevance({"generator": generator, "clip": clip}, workspace, *small)
"""


@contextmanager
def _server(home: Path, settings: dict[str, str]) -> Iterator[str]:
    """Start a server as it is in operation; yields the address of its API."""
    (port,) = free_ports(1)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", **settings}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}/api"
        transport = httpx.HTTPTransport(retries=10)  # it waits longer every time, for minutes in all
        with httpx.Client(transport=transport, timeout=60) as client:
            client.get(f"{address}/health").raise_for_status()
        yield address
    finally:
        process.terminate()
        process.wait()


def _sizes(database: Path) -> Counter[str]:
    """Return the bytes in use of every table with its indices."""
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute(
            "SELECT m.tbl_name, sum(s.pgsize) FROM dbstat s JOIN sqlite_master m ON m.name = s.name "
            "GROUP BY m.tbl_name"
        )
        return Counter(dict(rows.fetchall()))


def _task_runs(database: Path) -> int:
    with closing(sqlite3.connect(database)) as connection:
        return int(connection.execute("SELECT count(*) FROM task_run").fetchone()[0])


def _settled(database: Path) -> Counter[str]:
    """Return the sizes once the server has written what it was sent; that goes on after a run has ended."""
    before, now = None, _sizes(database)
    while before != now:
        time.sleep(10)
        before, now = now, _sizes(database)
    return now


def grown(folder: Path, settings: dict[str, str]) -> tuple[int, Counter[str]]:
    """Return how many task runs there were, and by how many bytes each table has grown."""
    networks = write_small_networks(folder / "networks")
    with _server(folder / "server", settings) as address:
        database = folder / "server" / "prefect.db"
        environment = os.environ | {"PREFECT_API_URL": address, "PREFECT_HOME": str(folder / "client")}
        before = _settled(database)
        for number in range(_BUILDS):
            arguments = networks["generator"], networks["clip"], str(folder / f"workspace-{number}")
            subprocess.run([sys.executable, "-c", _BUILD, *arguments], env=environment, check=True)
        return _task_runs(database), _settled(database) - before


def main() -> None:
    """Measure, and write what was found."""
    for stored in ("true", "false"):
        with tempfile.TemporaryDirectory() as folder:
            runs, sizes = grown(Path(folder), {_EVENTS: stored})

        lines = [f"{_EVENTS}={stored}: {sizes.total() / runs / 1e3:.1f} kB for each of {runs} task runs"]
        lines += [f"    {table}: {size / runs / 1e3:.1f} kB" for table, size in sizes.most_common(8)]
        sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
