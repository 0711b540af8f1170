"""The relevance build as it is deployed, with every measured shard counted and one that can fail.

Loaded by the worker's process through its deployment. Each execution appends a line to the file that
``FAULTY_LOG`` names; while the file ``FAULTY_FLAG`` exists, the shard of ``FAULTY_LAYER`` fails.
"""

import os
import signal
import time
from pathlib import Path

from flows.build_relevance import build_relevance
from tasks import relevance

_measure = relevance.measure_channels


def _counted(*args, layer, channels, **kwargs):
    name = f"{layer}-{channels[0]}"
    with Path(os.environ["FAULTY_LOG"]).open("a") as log:
        log.write(name + "\n")
    flag = Path(os.environ["FAULTY_FLAG"])
    if flag.exists() and layer == os.environ["FAULTY_LAYER"]:
        wish = flag.read_text()
        if wish == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if wish == "hang":
            while flag.exists():
                time.sleep(0.1)
        else:
            raise RuntimeError("injected: the device is on fire")
    return _measure(*args, layer=layer, channels=channels, **kwargs)


relevance.measure_channels = _counted
__all__ = ["build_relevance"]
