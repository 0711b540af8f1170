"""Pages of a private place, served to a browser on this machine and to nobody else."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from styleclip.tasks.storage import join, read_bytes, write_bytes_atomic
from styleclip_cli.serving import Pages
from tests.pipeline.test_changed_objects import Place
from tests.pipeline.test_changed_objects import place as place  # a fixture

PAGE = b"<!doctype html><title>a batch</title>"
PICTURE = "images/white hair_1a2b/deep/0001.png~3f2a1b9c04d5.png"


@pytest.fixture
def pages(place: Place) -> Iterator[Pages]:
    write_bytes_atomic(join(place.out, "batches/b1/index.html"), PAGE)
    write_bytes_atomic(join(place.out, PICTURE), b"a picture")
    write_bytes_atomic(f"{place.out}-secret/file.txt", b"not below it")
    server = Pages(place.out)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def asked(address: str, **headers: str) -> tuple[int, bytes, str]:
    request = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read(), answer.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers["Content-Type"]


def test_a_page_and_its_pictures_are_served_and_nothing_beside_them(pages):
    root = pages.address
    assert asked(f"{root}batches/b1/index.html") == (200, PAGE, "text/html; charset=utf-8")
    assert asked(root + quote(PICTURE)) == (200, b"a picture", "image/png")
    status, told, kind = asked(f"{root}batches/b2/index.html")
    assert (status, kind) == (404, "text/plain")
    assert b"there is no such object" in told
    for path in (
        "", "..", "../out-secret/file.txt", "%2e%2e/out-secret/file.txt", "batches/..%2f..%2fout-secret",
        "batches//b1/index.html", "/etc/hostname", "%5c..%5cx", "a%00b",
    ):  # fmt: skip
        status, told, _ = asked(root + path)
        assert (status, told) == (404, b"there is nothing here\n"), path


def test_who_does_not_know_the_address_gets_nothing(pages):
    port = pages.server_port
    page = "batches/b1/index.html"
    for address in (f"http://127.0.0.1:{port}/{page}", f"http://127.0.0.1:{port}/{'x' * 32}/{page}",
                    f"http://127.0.0.1:{port}/"):  # fmt: skip
        assert asked(address)[:2] == (404, b"there is nothing here\n")
    assert asked(pages.address + page, Host=f"evil.example:{port}")[0] == 404
    assert asked(pages.address + page, Host=f"localhost:{port}")[0] == 200
    assert pages.server_address[0] == "127.0.0.1"


def test_what_the_reader_may_not_see_is_refused_in_words(pages, monkeypatch):
    from styleclip.tasks.storage import AccessDeniedError, StorageError
    from styleclip_cli import serving

    for error, status in (
        (AccessDeniedError("cannot read it: denied"), 403),
        (StorageError("it is down"), 502),
    ):

        def fails(uri: str, error: StorageError = error) -> bytes:
            raise error

        monkeypatch.setattr(serving, "read_bytes", fails)
        assert asked(f"{pages.address}x.png")[:2] == (status, f"{error}\n".encode())
    monkeypatch.setattr(serving, "read_bytes", read_bytes)
