"""Names of files that are being written aside, and whether the writer of one has died.

A name says which machine and process writes the file, so that leftovers of killed writers can be
told from files that are being written now.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
import time
from pathlib import Path

PREFIX = ".styleclip-tmp-"
_NAME = re.compile(re.escape(PREFIX) + r"(?P<host>[0-9a-f]{8})-(?P<pid>[0-9]+)-[0-9a-f]{8}")
_STALE_AFTER_S = 24 * 3600


def temporary_name() -> str:
    """Return a fresh name for a file of this process."""
    return f"{PREFIX}{_host()}-{os.getpid()}-{secrets.token_hex(4)}"


def is_stale(aside: Path) -> bool:
    """Return whether nobody writes a file any more: its process is gone, or it is a day old.

    The age counts for this machine too: a restarted container gives its process the old number.
    A file with another name than ours is never stale.
    """
    ours = _NAME.fullmatch(aside.name)
    if ours is None:
        return False

    try:
        if time.time() - aside.stat().st_mtime > _STALE_AFTER_S:
            return True
    except FileNotFoundError:  # its writer has just finished, or somebody else has cleared up
        return False

    return ours["host"] == _host() and not _is_running(int(ours["pid"]))


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is there, but another user's
        return True
    return True


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
