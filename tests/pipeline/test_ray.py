"""The flows on a real Ray cluster of two nodes beside the local threads: the same files, states and retries.

Executions are counted where the work is done. The nodes have a core or two and one declared GPU each, which
Ray counts as it counts real ones.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from prefect import flow, task, unmapped
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.settings import get_current_settings
from pydantic import TypeAdapter

from styleclip.flows import engine
from styleclip.flows.build_relevance import build_relevance
from styleclip.tasks.directions import relevance
from styleclip.tasks.running.run import Run
from styleclip.tasks.settings import Execution, Models, Relevance, Sampling, SettingsError
from styleclip_core.errors import PromptError
from tests.left import files_of
from tests.pipeline.test_retry import press_retry
from tests.prefect_server import used_server
from tests.ray_cluster import ROOT, Cluster, ray_cluster

pytest.importorskip("prefect_ray", reason="the extra 'ray' is not installed: pip install '.[ray]'")

from styleclip.flows import on_ray

pytestmark = [
    pytest.mark.usefixtures("prefect_server"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]
ON_CPU = Run(workspace="nowhere", device="cpu")
CANARY = "canary-0a55c0de"
_measure = relevance.measure_channels


@pytest.fixture(scope="module")
def prefect_server(tmp_path_factory) -> Iterator[str]:
    """The address of a server that these tests ask for task runs."""
    folders = (tmp_path_factory.mktemp(name) for name in ("server", "prefect"))
    with used_server(*folders, task_runs=True) as address:
        yield address


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    with ray_cluster() as running:
        for number in range(2):
            running.start(gpus=1, cores=2, given={"TEST_NODE": str(number)})
        yield running


@pytest.fixture(scope="module")
def connection(cluster, prefect_server, tmp_path_factory):
    """A driver of the cluster with a worker process on each node, which live as long as this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        patch.setenv("STYLECLIP_ENGINE", "ray")
        patch.setenv("STYLECLIP_RAY_GPUS", "1")
        with engine.task_runner() as runner:
            meet(tmp_path_factory.mktemp("meeting") / "log", 2).with_options(task_runner=runner)(2)
            yield cluster


def meet(log: Path, expected: int):
    """Return a flow of tasks that stay until so many have begun; each writes down when it was there."""

    @task
    def wait_for_others(number: int, run: Run) -> None:
        begin, deadline = time.monotonic(), time.monotonic() + 300

        def note(line: str) -> None:
            with log.open("a") as stream:
                stream.write(line + "\n")

        note(f"is {number}")
        while log.read_text().count("is") < expected and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.2)
        note(f"was {begin} {time.monotonic()}")

    @flow
    def meeting(count: int) -> None:
        wait_for_others.map(range(count), run=unmapped(ON_CPU)).wait()

    return meeting


@pytest.fixture
def on(request, monkeypatch):
    """Return flows as one engine runs them."""

    def choose(name: str, **settings: str):
        if name == "ray":
            request.getfixturevalue("connection")  # first: it restores at the end what it finds now
        monkeypatch.setenv("STYLECLIP_ENGINE", name)
        monkeypatch.setenv("STYLECLIP_WORKERS", str(os.cpu_count()))  # one thread of torch, as on Ray
        for variable, value in settings.items():
            monkeypatch.setenv(variable, value)
        if name == "ray":
            monkeypatch.setenv("STYLECLIP_RAY_GPUS", settings.get("STYLECLIP_RAY_GPUS", "1"))
        return lambda each: each.with_options(task_runner=engine.task_runner())

    return choose


