"""Stands in for systemctl where the guide's commands are tried: starts what a unit file says, as it says it.

Of a unit file it reads ExecStart, WorkingDirectory, Environment, EnvironmentFile, StateDirectory and Type. A
timer starts its service once. ``GUIDE`` names the file with places, and what stands for what in them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

GUIDE = json.loads(Path(os.environ["GUIDE"]).read_text())
ROOT = Path(GUIDE["root"])


def replaced(text: str) -> str:
    """Put what is here in the place of what the guide names."""
    table = dict(GUIDE["table"])
    return re.sub("|".join(map(re.escape, sorted(table, key=len, reverse=True))), lambda m: table[m[0]], text)


def unit(name: str) -> list[tuple[str, str]]:
    """Return the settings of a unit, for its instance."""
    base, at, instance = name.removesuffix(".service").partition("@")
    text = (ROOT / "etc/systemd/system" / f"{base}{at}.service").read_text()
    host = socket.gethostname().partition(".")[0]
    lines = [line for line in replaced(text).splitlines() if "=" in line and not line.startswith("#")]
    pairs = (line.replace("%i", instance).replace("%l", host).partition("=") for line in lines)
    return [(setting, value) for setting, _, value in pairs]


def environment_of(file: Path) -> dict[str, str]:
    """Return what an environment file says; the guide's have neither quotes nor continued lines."""
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith(("#", ";"))]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def start(name: str) -> None:
    """Start a service; of one that ends by itself, wait for its end."""
    settings = unit(name)
    said = dict(settings)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(ROOT / "var/lib/styleclip")}
    for setting, value in settings:
        if setting == "Environment":
            environment.update([value.split("=", 1)])
        elif setting == "StateDirectory":
            (ROOT / "var/lib" / value).mkdir(parents=True, exist_ok=True)
    environment |= environment_of(Path(said["EnvironmentFile"]))

    with (ROOT / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            shlex.split(said["ExecStart"]), cwd=said["WorkingDirectory"], env=environment, stdout=log,
            stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    if said.get("Type") == "oneshot":
        sys.exit(process.wait())
    (ROOT / f"{name}.pid").write_text(str(process.pid))


def family(pid: int) -> list[int]:
    """Return a process and all that it and they have started, as its control group would hold them."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = entry.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it has ended
        if state != "Z":
            parents[int(entry.parent.name)] = int(parent)
    found = [pid] if pid in parents else []
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def stop(name: str) -> None:
    """Ask a service to end, and what is left of it after a while no more."""
    file = ROOT / f"{name}.pid"
    if not file.exists():
        return
    members = family(int(file.read_text()))
    for pid in members:
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 60
    while any(family(pid) for pid in members) and time.monotonic() < deadline:
        time.sleep(0.2)
    for pid in (each for member in members for each in family(member)):
        os.kill(pid, signal.SIGKILL)
    file.unlink()


def main(command: str, *names: str) -> None:
    for name in (each for each in names if not each.startswith("--")):
        if command in ("stop", "restart"):
            stop(name)
        if command in ("start", "restart", "enable"):
            start(name.replace(".timer", ".service"))


main(*sys.argv[1:])
