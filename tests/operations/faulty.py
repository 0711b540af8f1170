"""The relevance build as it is deployed, with every measured shard counted and one that can fail.

Loaded by the worker's process through its deployment. Each execution appends a line to the file that
``FAULTY_LOG`` names: the run's process, the shard, and when it began and ended. While the file
``FAULTY_FLAG`` exists, what it says happens: ``fail``, ``die`` and ``hang`` to the shard of ``LAYER``,
``slow`` to every shard.
"""

import os
import signal
import time
from pathlib import Path

from running import LAYER

from styleclip.flows.build_relevance import build_relevance
from styleclip.tasks.directions import relevance

_measure = relevance.measure_channels


def _log(event, name):
    with Path(os.environ["FAULTY_LOG"]).open("a") as log:
        log.write(f"{event} {name} {os.getpid()} {time.monotonic()}\n")


def _counted(*args, layer, channels, **kwargs):
    name = f"{layer}-{channels[0]}"
    _log("begin", name)
    flag = Path(os.environ["FAULTY_FLAG"])
    wish = flag.read_text() if flag.exists() else ""
    if layer == LAYER:
        if wish == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        while wish == "hang" and flag.exists():
            time.sleep(0.1)
        if wish == "fail":
            raise RuntimeError('injected: the "device" is on fire')
    if wish == "slow":
        time.sleep(0.5)
    measured = _measure(*args, layer=layer, channels=channels, **kwargs)
    _log("end", name)
    return measured


relevance.measure_channels = _counted
__all__ = ["build_relevance"]
