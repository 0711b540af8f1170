"""Prefect's temporary server, as a command starts it; importing this imports all of Prefect's server."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import prefect
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings


class SparedServer(SubprocessASGIServer):
    """A temporary server that no signal to the command reaches, see ``styleclip_cli.temporary_server``."""

    def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
        # as Prefect's own, but for who runs it
        return subprocess.Popen(
            [
                sys.executable, "-m", "styleclip_cli.temporary_server",
                "--app-dir", str(prefect.__module_path__.parent),
                "--factory", "prefect.server.api.server:create_app",
                "--host", "127.0.0.1", "--port", str(self.port), "--log-level", "error", "--lifespan", "on",
            ],
            env={
                **os.environ,
                "PREFECT_UI_ENABLED": "0",
                "PREFECT__SERVER_EPHEMERAL": "1",
                "PREFECT__SERVER_FINAL": "1",
                **get_current_settings().to_environment_variables(exclude_unset=True),
            },
            stdin=subprocess.PIPE,
        )  # fmt: skip

    def stop(self) -> None:
        """Let it end, and wait for that."""
        if self.server_process and self.server_process.stdin:
            self.server_process.stdin.close()
        super().stop()
