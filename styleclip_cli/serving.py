"""The pages of a private bucket in a browser: read with the identity of whoever looks, on loopback alone.

A page names its pictures relative to ``OUT``, so what lies below ``OUT`` is served, and nothing else; of a
picture in a tar or a table that part alone (``x.tar?bytes=1536-58112``, ``x.parquet?row=17``). Who
does not know the address, another user of the machine or a web page that guesses the port, gets nothing: the
address holds a secret of its own, and a request has to name the host that it was meant for.
"""

from __future__ import annotations

import re
import secrets
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from styleclip.tasks.photographs.datasets.places import Place
from styleclip.tasks.photographs.reading import read_stored
from styleclip.tasks.storage import AccessDeniedError, MissingObjectError, StorageError, join, read_bytes
from styleclip_core.errors import StyleCLIPError

_TYPES = {
    "html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "png": "image/png",
    "webp": "image/webp", "avif": "image/avif", "jpg": "image/jpeg", "mp4": "video/mp4",
    "json": "application/json",
}  # fmt: skip
_BEGINNINGS = {b"\x89PNG": "png", b"\xff\xd8": "jpg", b"RIFF": "webp"}  # what is none of these is AVIF
_PART = re.compile(r"bytes=(\d+)-(\d+)|row=(\d+)")
_STATUS = {
    MissingObjectError: HTTPStatus.NOT_FOUND,
    AccessDeniedError: HTTPStatus.FORBIDDEN,
    StorageError: HTTPStatus.BAD_GATEWAY,
    StyleCLIPError: HTTPStatus.NOT_FOUND,  # there is no such part
}


class Pages(ThreadingHTTPServer):
    """A server of what lies below a prefix, on a loopback port.

    Attributes:
        out: URI of the prefix.
        address: Where it is served, with its secret and a closing slash.
    """

    daemon_threads = True

    def __init__(self, out: str, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), partial(_Pages, out, secret := secrets.token_urlsafe(24)))
        self.out, self.address = out, f"http://127.0.0.1:{self.server_port}/{secret}/"


class _Pages(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, out: str, secret: str, *connection: object) -> None:
        self._out, self._secret = out, secret
        super().__init__(*connection)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Answer with an object."""
        key = self._key()
        try:
            if key is None:
                raise MissingObjectError("there is nothing here")
            if part := self._part(key):
                content = read_stored(self._out, part)
                self._answer(HTTPStatus.OK, content, _ending(content))
            else:
                self._answer(HTTPStatus.OK, read_bytes(join(self._out, key)), key.rpartition(".")[2].lower())
        except StyleCLIPError as error:
            status = next(each for kind, each in _STATUS.items() if isinstance(error, kind))
            self._answer(status, f"{error}\n".encode())

    def _key(self) -> str | None:
        """Return the key of the object that is asked for; None for what is not to be had here."""
        named = self.headers.get("Host", "")
        # a page of another origin can have its own name lead to this address, but not change what it asks for
        if named not in (f"127.0.0.1:{self.server.server_port}", f"localhost:{self.server.server_port}"):  # type: ignore[attr-defined]
            return None

        before, _, path = urlsplit(self.path).path.partition("/")
        # read after it is cut, so that a slash in a part is seen
        secret, *parts = map(unquote, path.split("/"))
        if before or not secrets.compare_digest(secret.encode(), self._secret.encode()):
            return None
        return "/".join(parts) if parts and all(map(_is_plain, parts)) else None

    def _part(self, key: str) -> str:
        """Return the place of a picture that is asked for within an object; empty for the object itself."""
        found = _PART.fullmatch(urlsplit(self.path).query)
        if not found:
            return ""
        if found[3]:
            return str(Place(key, row=int(found[3]), column="image.bytes"))
        return str(Place(key, int(found[1]), int(found[2])))

    def _answer(self, status: HTTPStatus, content: bytes, ending: str = "") -> None:
        self.send_response(status)
        kind = _TYPES.get(ending, "application/octet-stream") if status == HTTPStatus.OK else "text/plain"
        for name, value in {
            "Content-Type": kind, "Content-Length": str(len(content)), "Cache-Control": "private, no-cache",
            "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
        }.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Write nothing: the line would hold the secret."""


def _ending(content: bytes) -> str:
    return next((each for start, each in _BEGINNINGS.items() if content.startswith(start)), "avif")


def _is_plain(part: str) -> bool:
    """Return whether a part of a path names what lies in its folder, on a disk too."""
    return part not in ("", ".", "..") and not set(part) & set("/\\\0")