class Build:
    """A relevance build whose shards say in a file when and where they are computed."""

    def __init__(self, network_files: dict[str, str], folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.workspace, self.log, self.flag = folder / "workspace", folder / "log", folder / "flag"
        self.clear()
        self.parameters = {
            "models": Models(generator=network_files["generator"], clip=network_files["clip"]),
            "workspace": str(self.workspace),
            "sampling": Sampling(statistics=40, codes=2),
            "relevance": Relevance(samples=2, channels_per_shard=4, batch_size=16),
            "execution": Execution(device="cpu"),
        }
        log, flag = self.log, self.flag

        def measure(*args, **kwargs):
            shard = f"{kwargs['layer']}-{kwargs['channels'][0]}"
            event = {"shard": shard, "process": os.getpid(), "node": os.environ.get("TEST_NODE"),
                     "network": id(args[0])}  # fmt: skip

            def note(**what):
                with log.open("a") as stream:
                    stream.write(json.dumps(event | what) + "\n")

            note(begin=time.monotonic())
            wish = flag.read_text() if flag.exists() else ""
            if wish == shard:
                raise RuntimeError("injected: the device is on fire")
            time.sleep(0.5 if wish == "slowly" else 0)
            found = _measure(*args, **kwargs)
            note(end=time.monotonic())
            return found

        # a worker process gets the task's code with what it refers to, this function too
        patch.setattr(relevance, "measure_channels", measure)

    def clear(self) -> None:
        shutil.rmtree(self.workspace, ignore_errors=True)
        self.log.write_text("")
        self.flag.unlink(missing_ok=True)

    def events(self, kind: str) -> list[dict]:
        return [event for line in self.log.read_text().splitlines() if kind in (event := json.loads(line))]

    def begun(self) -> list[str]:
        return [event["shard"] for event in self.events("begin")]

    def files(self) -> dict[str, bytes]:
        return files_of(self.workspace)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """One place for all builds, as a table names the files behind it."""
    return tmp_path_factory.mktemp("build")


@pytest.fixture
def build(network_files, place, undisturbed, monkeypatch) -> Build:
    return Build(network_files, place, monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(network_files, place, prefect_server) -> tuple[dict[str, bytes], tuple[Counter, Counter]]:
    """The build in local threads: every file, and what the server saw."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STYLECLIP_WORKERS", str(os.cpu_count()))
        build = Build(network_files, place, patch)
        in_threads = build_relevance.with_options(task_runner=engine.task_runner())
        state = in_threads(**build.parameters, return_state=True)
        assert state.is_completed()
        assert len(build.begun()) >= 8
        return build.files(), seen_by_server(state)


def seen_by_server(state) -> tuple[Counter, Counter]:
    """Return the tasks of a build with their states, and the keys of its artifacts, once all have ended.

    The server hears of task runs in events, some time after they have happened: one that it has not heard of
    is missing from its list. The last one of a build says that all are there.
    """
    run = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
    deadline = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        while True:
            tasks = client.read_task_runs(flow_run_filter=run, limit=200)
            ended = all(each.state and each.state.is_final() for each in tasks)
            heard = any(each.task_key.startswith("merge_relevance") for each in tasks)
            if (ended and heard) or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        artifacts = client.read_artifacts(flow_run_filter=run)
    kinds = Counter((each.task_key.rsplit("-", 1)[0], each.state_name) for each in tasks)
    return kinds, Counter(artifact.key for artifact in artifacts)


def test_a_cluster_makes_the_same_files_task_runs_and_artifacts(build, undisturbed, on):
    files, seen = undisturbed
    state = on("ray")(build_relevance)(**build.parameters, return_state=True)
    assert state.is_completed(), state.message
    assert len(set(build.begun())) == len(build.begun())
    assert build.files() == files
    assert seen_by_server(state) == seen


_AS_A_CLIENT = """
import json, sys
from styleclip.flows.build_relevance import build_relevance
state = build_relevance(**json.loads(sys.argv[1]), return_state=True)
assert state.is_completed(), state.message
"""


def test_a_machine_that_is_no_node_uses_a_cluster_through_its_client_server(build, undisturbed, cluster):
    parameters = TypeAdapter(Any).dump_python(build.parameters, mode="json")
    environment = os.environ | {
        "STYLECLIP_ENGINE": cluster.client, "STYLECLIP_RAY_GPUS": "1", "PYTHONPATH": str(ROOT),
        "PREFECT_API_URL": get_current_settings().api.url,
    }  # fmt: skip
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-W", "ignore", "-c", _AS_A_CLIENT, json.dumps(parameters)]
    for _ in range(3):
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=500, check=False
        )
        # Ray's proxy forks beside its threads, and the child may die, or not begin in time on a busy machine
        if not any(each in done.stderr for each in ("ZombieProcess", "Starting Ray client server failed")):
            break
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert build.files() == undisturbed[0]


def test_networks_are_loaded_once_by_a_process_and_a_gpu_computes_one_shard_at_a_time(build, on):
    on("ray", STYLECLIP_RAY_GPUS="1")(build_relevance)(**build.parameters)
    begun, ended = build.events("begin"), build.events("end")
    processes = {event["process"] for event in begun}
    assert os.getpid() not in processes
    assert {event["node"] for event in begun} == {"0", "1"}
    assert len(processes) < len(begun)
    assert len({(event["process"], event["network"]) for event in begun}) == len(processes)
    for node in ("0", "1"):  # one GPU each, though each has cores for two shards
        spans = sorted(
            (start["begin"], end["end"])
            for start in begun
            for end in ended
            if start["node"] == node and end["shard"] == start["shard"]
        )
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


@pytest.mark.parametrize("name", ["threads", "ray"])
def test_retry_executes_only_the_failed_shard_again(build, undisturbed, on, name):
    here = on(name)(build_relevance)
    build.flag.write_text("b8.conv1-0")
    failed = here(**build.parameters, return_state=True)
    assert failed.is_failed()
    assert "1 of 9 build-relevance shards failed, the others are done; first: " in failed.message
    assert "injected: the device is on fire" in failed.message
    first = build.begun()
    build.flag.unlink()
    again = press_retry(here, failed.state_details.flow_run_id, build.parameters)
    assert again.is_completed(), again.message
    assert build.begun()[len(first) :] == ["b8.conv1-0"]
    assert build.files() == undisturbed[0]


def test_half_a_gpu_lets_two_tasks_share_one(connection, on, tmp_path):
    def most_at_once(gpus: str, expected: int) -> int:
        log = tmp_path / f"log-{gpus}"
        on("ray", STYLECLIP_RAY_GPUS=gpus)(meet(log, expected))(4)
        spans = [
            tuple(map(float, line.split()[1:])) for line in log.read_text().splitlines() if "was" in line
        ]
        assert len(spans) == 4
        return max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans)

    assert most_at_once("1", expected=2) == 2
    assert most_at_once("0.5", expected=4) == 4


def test_credentials_reach_the_workers_and_stay_out_of_all_that_is_kept(connection, on, tmp_path):
    @task(persist_result=True)
    def secret_ends_with(length: int) -> str:
        return os.environ.get("AWS_SECRET_ACCESS_KEY", "none")[-length:]

    @flow(persist_result=True, result_storage=tmp_path / "results")
    def ask(length: int) -> str:
        return secret_ends_with.submit(length).result()

    with_secret = on("ray", AWS_SECRET_ACCESS_KEY=CANARY)(ask)(4, return_state=True)
    assert with_secret.result() == CANARY[-4:]
    run = with_secret.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        kept = client._client.get(f"/flow_runs/{run}").text
        for what in ("task_runs", "logs", "artifacts", "events"):
            kept += client._client.post(f"/{what}/filter", json={}).text
    folders = [tmp_path, connection.folder]
    kept += "".join(
        path.read_bytes().decode(errors="replace")
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    )
    assert "secret_ends_with" in kept  # it is the right place to look
    assert CANARY not in kept


def test_a_worker_forgets_what_a_flow_gave_it_and_keeps_what_its_node_has(monkeypatch):
    monkeypatch.setattr(on_ray, "_own", frozenset({"AWS_PROFILE", "PATH"}))
    given = {"AWS_PROFILE": "of-the-flow", "AWS_SECRET_ACCESS_KEY": "x", "STYLECLIP_STORAGE_OPTIONS": "o"}
    here = {"AWS_PROFILE": "of-the-node", "FSSPEC_S3_KEY": "of-the-last-flow"}
    with mock.patch.dict(os.environ, here, clear=True):
        on_ray.adopt(given)
        assert dict(os.environ) == {"AWS_PROFILE": "of-the-node", "STYLECLIP_STORAGE_OPTIONS": "o"}


def test_an_error_of_a_task_is_that_error_in_the_flow(connection, on):
    @task
    def refuse(run: Run) -> None:
        raise PromptError("cannot tell 'face' from 'face'")

    @flow
    def ask() -> None:
        engine.run(refuse, ON_CPU)

    for name in ("threads", "ray"):
        with pytest.raises(PromptError, match="cannot tell 'face' from 'face'"):
            on(name)(ask)()


@pytest.mark.parametrize("wanted", ["many", "1.5", "-1", "inf"])
def test_gpus_are_a_fraction_or_whole(monkeypatch, wanted):
    monkeypatch.setenv("STYLECLIP_RAY_GPUS", wanted)
    with pytest.raises(SettingsError, match=f"STYLECLIP_RAY_GPUS must be .* got '{wanted}'"):
        on_ray.gpus_for("cpu")


def test_a_gpu_that_no_node_has_is_refused(monkeypatch):
    monkeypatch.delenv("STYLECLIP_RAY_GPUS", raising=False)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0})
    runner = on_ray.RayRunner()
    assert runner.pick_device(Execution()) == "cpu"
    with pytest.raises(SettingsError, match="tasks on cuda ask for 1 GPUs each, but no node"):
        runner.pick_device(Execution(device="cuda"))
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0, "GPU": 2.0})
    assert runner.pick_device(Execution()) == "cuda"


def test_a_node_that_dies_in_mid_build_costs_what_it_was_computing(build, undisturbed, connection, on):
    """The last test of the module: the cluster has one node less after it."""
    build.flag.write_text("slowly")
    died: list[float] = []

    def kill_when_busy() -> None:
        while not (begun := [event for event in build.events("begin") if event["node"] == "1"]) and not died:
            time.sleep(0.02)
        if begun:
            connection.kill(1)
            died.append(time.monotonic())

    killer = threading.Thread(target=kill_when_busy)
    killer.start()
    state = on("ray")(build_relevance)(**build.parameters, return_state=True)
    finished = time.monotonic()
    died.append(0.0)
    killer.join()
    assert died[0] > 0
    logging.getLogger(__name__).info("%.1f s from the death to the end", finished - died[0])
    assert state.is_completed(), state.message
    ended = Counter(event["shard"] for event in build.events("end"))
    twice = [shard for shard, count in Counter(build.begun()).items() if count > 1]
    assert set(ended) == set(build.begun())
    assert 1 <= len(twice) <= 2
    assert build.files() == undisturbed[0]
    assert seen_by_server(state) == undisturbed[1]
