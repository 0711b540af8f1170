"""Whether a Prefect server lets in whom it should not: it can have any command run, as the worker.

Every page that an operator opens can send requests to the operator's own machine. What keeps it out is a
password, and a list of the origins whose pages may read the answers.
"""

from __future__ import annotations

import ssl

import httpx
from prefect.settings import get_current_settings

_ANYBODY = "https://elsewhere.example"  # an origin that no server has to know
_SECONDS = 30


def open_doors(api: str) -> list[str]:
    """Return what is open on a server, each with the setting that closes it.

    Args:
        api: URL of its API.

    Raises:
        httpx.HTTPError: If it does not answer.
    """
    with httpx.Client(base_url=f"{api.rstrip('/')}/", timeout=_SECONDS, verify=_trusted()) as stranger:
        found = []
        # a request that only reads, as a page would send it to see whom it has before it
        if stranger.get("admin/version", headers={"Origin": _ANYBODY}).is_success:
            found.append("it answers without a password: set PREFECT_SERVER_API_AUTH_STRING")

        asked = {"Origin": _ANYBODY, "Access-Control-Request-Method": "POST"}
        allowed = stranger.options("flows/count", headers=asked).headers.get("Access-Control-Allow-Origin")
        if allowed in ("*", _ANYBODY):
            found.append("pages of every origin may ask it: set PREFECT_SERVER_CORS_ALLOWED_ORIGINS")
    return found


def _trusted() -> ssl.SSLContext | bool:
    """Return whom Prefect's own client trusts: of a proxy with a certificate of one's own, its CA."""
    api = get_current_settings().api
    if api.tls_insecure_skip_verify:
        return False
    return ssl.create_default_context(cafile=api.ssl_cert_file) if api.ssl_cert_file else True
