"""The setting that chooses where tasks are executed, and what it says when it cannot be followed."""

import os
import sys

import pytest
from prefect.task_runners import ThreadPoolTaskRunner

from styleclip.flows import engine
from styleclip.tasks.settings import SettingsError
from tests.forked import completed


def test_threads_are_the_default(monkeypatch):
    monkeypatch.delenv("STYLECLIP_ENGINE", raising=False)
    assert isinstance(engine.task_runner(), ThreadPoolTaskRunner)


@pytest.mark.parametrize("wanted", ["dask", "ray:head", "ray://", "Ray", "ray://head:10001/x"])
def test_another_engine_is_refused(monkeypatch, wanted):
    monkeypatch.setenv("STYLECLIP_ENGINE", wanted)
    with pytest.raises(SettingsError, match=r"must be threads, ray or ray://HOST:PORT, got '.+'"):
        engine.task_runner()


def test_ray_without_its_extra_says_what_to_install(monkeypatch):
    monkeypatch.setenv("STYLECLIP_ENGINE", "ray://head:10001")
    monkeypatch.delitem(sys.modules, "styleclip.flows.on_ray", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "prefect_ray", None)
    with pytest.raises(SettingsError, match=r"no module ray; install it with pip install '.*\[ray\]'"):
        engine.task_runner()


def test_ray_is_imported_only_where_it_is_chosen():
    """With the setting the same lines do import it, so the check can fail."""
    pytest.importorskip("prefect_ray", reason="the extra 'ray' is not installed: pip install '.[ray]'")
    for chosen, imported in (("threads", "False"), ("ray", "True")):
        done = completed([], os.environ | {"STYLECLIP_ENGINE": chosen}, say_whether_ray_is_imported)
        assert (done.stdout.strip(), done.returncode) == (imported, 0), done.stderr


def say_whether_ray_is_imported() -> None:
    from styleclip.flows.run import task_runner

    task_runner()
    sys.stdout.write(str("ray" in sys.modules))
