"""Commands in processes that are forked from one that has imported all they need.

They are processes of their own in all that tests ask of one: arguments, environment, streams, group, signals,
exit status. Only what takes longest, to import torch and what comes with it, is done once for all of them.
Where that is the point, or what precedes it, a test starts Python itself.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

import torch

ROOT = Path(__file__).parents[1]
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.imported"])


class Forked:
    """A forked process, with what tests use of ``subprocess.Popen``."""

    def __init__(
        self, arguments: Sequence[object], environment: Mapping[str, str], stdout: IO[Any], stderr: IO[Any],
        work: Callable[[], object],
    ) -> None:  # fmt: skip
        begun, told = _FORKS.Pipe(duplex=False)
        streams = [Connection(os.dup(each.fileno()), readable=False) for each in (stdout, stderr)]
        texts = [str(each) for each in arguments]
        # by its name: its module is imported when the environment is the command's
        name = f"{work.__module__}:{work.__qualname__}"
        self._process = _FORKS.Process(target=_run, args=(name, texts, dict(environment), streams, told))
        self._process.start()

        # with its group, to which a signal can be sent
        for each in (told, *streams):
            each.close()
        with begun:
            self.pid: int = begun.recv()

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status when it has ended.

        Raises:
            subprocess.TimeoutExpired: If it has not by then.
        """
        self._process.join(timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired("a forked command", timeout or 0)
        return status

    def kill(self) -> None:
        """End it alone, as a machine that is short of memory does."""
        self._process.kill()

    def end(self) -> None:
        """End it with all of its group, whatever it does."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()


def command_line() -> None:
    """Run ``styleclip`` with the arguments that the process was given."""
    from styleclip_cli import main

    main.run()


@contextmanager
def started(
    arguments: Sequence[object], environment: Mapping[str, str], work: Callable[[], object] = command_line
) -> Iterator[tuple[Forked, IO[str]]]:
    """Start a command; yields it and what it prints on either stream, and ends it with its group."""
    reading, writing = os.pipe()
    with os.fdopen(reading, encoding="utf-8") as printed:
        with os.fdopen(writing, "w", encoding="utf-8") as output:
            process = Forked(arguments, environment, output, output, work)
        try:
            yield process, printed
        finally:
            process.end()


def completed(
    arguments: Sequence[object],
    environment: Mapping[str, str],
    work: Callable[[], object] = command_line,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Raises:
        subprocess.TimeoutExpired: If it takes longer than so many seconds; it is ended.
    """
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = Forked(arguments, environment, stdout, stderr, work)
        try:
            status = process.wait(timeout)
        finally:
            process.end()
        for each in (stdout, stderr):
            each.seek(0)
        return subprocess.CompletedProcess([*arguments], status, stdout.read(), stderr.read())


def _run(
    name: str, arguments: list[str], environment: dict[str, str],
    streams: list[Connection], told: Connection,
) -> None:  # fmt: skip
    """Become what a process would be that had just been started, and call what is named."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number, stream in zip((1, 2), streams, strict=True):
        os.dup2(stream.fileno(), number)
        stream.close()
    told.send(os.getpid())
    told.close()

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = ["styleclip", *arguments]
    warnings.simplefilter("ignore")
    if count := environment.get("OMP_NUM_THREADS"):  # which torch reads when it is imported
        torch.set_num_threads(int(count))

    # multiprocessing ends a process without what Python does at an end
    status = _status(name)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for each in (sys.stdout, sys.stderr):
        each.flush()
    os._exit(status)


def _status(name: str) -> int:
    try:
        pkgutil.resolve_name(name)()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            sys.stderr.write(f"{ended.code}\n")
            return 1
        return ended.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
