"""The process of Prefect's temporary server: uvicorn, which ends when the command that started it does.

    python -m styleclip_cli.temporary_server ARGUMENTS OF UVICORN...

A terminal sends Ctrl-C to all processes of a command, and a service manager sends SIGTERM; the run would wait
a minute for a server that went first. So no signal reaches it. Its standard input is a pipe, whose other end
closes when the command ends, however it ends.
"""

from __future__ import annotations

import _thread
import os
import runpy
import signal
import threading
import time

_PATIENCE = 5.0  # seconds in which it ends well


def _end_with_command() -> None:
    while os.read(0, 1024):
        pass
    # uvicorn's handler ends it, where that is in place already
    _thread.interrupt_main(signal.SIGTERM)
    time.sleep(_PATIENCE)
    os._exit(0)


if __name__ == "__main__":
    # before any other thread is started, which would not leave them alone
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    threading.Thread(target=_end_with_command, daemon=True).start()
    runpy.run_module("uvicorn", run_name="__main__", alter_sys=True)
