"""Fetching against a real HTTP server on loopback that cuts, lies, stalls and changes its mind."""

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from styleclip.tasks.exchange.catalogue import (
    Consent,
    HashMismatchError,
    UntrustedFileError,
    fetch_model,
    model_path,
)
from styleclip.tasks.exchange.transfers import DownloadError, Retries, _judge
from styleclip_cli import main
from styleclip_core.models.catalog import License, PublishedModel, catalog

CONTENT = bytes(range(256)) * 4000  # a megabyte, and no half of it looks like the other
HASH = hashlib.sha256(CONTENT).hexdigest()
PAGE = b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head></html>"
ROOT = Path(__file__).parents[2]
EAGER = Retries(attempts=3, backoff_s=0.0, timeout_s=5.0)


class Site(ThreadingHTTPServer):
    """One file under any path; faults are consumed one a request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag = CONTENT, '"one"'
        self.ranges = self.lengths = True
        self.kind = "application/octet-stream"
        self.faults: deque[str] = deque()
        self.asked: list[dict[str, str]] = []
        self.gate = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/model.pt"


class Handler(BaseHTTPRequestHandler):
    server: Site

    def log_message(self, *_) -> None:
        """Keep the test output quiet."""

    def do_GET(self) -> None:
        site = self.server
        site.asked.append({name.lower(): value for name, value in self.headers.items()})
        fault = site.faults.popleft() if site.faults else ""
        if fault.isdecimal():
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "redirect":
            self.send_response(302)
            self.send_header("Location", "/elsewhere?signature=geheim")
            self.end_headers()
            return
        start = self._start()
        body = site.content[start : start + 1000 if fault == "short" else None]
        self.send_response(206 if start else 200)
        if start:
            shift = 1 if fault == "shifted" else 0
            total = len(site.content)
            self.send_header("Content-Range", f"bytes {start + shift}-{start + len(body) - 1}/{total}")
        if site.lengths:
            self.send_header("Content-Length", str(len(body)))
        if site.etag:
            self.send_header("ETag", site.etag)
        if fault == "gzip":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", site.kind)
        self.end_headers()
        half = len(body) // 2
        self.wfile.write(body[:half])
        self.wfile.flush()
        if fault == "cut":
            return  # HTTP/1.0: the connection closes here
        if fault == "stall":
            self.wfile.flush()
            site.gate.wait(30)
        self.wfile.write(body[half:])

    def _start(self) -> int:
        wanted = self.headers.get("Range", "")
        fresh = self.headers.get("If-Range", self.server.etag) == self.server.etag
        if not wanted or not self.server.ranges or not fresh:
            return 0
        return int(wanted.removeprefix("bytes=").rstrip("-"))


@pytest.fixture
def site():
    server = Site()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.gate.set()
    server.shutdown()
    server.server_close()
    thread.join()


def published(site, sha256=HASH, **changes) -> PublishedModel:
    fields = {
        "name": "small", "kind": "generator", "description": "a small model", "file": "model.pt",
        "license": License("free", "https://example.org/license", False),
        "url": site.url, "page": "https://example.org/small",
        "sha256": sha256, "sha256_origin": "publisher" if sha256 else "",
    }  # fmt: skip
    return PublishedModel(**{**fields, **changes})


def fetch(model, folder, *, said=None, **consent) -> Path:
    told = said if said is not None else []
    return fetch_model(model, folder, Consent(**consent), tell=told.append, retries=EAGER)


def left(folder) -> set[str]:
    return {path.name for path in (folder / "small").iterdir()} - {".lock"}


def test_a_download_is_checked_and_reported(site, tmp_path):
    seen = []
    path = fetch_model(published(site), tmp_path, observe=lambda done, total: seen.append((done, total)))
    assert path == model_path(published(site), tmp_path)
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert left(tmp_path) == {"model.pt"}


def test_what_is_there_is_checked_and_not_downloaded_again(site, tmp_path):
    said = []
    fetch(published(site), tmp_path)
    fetch(published(site), tmp_path, said=said)
    assert len(site.asked) == 1
    assert said == ["small is already there, checked"]


def test_a_cut_download_continues_where_it_ended(site, tmp_path):
    site.faults.extend(["cut", "cut"])
    assert fetch(published(site), tmp_path).read_bytes() == CONTENT
    half, quarter = len(CONTENT) // 2, len(CONTENT) // 4
    ranges = [asked.get("range") for asked in site.asked]
    assert ranges == [None, f"bytes={half}-", f"bytes={half + quarter}-"]
    assert site.asked[1]["if-range"] == '"one"'


def test_a_later_call_continues_what_an_earlier_one_left(site, tmp_path):
    site.faults.extend(["cut", "500", "500", "500"])
    with pytest.raises(DownloadError, match=r"answers 500, 3 times in a row; .* it continues after 512,000"):
        fetch(published(site), tmp_path)
    assert not model_path(published(site), tmp_path).exists()
    assert fetch(published(site), tmp_path).read_bytes() == CONTENT
    assert site.asked[-1]["range"] == f"bytes={len(CONTENT) // 2}-"


@pytest.mark.parametrize("status", ["500", "503", "429"])
def test_a_passing_failure_is_tried_again(site, tmp_path, status):
    site.faults.extend([status, status])
    assert fetch(published(site), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("status", ["404", "403"])
def test_a_lasting_failure_is_not_tried_again(site, tmp_path, status):
    site.faults.append(status)
    with pytest.raises(
        DownloadError, match=rf"answers {status}.* download it from https://example.org/small"
    ):
        fetch(published(site), tmp_path)
    assert len(site.asked) == 1


def test_nobody_listening_is_an_error_and_not_a_traceback(site, tmp_path):
    with pytest.raises(DownloadError, match="3 times in a row; check the network"):
        fetch(published(site, url="http://127.0.0.1:9/model.pt"), tmp_path)


def test_a_server_without_ranges_is_asked_for_everything_again(site, tmp_path):
    site.ranges = False
    site.faults.append("cut")
    assert fetch(published(site), tmp_path).read_bytes() == CONTENT
    assert len(site.asked) == 2


def test_a_server_that_sends_another_range_is_asked_for_everything_again(site, tmp_path):
    site.faults.extend(["cut", "shifted"])
    assert fetch(published(site), tmp_path).read_bytes() == CONTENT
    assert "range" not in site.asked[2]


def test_a_server_that_sends_less_than_asked_for_is_asked_for_the_rest(site, tmp_path):
    site.faults.extend(["cut", "short"])
    assert fetch(published(site), tmp_path).read_bytes() == CONTENT
    assert site.asked[2]["range"] == f"bytes={len(CONTENT) // 2 + 1000}-"


def test_halves_of_two_versions_never_meet(site, tmp_path):
    site.faults.extend(["cut", "500", "500", "500"])
    with pytest.raises(DownloadError):
        fetch(published(site), tmp_path)
    site.content, site.etag = CONTENT[::-1], '"two"'
    model = published(site, hashlib.sha256(site.content).hexdigest())
    assert fetch(model, tmp_path).read_bytes() == CONTENT[::-1]


def test_without_a_validator_a_cut_download_starts_over(site, tmp_path):
    site.etag = ""
    site.faults.append("cut")
    assert fetch(published(site), tmp_path).read_bytes() == CONTENT
    assert "range" not in site.asked[1]


def test_a_download_cut_for_ever_gives_up(site, tmp_path):
    site.ranges = False
    site.faults.extend(["cut"] * 20)
    with pytest.raises(DownloadError, match="3 times in a row"):
        fetch(published(site), tmp_path)
    assert len(site.asked) == 4


def test_a_download_without_a_length_is_checked_by_its_hash(site, tmp_path):
    site.lengths = False
    assert fetch(published(site), tmp_path).read_bytes() == CONTENT
    site.faults.append("cut")
    with pytest.raises(HashMismatchError, match="it was deleted"):
        fetch(published(site, name="other"), tmp_path)


def test_wrong_content_is_refused_and_deleted(site, tmp_path):
    wrong = "0" * 64
    with pytest.raises(HashMismatchError) as caught:
        fetch(published(site, wrong), tmp_path)
    for part in (HASH, wrong, "stated by the publisher", "it was deleted", "--accept-sha256"):
        assert part in str(caught.value)
    assert left(tmp_path) == set()


def test_a_web_page_is_never_kept(site, tmp_path):
    site.content, site.kind = PAGE, "text/html; charset=utf-8"
    place = model_path(published(site), tmp_path)
    with pytest.raises(DownloadError) as caught:
        fetch(published(site, None), tmp_path, trust=True)
    for part in ("a web page", "Google Drive - Quota exceeded", "https://example.org/small", str(place)):
        assert part in str(caught.value)
    assert not place.exists()


def test_a_web_page_under_a_wrong_type_is_recognized(site, tmp_path):
    site.content = b"\n  " + PAGE
    with pytest.raises(DownloadError, match="a web page instead of the file"):
        fetch(published(site, None), tmp_path, trust=True)


def test_a_web_page_put_there_by_hand_is_recognized(site, tmp_path):
    path = model_path(published(site), tmp_path)
    path.parent.mkdir()
    path.write_bytes(PAGE)
    with pytest.raises(HashMismatchError, match="is a web page, not a model"):
        fetch(published(site, None), tmp_path, trust=True)


def test_an_empty_file_and_a_compressed_one_are_refused(site, tmp_path):
    site.faults.append("gzip")
    with pytest.raises(DownloadError, match="compressed"):
        fetch(published(site), tmp_path)
    site.content = b""
    with pytest.raises(DownloadError, match="an empty file"):
        fetch(published(site, None), tmp_path, trust=True)


def test_without_a_published_hash_the_user_is_asked_once(site, tmp_path):
    said, model = [], published(site, None)
    with pytest.raises(UntrustedFileError, match=f"--accept-sha256 {HASH} or --trust"):
        fetch(model, tmp_path, said=said)
    assert said == [f"SHA-256 {HASH}"]
    assert not model_path(model, tmp_path).exists()
    path = fetch(model, tmp_path, accept_sha256=HASH)
    assert path.read_bytes() == CONTENT
    assert len(site.asked) == 1  # what was downloaded had been kept aside
    assert fetch(model, tmp_path) == path
    record = json.loads((path.parent / "trust.json").read_text())
    assert (record["sha256"], record["accepted_by"]) == (HASH, "--accept-sha256")


def test_what_was_trusted_once_must_stay_the_same(site, tmp_path):
    model = published(site, None)
    path = fetch(model, tmp_path, trust=True)
    path.unlink()
    site.content, site.etag = CONTENT[::-1], '"two"'
    changed = hashlib.sha256(site.content).hexdigest()
    with pytest.raises(HashMismatchError, match=f"{changed}, expected {HASH} .trusted at first use"):
        fetch(model, tmp_path, trust=True)
    assert not path.exists()
    assert fetch(model, tmp_path, accept_sha256=changed).read_bytes() == CONTENT[::-1]
    assert fetch(model, tmp_path) == path


def test_a_kept_file_that_changed_is_refused_and_not_deleted(site, tmp_path):
    for model, consent in ((published(site), {}), (published(site, None, name="other"), {"trust": True})):
        path = fetch(model, tmp_path, **consent)
        path.write_bytes(b"other weights")
        with pytest.raises(HashMismatchError, match="delete it to download it again"):
            fetch(model, tmp_path)
        assert path.read_bytes() == b"other weights"


def test_trust_is_not_enough_for_a_download_of_unknown_length(site, tmp_path):
    site.lengths = False
    with pytest.raises(UntrustedFileError, match="it may be cut") as caught:
        fetch(published(site, None), tmp_path, trust=True)
    assert "--trust" not in str(caught.value)
    assert fetch(published(site, None), tmp_path, accept_sha256=HASH).exists()


def test_a_hash_that_one_project_recorded_is_compared_and_not_relied_on(site, tmp_path):
    for reported, verdict in ((HASH, "the same that"), ("0" * 64, "NOT the one that")):
        said = []
        with pytest.raises(UntrustedFileError):
            fetch(published(site, None, reported_sha256=reported), tmp_path, said=said)
        assert said[-1] == f"{verdict} one other project recorded"


def test_a_wrong_size_is_refused_where_only_the_size_is_known(site, tmp_path):
    with pytest.raises(HashMismatchError, match="has 1,024,000 bytes, expected 75,092"):
        fetch(published(site, None, size=75_092), tmp_path, trust=True)
    assert left(tmp_path) == set()


def test_more_than_the_disk_holds_is_refused_before_the_download(site, tmp_path):
    with pytest.raises(DownloadError, match="make room or set STYLECLIP_CACHE"):
        fetch(published(site, size=10**18), tmp_path)
    assert not site.asked


def test_a_folder_that_cannot_be_used_is_named(site, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="set STYLECLIP_CACHE"):
        fetch(published(site), tmp_path / "file")


def test_a_damaged_record_of_trust_is_an_error(site, tmp_path):
    model = published(site, None)
    fetch(model, tmp_path, trust=True)
    (tmp_path / "small" / "trust.json").write_text("{")
    with pytest.raises(UntrustedFileError, match=r"trust.json is damaged; delete it"):
        fetch(model, tmp_path)


def test_errors_do_not_show_where_a_redirect_leads(site, tmp_path):
    site.faults.extend(["redirect", "403"])
    with pytest.raises(DownloadError, match="answers 403") as caught:
        fetch(published(site), tmp_path)
    assert "geheim" not in str(caught.value)


def test_a_redirect_away_from_https_is_refused(tmp_path):
    safe, unsafe = (httpx.Request("GET", f"{scheme}://example.org/m.pt") for scheme in ("https", "http"))
    response = httpx.Response(200, request=unsafe, history=[httpx.Response(302, request=safe)])
    with pytest.raises(DownloadError, match="leads away from https"):
        _judge(response, "https://example.org/m.pt", tmp_path / "part")


@pytest.mark.parametrize("text", ["abc", "g" * 64, HASH.upper()])
def test_a_hash_to_accept_must_be_one(text):
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        Consent(accept_sha256=text)


FETCHER = """
import sys
from pathlib import Path
from styleclip_core.models.catalog import License, PublishedModel
from styleclip.tasks.exchange.catalogue import fetch_model
url, sha256, folder = sys.argv[1:]
free = License("free", "https://example.org/license", False)
model = PublishedModel(
    "small", "generator", "a small model", free, "model.pt", url, "https://example.org", sha256, "publisher"
)
print(fetch_model(model, Path(folder), tell=lambda text: print(text, file=sys.stderr, flush=True)))
"""


def start_fetcher(site, folder) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FETCHER, site.url, HASH, str(folder)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def until(condition, seconds=60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_processes_take_turns_and_one_downloads(site, tmp_path):
    site.faults.append("stall")
    first = start_fetcher(site, tmp_path)
    until(lambda: site.asked)
    second = start_fetcher(site, tmp_path)
    waiting = second.stderr.readline()
    site.gate.set()
    outputs = [process.communicate(timeout=60) for process in (first, second)]
    assert "another process is fetching small" in waiting
    assert [process.returncode for process in (first, second)] == [0, 0], outputs
    assert {out.strip() for out, _ in outputs} == {str(tmp_path / "small" / "model.pt")}
    assert len(site.asked) == 1


def test_a_killed_process_leaves_a_part_that_the_next_continues(site, tmp_path):
    site.faults.append("stall")
    killed = start_fetcher(site, tmp_path)
    part = tmp_path / "small" / "model.pt.part"
    until(lambda: part.exists() and part.stat().st_size > 0)
    killed.kill()
    killed.communicate(timeout=60)
    site.gate.set()
    kept = part.stat().st_size
    assert not model_path(published(site), tmp_path).exists()
    assert fetch(published(site), tmp_path).read_bytes() == CONTENT
    assert site.asked[-1]["range"] == f"bytes={kept}-"


def run_command(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["styleclip", *arguments])
    with pytest.raises(SystemExit) as caught:
        main.run()
    return int(caught.value.code or 0)


def test_the_list_shows_every_model(monkeypatch, capsys):
    assert run_command(monkeypatch, "models", "list") == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert names == list(catalog())


def test_a_list_of_one_kind_shows_no_other(monkeypatch, capsys):
    assert run_command(monkeypatch, "models", "list", "--kind", "mapper") == 0
    assert len(capsys.readouterr().out.splitlines()) == 15
    assert run_command(monkeypatch, "models", "list", "--kind", "thing") == 2


@pytest.mark.parametrize("name", list(catalog()))
def test_every_model_can_be_shown(name, monkeypatch, capsys):
    monkeypatch.setenv("STYLECLIP_CACHE", "/nowhere")
    assert run_command(monkeypatch, "models", "show", name) == 0
    shown = capsys.readouterr().out
    model = catalog()[name]
    assert model.license.name in shown
    assert model.url in shown
    assert (model.sha256 or "no trustworthy one known") in shown
    assert f"/nowhere/models/{name}/{model.file}" in shown


def test_fetch_says_the_licence_first_and_the_path_last(site, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STYLECLIP_CACHE", str(tmp_path))
    monkeypatch.setattr("styleclip_cli.models.find_model", lambda name: published(site, None))
    assert run_command(monkeypatch, "models", "fetch", "small") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.index("licence: free (commercial use allowed)") < said.index(f"SHA-256 {HASH}")
    assert "error: small: nobody trustworthy states a SHA-256 for it" in said
    assert run_command(monkeypatch, "models", "fetch", "small", "--trust") == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert Path(last).read_bytes() == CONTENT
    assert last == str(tmp_path / "models" / "small" / "model.pt")


def test_an_unknown_model_is_one_line_and_status_2(monkeypatch, capsys):
    assert run_command(monkeypatch, "models", "fetch", "ffhq") == 2
    assert capsys.readouterr().err.startswith("error: no published model is called 'ffhq'")
