"""What every test run has: how far laws are searched, one thread for each process, and what is shared."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from tests.small_networks import write_small_networks

# what artifacts say of the code is the same for all that a run compares, whatever is edited meanwhile
os.environ["STYLECLIP_COMMIT"] = "tested"

# the same examples in every quick run, so that a failure is of the change and not of the day
settings.register_profile("quick", max_examples=25, deadline=None, derandomize=True, database=None)
settings.register_profile(
    "long", max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


# The longest files, as the last to end must not be one that began late; then those of `testpaths` in order.
_FIRST = (
    "test_ray.py",
    "test_bad_nights.py",
    "test_command_line.py",
    "test_hostile_files.py",
    "test_methods.py",
    "test_retry.py",
    "test_guide.py",
)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # one of several processes: together they are to fill the cores
        import torch

        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes fill the cores: each waits for servers a third of its time."""
    return -(-3 * len(os.sched_getaffinity(0)) // 2)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the longest files where several processes take one after the other."""
    if not hasattr(config, "workerinput"):
        return
    places = {name: place for place, name in enumerate(_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(_FIRST)))


@pytest.fixture(scope="session")
def network_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A small generator, CLIP and encoder, as files."""
    return write_small_networks(tmp_path_factory.mktemp("networks"))
