"""An HTTP proxy in front of an object store that misbehaves as it is told.

It forwards every request as it is, so that signatures hold. What a rule answers to a request is done
instead: the real store never learns of it, learns of half of it, or of all of it without an answer.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from yarl import URL

_HOP = {"connection", "keep-alive", "expect", "transfer-encoding", "content-length"}


@dataclass(frozen=True)
class Request:
    """What a rule sees: ``number`` counts the requests since the rule is in force, from 0."""

    number: int
    method: str
    path: str

    @property
    def lists(self) -> bool:
        return self.method == "GET" and "list-type=2" in self.path


@dataclass(frozen=True)
class Refuse:
    """Close the connection at once."""


@dataclass(frozen=True)
class Answer:
    """Answer with an error of S3."""

    status: int
    code: str


@dataclass(frozen=True)
class Wait:
    """Forward the request after so many seconds."""

    seconds: float


@dataclass(frozen=True)
class CutAnswer:
    """Forward, answer half of the body, then reset the connection."""


@dataclass(frozen=True)
class CutUpload:
    """Forward half of the request's body, then reset both connections."""


@dataclass(frozen=True)
class LoseAnswer:
    """Forward all of it, then reset the connection instead of answering."""


Action = Refuse | Answer | Wait | CutAnswer | CutUpload | LoseAnswer
Rule = Callable[[Request], Action | None]


@dataclass
class FaultyProxy:
    """A running proxy; ``rule`` may be changed at any time."""

    upstream: str
    endpoint: str = ""
    hits: int = 0
    client: aiohttp.ClientSession | None = None
    _rule: Rule | None = None
    _seen: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def misbehaving(self, rule: Rule) -> Iterator[FaultyProxy]:
        """Follow a rule inside the block, and at the end check that it applied to anything."""
        with self._lock:
            self._rule, self._seen, self.hits = rule, 0, 0
        try:
            yield self
        finally:
            self._rule = None
        assert self.hits, "the fault has met no request"

    def _action(self, request: web.Request) -> Action | None:
        with self._lock:
            rule, number = self._rule, self._seen
            self._seen += 1
        action = rule(Request(number, request.method, request.raw_path)) if rule else None
        with self._lock:
            self.hits += action is not None
        return action

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        action = await asyncio.to_thread(self._action, request)
        if isinstance(action, Refuse):
            return _reset(request)
        if isinstance(action, Answer):
            text = f"<Error><Code>{action.code}</Code><Message>injected fault</Message></Error>"
            return web.Response(status=action.status, text=text, content_type="application/xml")
        if isinstance(action, Wait):
            await asyncio.sleep(action.seconds)
        if isinstance(action, CutUpload):
            with suppress(aiohttp.ClientError, OSError, RuntimeError):
                await self._forward(request, body, half=True)
            return _reset(request)
        status, headers, content = await self._forward(request, body)
        if isinstance(action, LoseAnswer):
            return _reset(request)
        answer = web.StreamResponse(status=status, headers=headers)
        answer.content_length = int(headers.get("X-Length", len(content)))
        del answer.headers["X-Length"]
        await answer.prepare(request)
        if isinstance(action, CutAnswer) and len(content) > 1:
            await answer.write(content[: len(content) // 2])
            return _reset(request)
        await answer.write(content)
        return answer

    async def _forward(
        self, request: web.Request, body: bytes, *, half: bool = False
    ) -> tuple[int, dict[str, str], bytes]:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP}
        headers["Content-Length"] = str(len(body))
        url = URL(self.upstream + request.raw_path, encoded=True)
        assert self.client is not None
        async with self.client.request(
            request.method, url, headers=headers, data=_half(body) if half else body, allow_redirects=False,
            skip_auto_headers=("User-Agent", "Content-Type", "Accept", "Accept-Encoding"),
        ) as found:  # fmt: skip
            content = await found.read()
            kept = {k: v for k, v in found.headers.items() if k.lower() not in _HOP}
            kept["X-Length"] = found.headers.get("Content-Length", str(len(content)))
            return found.status, kept, content


async def _half(body: bytes) -> AsyncIterator[bytes]:
    yield body[: len(body) // 2]
    await asyncio.sleep(0.02)
    raise ConnectionResetError("injected fault")


def _reset(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


@contextmanager
def faulty_proxy(upstream: str) -> Iterator[FaultyProxy]:
    """Run a proxy in front of ``upstream``, e.g. ``http://127.0.0.1:8333``, on a free loopback port."""
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # it reports every reset connection
    proxy, ready, loop = FaultyProxy(upstream), threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", proxy.handle)
        async with aiohttp.ClientSession(
            auto_decompress=False, connector=aiohttp.TCPConnector(limit=0)
        ) as proxy.client:
            runner = web.AppRunner(app, access_log=None, handler_cancellation=False, shutdown_timeout=1.0)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            proxy.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
            ready.set()
            await stop.wait()
            await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    try:
        if not ready.wait(20):
            raise TimeoutError("the proxy does not start")
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        loop.close()
