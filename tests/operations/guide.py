"""The blocks of ``docs/operations.md``, run as they stand on a machine in a folder.

What is put in the place of what the guide names: the machine's folders, the server's port, networks and
buckets, passwords, the webhook and the name of the proxy (``Machine.table``); ``systemctl``, which has no
systemd to speak to here; and ``make setup``, which makes an environment of the packages that are installed
here instead of loading them. Everything else is the guide's, ``git`` and the unit files included.
"""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from running import PATIENCE, ROOT

PASSWORD = "operator:canary-guide-password"
_GUIDE = (ROOT / "docs" / "operations.md").read_text()
_FILES = ("server.env", "client.env", "worker.env", "deploy.env")
_GIT = ("git", "-c", "user.name=guide", "-c", "user.email=guide@example.org")
_CHANGES = (  # what makes the second version
    ("styleclip_core/__init__.py", '__version__ = "0.1.0"', '__version__ = "0.2.0"'),
    ("tasks/directions/relevance.py", '"build-relevance", "2"', '"build-relevance", "3"'),
)


def block(name: str) -> str:
    """Return a block of the guide by the comment before it."""
    found = re.findall(rf"<!-- block: {re.escape(name)} -->\n\n((?:    .*\n|\n)+)", _GUIDE)
    assert len(found) == 1, f"{len(found)} blocks {name!r}"
    return "".join(line[4:] for line in found[0].strip("\n").splitlines(keepends=True)) + "\n"


@dataclass
class Machine:
    """A machine in a folder, on which the guide's commands are run."""

    root: Path
    table: dict[str, str]

    def make(self) -> None:
        """Write what the guide takes for granted: folders, the program's origin, the stand-ins."""
        for folder in ("etc/styleclip", "etc/systemd/system", "var/lib/styleclip", "var/backups", "bin"):
            (self.root / folder).mkdir(parents=True)
        (self.root / "guide.json").write_text(json.dumps({"root": str(self.root), "table": self.table}))
        self._origin()
        self._command("systemctl", f'{sys.executable} {Path(__file__).with_name("systemctl.py")} "$@"')
        self._command("make", f'{sys.executable} {Path(__file__).with_name("environment.py")} "$PWD"')
        for name in _FILES:
            self.write(f"etc/styleclip/{name}", block(name))
        self.shell("make setup")

    def _command(self, name: str, text: str) -> None:
        file = self.root / "bin" / name
        file.write_text(f"#!/bin/sh\nexec {text}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    def _origin(self) -> None:
        """Make a repository of two versions of this program, and clone the first."""
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if listed.returncode:
            pytest.skip(f"{ROOT} is no checkout, so there is nothing to clone: {listed.stderr.strip()}")
        origin = self.root / "origin"
        for name in filter(None, listed.stdout.split("\0")):
            if not name.startswith(("data/photographs", "data/weights", "tests", "findings", "benchmarks")):
                (origin / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, origin / name, follow_symlinks=False)

        self._git(origin, "init", "--quiet")
        self._commit(origin, "v1")
        self._git(self.root, "clone", "--quiet", "origin", "opt/styleclip")
        for name, before, after in _CHANGES:
            file = origin / name
            assert before in file.read_text()
            file.write_text(file.read_text().replace(before, after))
        self._commit(origin, "v2")

    def _commit(self, folder: Path, tag: str) -> None:
        self._git(folder, "add", "--all")
        self._git(folder, "commit", "--quiet", "--message", tag)
        self._git(folder, "tag", tag)

    def _git(self, folder: Path, *arguments: str) -> None:
        subprocess.run([*_GIT, *arguments], cwd=folder, check=True, capture_output=True)

    def replaced(self, text: str) -> str:
        longest_first = sorted(self.table, key=len, reverse=True)
        return re.sub("|".join(map(re.escape, longest_first)), lambda found: self.table[found[0]], text)

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(self.replaced(text))

    def run(self, *names: str) -> str:
        """Run blocks of the guide, one after the other in one shell, from the program's folder."""
        return self.shell("\n".join(block(name) for name in names))

    def shell(self, commands: str) -> str:
        """Run commands as root would in the shell of step 3; a command that fails ends them."""
        client = self.root / "etc/styleclip/client.env"
        done = subprocess.run(
            ["bash", "-ec", f"set -a; . {client}; set +a\n{self.replaced(commands)}"],
            cwd=self.root / "opt/styleclip", capture_output=True, text=True, timeout=600 * PATIENCE,
            stdin=subprocess.DEVNULL, check=False,
            env={
                "PATH": f"{self.root / 'bin'}:/usr/bin:/bin", "HOME": str(self.root),
                "GUIDE": str(self.root / "guide.json"),
            },
        )  # fmt: skip
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}\n{self.tail()}"
        return done.stdout

    def tail(self) -> str:
        logs = sorted(self.root.glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)
