"""One Prefect installation for all tests, as real as in production: set up and deployed by the commands
that the guide names, with a worker and a browser, stopped by pid."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.chromium import chromium

sys.path.insert(0, str(Path(__file__).parent))

from guide import PASSWORD, Machine, block
from running import LIMIT, ROOT, Prefect, free_port

from tests.object_store import S3, object_store


@pytest.fixture(scope="session")
def receiver() -> Iterator[list[dict]]:
    """What a webhook is told: a receiver on loopback that keeps every message."""
    told: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            told.append({"path": self.path, **json.loads(self.rfile.read(length))})
            self.send_response(200)
            self.end_headers()

        def log_message(self, *given: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    told_at = f"http://127.0.0.1:{server.server_port}/hook/canary-webhook-token"
    os.environ["STYLECLIP_TEST_HOOK"] = told_at
    yield told
    os.environ.pop("STYLECLIP_TEST_HOOK")
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A real object store, of which the worker has the credentials."""
    with object_store(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture(scope="session")
def prefect(
    tmp_path_factory: pytest.TempPathFactory, network_files: dict[str, str], receiver: list[dict], s3: S3
) -> Iterator[Prefect]:
    """A server with a database of its own, set up, with all deployments and a worker."""
    folder = tmp_path_factory.mktemp("operations")
    keys = configparser.ConfigParser()
    keys.read(s3.options.with_name("credentials"))
    options = folder / "storage-options.json"
    names = {"key": "aws_access_key_id", "secret": "aws_secret_access_key"}
    options.write_text(json.dumps({
        f"s3://{bucket}/": {name: keys[who][value] for name, value in names.items()}
        for bucket, who in (("photographs", "reader"), ("results", "writer"))
    }))  # fmt: skip
    port, home = free_port(), folder / "prefect"
    home.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "AWS_", "STYLECLIP_"))}
    environment = kept | {
        "PREFECT_HOME": str(home), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "styleclip.flows.event_order",
        "PREFECT_SERVER_METRICS_ENABLED": "true",
        "PREFECT_WORKER_QUERY_SECONDS": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        "STYLECLIP_WORKERS": "1", "STYLECLIP_DEVICE_LIMIT": LIMIT,
        "AWS_ENDPOINT_URL": s3.endpoint, "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": keys["admin"]["aws_access_key_id"],
        "AWS_SECRET_ACCESS_KEY": keys["admin"]["aws_secret_access_key"],
        "STYLECLIP_STORAGE_OPTIONS": str(options),
        "STYLECLIP_GENERATOR": network_files["generator"], "STYLECLIP_CLIP": network_files["clip"],
        "STYLECLIP_WORKSPACE": str(folder / "workspace"),
        "STYLECLIP_NOTIFY_URL": os.environ["STYLECLIP_TEST_HOOK"],
        "FAULTY_LOG": str(folder / "executions.log"), "FAULTY_FLAG": str(folder / "fault"),
    }  # fmt: skip
    if database := os.environ.get("OPERATIONS_DATABASE"):  # another than SQLite, e.g. postgresql+asyncpg://
        environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = database
    secrets = {f"{who} {name}": keys[who][name] for who in keys.sections() for name in names.values()}
    secrets |= {"webhook": "canary-webhook-token", "user in a URI": "canary-userinfo"}
    running = Prefect(home, port, environment, secrets=secrets)
    try:
        running.serve()
        environment["SETUP"] = running.styleclip(
            "setup-server", "--unprotected", "--device-limit", LIMIT, "--results", "s3://results/prefect"
        )
        values = ("STYLECLIP_GENERATOR", "STYLECLIP_CLIP", "STYLECLIP_WORKSPACE")
        file = folder / "deploy.env"
        file.write_text("".join(f"{name}={environment[name]}\n" for name in values))
        environment["DEPLOYED"] = running.styleclip("deploy", "--env-file", str(file))
        environment.pop("STYLECLIP_NOTIFY_URL")  # only setting up needs it
        running.run(
            "deploy", "tests/operations/faulty.py:build_relevance", "--name", "faulty",
            "--pool", "styleclip-gpu", "--work-queue", "bulk",
        )  # fmt: skip
        running.work()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def machine(
    tmp_path_factory: pytest.TempPathFactory, network_files: dict[str, str], receiver: list[dict]
) -> Iterator[Machine]:
    """A machine that was set up by the guide's steps 2 to 5, behind its proxy, which need not be there."""
    for program in ("git", "curl", "bash"):
        if shutil.which(program) is None:
            pytest.skip(f"the guide's commands call {program}, and there is none on the PATH")
    root = tmp_path_factory.mktemp("machine")
    port, tls, plain = free_port(), free_port(), free_port()
    table = {f"/{folder}/": f"{root}/{folder}/" for folder in ("opt", "etc", "var")} | {
        "4200": str(port), "https://prefect.example.org": f"https://localhost:{tls}",
        "listen 443": f"listen 127.0.0.1:{tls}", "listen 80": f"listen 127.0.0.1:{plain}",
        "prefect.example.org": "localhost",
        "https://hooks.example.org/...": os.environ["STYLECLIP_TEST_HOOK"],
        "operator:REPLACE-BY-THE-OUTPUT-OF-openssl-rand-hex-24": PASSWORD,
        "operator:REPLACE-AS-IN-server.env": PASSWORD,
        "s3://models/ffhq.pkl": network_files["generator"], "ViT-B/32": network_files["clip"],
        "s3://results": f"{root}/results", " -o styleclip -g styleclip": "", "NEW-VERSION": "v2",
    }  # fmt: skip
    made = Machine(root, table)
    made.make()
    behind = block("server.env behind a proxy")
    names = tuple(line.partition("=")[0] for line in behind.splitlines())
    rest = [line for line in block("server.env").splitlines() if not line.startswith(names)]
    made.write("etc/styleclip/server.env", "\n".join(rest) + "\n" + behind)
    try:
        made.run("start the server", "set up", "start the worker", "deploy")
        yield made
    finally:
        made.shell("systemctl stop styleclip-worker@0 styleclip-server")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium of the operating system."""
    with chromium() as launched:
        yield launched
