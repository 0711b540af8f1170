"""Ctrl-C, SIGTERM and servers that are not there, as processes of their own, on the embedded networks.

Signals go to the whole group of a process, as a terminal sends them. What happens is read off what it prints.
"""

import os
import shutil
import signal
import socket
from pathlib import Path

import pytest

from styleclip import data
from tests.forked import completed, started
from tests.object_store import free_ports

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture
def environment(migrated, tmp_path):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    home = {"PREFECT_HOME": str(migrated(tmp_path / "prefect"))}
    return kept | home | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "STYLECLIP_WORKERS": "1"}


@pytest.fixture
def invert(tmp_path):
    """The inversion of eight embedded portraits, a shard each, which takes long enough to be stopped."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted(data.PHOTOGRAPHS.glob("*.png"))[:8]:
        shutil.copy(path, photos)
    return [
        "invert", "--photos", photos, "--workspace", tmp_path / "out", "--steps", "20", "--shard-size", "1",
        "--verbose",
    ]  # fmt: skip


def read_until(printed, text: str) -> list[str]:
    """Return what a process prints, up to a line with some text in it."""
    lines = []
    for line in printed:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"{text!r} was never printed:\n{''.join(lines)}")


def interrupt(process, number: signal.Signals) -> None:
    os.killpg(process.pid, number)


def latents(out: Path) -> int:
    return len(list(out.glob("latents/*/*.attempt-000.parquet")))


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_interrupt_lets_shards_end_and_the_same_command_goes_on(
    environment, invert, number, prefect_server, tmp_path
):
    with started(invert, environment) as (process, printed):
        read_until(printed, "invert-images 1/8")
        interrupt(process, number)  # reaches the temporary server too, which must not end
        (told,) = [line for line in read_until(printed, "again to stop now") if "stopping" in line]
        assert told.startswith("stopping after the shards under way (")
        under_way = int(told.partition("(")[2].partition(")")[0])
        rest = printed.read()
        assert process.wait() == 128 + number, rest
    (last,) = [line for line in rest.splitlines() if line.startswith("error: ")]
    done = latents(tmp_path / "out")
    assert (
        f"error: stopped: {done} of 8 invert-images shards are done; the same command goes on from here"
        in last
    )
    assert 1 <= under_way <= 3
    assert 2 <= done < 8  # what was under way has ended, and nothing has begun since

    # work is found by its files, whatever server it was done with
    again = completed(invert, environment | {"PREFECT_API_URL": prefect_server})
    assert again.returncode == 0, again.stderr
    assert f"8 rows in 8 shards, {8 - done} computed now" in again.stderr


@pytest.mark.parametrize("number", SIGNALS)
def test_the_second_interrupt_ends_at_once_and_leaves_no_process(environment, invert, number):
    with started([*invert, "--steps", "1000000", "--patience", "1000000"], environment) as (process, printed):
        read_until(printed, "generator ")  # the networks are loaded, and inversion begins
        interrupt(process, number)
        read_until(printed, "again to stop now")
        interrupt(process, number)
        assert process.wait(timeout=60) == 128 + number  # a shard alone would take an hour
        rest = printed.read()  # until the server has closed its end, too
    # of the signal's own; a shard that had not begun may have left one in the log that --verbose shows
    assert "KeyboardInterrupt" not in rest
    assert "Interrupted" not in rest


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupt_before_there_is_a_run_ends_the_command(environment, invert, number):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a server that takes calls and answers none
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        with started(invert, environment | {"PREFECT_API_URL": address}) as (process, printed):
            asked, _ = silent.accept()
            interrupt(process, number)
            rest = printed.read()
            assert process.wait() == 128 + number
            asked.close()
    assert rest.splitlines() == ["stopped"]


def failing(environment, arguments) -> str:
    """Return the one line that a command ends with."""
    done = completed(arguments, environment)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_a_server_that_does_not_answer_is_one_line(environment, invert):
    (port,) = free_ports(1)
    told = failing(environment | {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}, invert[:-1])
    assert told.startswith(f"error: the Prefect server at http://127.0.0.1:{port}/api, which PREFECT_API_URL")
    assert "does not answer" in told
    assert "start it, or unset PREFECT_API_URL" in told


def test_a_server_that_does_not_start_in_time_is_one_line(environment, invert):
    hurried = environment | {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "1"}
    told = failing(hurried, invert[:-1])
    assert "Prefect's temporary server did not start within 1 s; give it longer" in told
    assert "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS=2" in told


def test_patience_is_the_user_s_where_there_is_one(monkeypatch):
    from prefect.settings import get_current_settings

    from styleclip_cli import prefect_api, spared

    waited = []
    monkeypatch.setattr(spared.SparedServer, "start", lambda self, timeout: waited.append(timeout))
    ephemeral = type(get_current_settings().server.ephemeral)
    for settings in (ephemeral(enabled=True), ephemeral(enabled=True, startup_timeout_seconds=7)):
        prefect_api.start(settings)
    assert waited == [prefect_api.PATIENCE, 7]


def test_the_temporary_server_ends_with_its_command_however_that_ends(environment, invert):
    with started([*invert, "--steps", "1000000", "--patience", "1000000"], environment) as (process, printed):
        read_until(printed, "generator ")
        process.kill()  # this process alone, as a machine that is short of memory does
        printed.read()  # until the server has closed its end, too
        assert process.wait() == -signal.SIGKILL
