"""The guide's nginx before the guide's server: pages, websockets and clients by https alone."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from guide import PASSWORD, Machine
from running import PAGE, ROOT, SCREENSHOTS, patiently, stop, wait_until

CONFIGURATION = (ROOT / "docs" / "proxy" / "styleclip.nginx.conf").read_text()
LISTENS = """
import asyncio
from prefect.events.clients import get_events_subscriber
from prefect.logging.clients import get_logs_subscriber

async def main():
    async with get_events_subscriber() as events, get_logs_subscriber() as logs:
        print(type(events).__name__, type(logs).__name__)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def certificate(machine: Machine) -> Path:
    """The file of a CA of one's own, which is the certificate's own."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl on the PATH to make a certificate with")
    folder = machine.root / "etc/ssl/styleclip"
    folder.mkdir(parents=True)
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
            "-keyout", folder / "key.pem", "-out", folder / "fullchain.pem",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder / "fullchain.pem"


def _trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate)


@pytest.fixture(scope="module")
def proxy(machine: Machine, certificate: Path) -> Iterator[str]:
    """The address of the proxy; nginx runs with the guide's file, in the machine's folder."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("there is no nginx on the PATH; `make operations` installs it where it runs as root")
    folder = machine.root / "nginx"
    folder.mkdir()
    (folder / "site.conf").write_text(machine.replaced(CONFIGURATION))
    paths = "".join(
        f"    {name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.getuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"daemon off;\n{user}pid {folder}/pid;\nerror_log {folder}/error;\n"
        f"events {{}}\nhttp {{\n    access_log off;\n{paths}    include {folder}/site.conf;\n}}\n"
    )
    command = [program, "-e", str(folder / "error"), "-c", str(folder / "nginx.conf")]
    process = subprocess.Popen(command, start_new_session=True)
    address = machine.replaced("https://prefect.example.org")
    try:
        health = {"method": "GET", "url": f"{address}/api/health", "verify": _trusting(certificate)}

        def answers() -> bool:
            try:
                return httpx.request(**health).status_code == 200
            except httpx.TransportError:
                return False

        wait_until(answers, "the proxy answers", 60, lambda: (folder / "error").read_text())
        yield address
    finally:
        stop(process)


def _client(machine: Machine, proxy: str, command: str) -> str:
    """Run a command with what a client elsewhere has in its environment."""
    # as the configuration names it: the machine puts its own folder in the place of the guide's
    there = f"PREFECT_API_URL={proxy}/api PREFECT_API_SSL_CERT_FILE=/etc/ssl/styleclip/fullchain.pem"
    return machine.shell(f"export {there}\n{command}")


def test_what_is_not_encrypted_is_sent_on_to_https(machine, proxy):
    (port,) = re.findall(r"listen 127.0.0.1:(\d+);", machine.replaced(CONFIGURATION))
    answer = httpx.get(f"http://localhost:{port}/runs?a=b")
    assert (answer.status_code, answer.headers["Location"]) == (301, f"{proxy}/runs?a=b")


def test_clients_work_through_it_and_the_password_is_still_asked(machine, proxy, certificate):
    unknown = patiently("GET", f"{proxy}/api/admin/version", verify=_trusting(certificate))
    assert unknown.status_code == 401
    assert unknown.headers["Strict-Transport-Security"].startswith("max-age=")
    assert unknown.headers["X-Frame-Options"] == "DENY"
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{proxy}/api/health")

    said = _client(machine, proxy, ".venv/bin/styleclip setup-server")
    assert "work pool styleclip-gpu: there" in said
    said = _client(machine, proxy, ".venv/bin/styleclip deploy --env-file /etc/styleclip/deploy.env")
    assert "build-relevance/nightly: brought up to date" in said
    assert "nightly" in _client(machine, proxy, ".venv/bin/prefect deployment ls")


def test_events_and_logs_come_over_websockets(machine, proxy):
    script = machine.root / "listens.py"
    script.write_text(LISTENS)
    said = _client(machine, proxy, f".venv/bin/python {script}")
    assert said == "PrefectEventSubscriber PrefectLogsSubscriber\n"


def test_the_pages_ask_for_the_password_and_show_what_is_there(proxy, browser):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    # the browser does not know the CA either; that the certificate is checked, clients have shown
    page = browser.new_page(viewport={"width": 1300, "height": 900}, ignore_https_errors=True)
    page.set_default_timeout(PAGE)
    sockets: list[str] = []
    page.on("websocket", lambda socket: sockets.append(socket.url))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))

    page.goto(f"{proxy}/deployments", wait_until="domcontentloaded")
    field = page.locator('input[type="password"]').first
    field.wait_for(timeout=PAGE)
    page.screenshot(path=SCREENSHOTS / "proxy-password.png")
    field.fill(PASSWORD)
    field.press("Enter")
    page.get_by_text("nightly").first.wait_for(timeout=PAGE)
    page.screenshot(path=SCREENSHOTS / "proxy-deployments.png")

    # everything that is asked of the API goes by the proxy
    api = [url for url in asked if "/api/" in url and "localhost" in url]
    assert api
    assert all(url.startswith(f"{proxy}/api/") for url in api)
    assert all(url.startswith(proxy.replace("https", "wss")) for url in sockets)
    page.close()
