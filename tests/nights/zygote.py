"""Runs the soak's flow in processes that are forked, not started: all is imported before, nothing is loaded.

Reads flow parameters as JSON, a line for each run; says the number of the process that runs it, then, when
that has ended, its exit status (negative for a signal). So a soak can kill many processes in little time.
"""

import json
import os
import sys
import warnings

import prefect.main  # noqa: F401 - imported here so that no fork has to
import s3fs  # noqa: F401

from tests.nights import night


def main() -> None:
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                night.edit_images(**json.loads(line))
                status = 0
            finally:
                os._exit(status)
        say(child)
        _, status = os.waitpid(child, 0)
        say(os.waitstatus_to_exitcode(status))


def say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
