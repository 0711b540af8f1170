"""The Prefect server of a command: the one that PREFECT_API_URL names, or a temporary one of this process."""

from __future__ import annotations

import httpx
from prefect.client.orchestration import get_client
from prefect.settings import get_current_settings
from prefect.settings.models.server.ephemeral import ServerEphemeralSettings

from styleclip_core.errors import StyleCLIPError

PATIENCE = 600  # seconds; on a busy machine a first start makes its database for minutes
_VARIABLE = "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"
_ANSWER = 30.0  # seconds for one answer of a server


class ServerError(StyleCLIPError):
    """There is no Prefect server to run on."""


def reach(*, named: bool = False) -> None:
    """Start the temporary server, or ask the named one whether it is there.

    Args:
        named: Whether a temporary one is of no use.

    Raises:
        ServerError: If there is none.
    """
    settings = get_current_settings()
    # one that is named must answer; no other takes its place
    if settings.api.url:
        with get_client(sync_client=True, httpx_settings={"timeout": _ANSWER}) as client:
            problem = client.api_healthcheck()
        if problem:
            raise ServerError(not_answering(problem))
        return

    if named:
        raise ServerError(
            "there is no Prefect server: start one and give its address, "
            "PREFECT_API_URL=http://127.0.0.1:4200/api"
        )

    ephemeral = settings.server.ephemeral
    if not ephemeral.enabled:
        raise ServerError(
            "there is no Prefect server: give the address of one in PREFECT_API_URL, or let commands start a "
            "temporary one, PREFECT_SERVER_EPHEMERAL_ENABLED=true"
        )
    start(ephemeral)


def start(ephemeral: ServerEphemeralSettings) -> None:
    """Start the temporary server, with our patience where the user has set none.

    Raises:
        ServerError: If it does not start.
    """
    # here and not above: it takes seconds, and who names a server has no use for it
    from styleclip_cli.spared import SparedServer

    chosen = "startup_timeout_seconds" in ephemeral.model_fields_set
    patience = ephemeral.startup_timeout_seconds if chosen else PATIENCE
    # Prefect takes it for its own: there is one of them in a process, whoever makes it
    server = SparedServer()
    try:
        server.start(timeout=patience)
    except Exception as error:
        ended = server.server_process.poll() if server.server_process else None
        how = f"ended with status {ended}" if ended is not None else f"did not start within {patience} s"
        raise ServerError(
            f"Prefect's temporary server {how}; give it longer, {_VARIABLE}={2 * patience}, or start one of "
            "your own, prefect server start, and give its address in PREFECT_API_URL"
        ) from error


def not_answering(problem: Exception) -> str:
    """Return what to say of a server that does not answer, or no more."""
    url = get_current_settings().api.url
    where = (
        f"the Prefect server at {url}, which PREFECT_API_URL names," if url else "Prefect's temporary server"
    )
    said = " ".join(str(problem).split())[:200] or type(problem).__name__
    if isinstance(problem, httpx.HTTPStatusError):
        return f"{where} refuses: {said}; if it has a password, give that in PREFECT_API_AUTH_STRING"

    remedy = "start it, or unset PREFECT_API_URL to use a temporary one" if url else "run the command again"
    return f"{where} does not answer: {said}; {remedy}"
