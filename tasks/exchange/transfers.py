"""One HTTP download into a ``.part`` file that the next try, or the next process, continues.

No library does just this: pooch starts a cut download over, huggingface_hub continues only its own.
So the loop is here, on httpx: ask for the rest by ``Range``, guarded by ``If-Range`` so that halves of
two versions never meet; start over where the server does not go along; try again on what passes.
A web page in place of a file is refused, with its title. Nothing here knows hashes.
"""

from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from styleclip_core.errors import StyleCLIPError

Observer = Callable[[int, int | None], None]
_START = 4096
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_WAIT_S = 60.0


class DownloadError(StyleCLIPError):
    """A file could not be downloaded or stored."""


class _CutError(Exception):
    """The transfer ended early or never began, and may go better next time."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class PartState:
    """What is known of a partial download; lies beside it as JSON.

    Attributes:
        url: Where it comes from.
        validator: The server's strong ETag or Last-Modified: names the version.
        total: Bytes of the whole file, if the server said so.
        complete: Whether the server said that this is all.
    """

    url: str
    validator: str = ""
    total: int | None = None
    complete: bool = False

    @classmethod
    def read(cls, path: Path) -> PartState | None:
        """Return what lies beside a partial download; None if nothing usable does."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """Keep this beside the partial download."""
        path.write_text(json.dumps(asdict(self)))


@dataclass(frozen=True, slots=True)
class Retries:
    """How stubborn a download is.

    Attributes:
        attempts: Tries in a row that bring no byte, before giving up.
        backoff_s: Wait after the first such try; doubles with every further one.
        timeout_s: Longest silence of the server.
    """

    attempts: int = 5
    backoff_s: float = 1.0
    timeout_s: float = 30.0


def state_path(part: Path) -> Path:
    """Return where the state of a partial download lies."""
    return part.with_name(f"{part.name}.json")


def discard(part: Path) -> None:
    """Delete a partial download and its state."""
    part.unlink(missing_ok=True)
    state_path(part).unlink(missing_ok=True)


def transfer(url: str, part: Path, observe: Observer, retries: Retries = Retries()) -> PartState:
    """Download a file into ``part``, continuing what is already there.

    Args:
        url: Where it is.
        part: Where its bytes go; kept when this fails, so that the next call continues.
        observe: Called with the bytes so far and the total, None where the server does not say.
        retries: How stubborn to be.

    Returns:
        The state of the finished download.

    Raises:
        DownloadError: If the server refuses, sends a web page, or goes on failing, or the disk is full.
    """
    timeout = httpx.Timeout(retries.timeout_s)
    fruitless, best = 0, _size(part)

    with httpx.Client(follow_redirects=True, timeout=timeout) as client:
        while True:
            try:
                return _attempt(client, url, part, observe)
            except _CutError as cut:
                # a try that brought bytes was worth it, however often the connection breaks
                fruitless = 0 if _size(part) > best else fruitless + 1
                best = max(best, _size(part))
                if fruitless >= retries.attempts:
                    kept = f": it continues after {_size(part):,} bytes" if _size(part) else ""
                    raise DownloadError(
                        f"cannot download {url}: {cut}, {fruitless} times in a row; check the network and "
                        f"run this again{kept}"
                    ) from cut

                time.sleep(max(cut.wait_s, retries.backoff_s * 2 ** max(fruitless - 1, 0)))
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise DownloadError(f"cannot download {url}: {_reason(error)}") from error
            except OSError as error:
                raise DownloadError(
                    f"cannot store {part}: {error.strerror or error}; make room or set STYLECLIP_CACHE"
                ) from error


def _attempt(client: httpx.Client, url: str, part: Path, observe: Observer) -> PartState:
    state, start = PartState.read(state_path(part)), _size(part)
    if state is not None and state.complete and state.url == url and state.total in (None, start):
        return state

    headers = {"Accept-Encoding": "identity"}  # bytes as they are: they are hashed
    if start and state is not None and state.url == url and state.validator:
        # of a file that has changed meanwhile, If-Range brings the whole, not the rest
        headers |= {"Range": f"bytes={start}-", "If-Range": state.validator}
    else:  # without a validator the rest may belong to another version
        discard(part)

    try:
        with client.stream("GET", url, headers=headers) as response:
            offset = _judge(response, url, part)
            return _receive(response, url, part, offset, observe)
    except httpx.TransportError as error:
        # no number of tries helps a wrong address
        if isinstance(error, httpx.UnsupportedProtocol):
            raise
        raise _CutError(_reason(error)) from error


def _judge(response: httpx.Response, url: str, part: Path) -> int:
    """Return the offset at which a response's bytes go, or refuse it."""
    status = response.status_code
    if status in _PASSING:
        raise _CutError(f"the server answers {status}", _retry_after(response))
    if status == 416:  # what is there is longer than the file
        discard(part)
        raise _CutError("the server has no bytes there; started over")
    if status not in (200, 206):
        raise DownloadError(
            f"cannot download {url}: the server answers {status}; it may have moved, see the model's page"
        )

    # the answer is one with a body: is it the file's, and as it is?
    hops = [*response.history, response]
    if url.startswith("https://") and any(hop.url.scheme != "https" for hop in hops):
        raise DownloadError(f"cannot download {url}: it leads away from https")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadError(f"cannot download {url}: the server sends it compressed, though asked not to")
    if status == 200:
        return 0

    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != _size(part):
        discard(part)
        raise _CutError("the server sends another range than asked for; started over")
    return int(found[1])


def _receive(response: httpx.Response, url: str, part: Path, offset: int, observe: Observer) -> PartState:
    total = _total(response, offset)
    state = PartState(url, _validator(response), total)
    state.write(state_path(part))  # before the first byte, so that what a killed process leaves can go on

    done = offset
    with part.open("r+b" if offset else "wb") as stream:
        # what lies behind the offset is of no use: it came before the state was written
        stream.seek(offset)
        stream.truncate()
        for chunk in _chunks(response):
            if done == 0:
                _refuse_page(chunk, response, url)
            stream.write(chunk)
            done += len(chunk)
            observe(done, total)

    # a connection that is cut ends like one that is done
    if total is not None and done != total:
        raise _CutError(f"the connection ended after {done:,} of {total:,} bytes")
    if not done:
        raise DownloadError(f"cannot download {url}: the server sends an empty file")

    finished = PartState(url, state.validator, total, complete=True)
    finished.write(state_path(part))
    return finished


def _chunks(response: httpx.Response) -> Iterator[bytes]:
    """Yield a body as it comes, but its start in one piece, so that a web page shows its title."""
    start = b""
    chunks = response.iter_raw()
    for chunk in chunks:
        start += chunk
        if len(start) >= _START:
            break

    if start:
        yield start
    yield from chunks


def _refuse_page(start: bytes, response: httpx.Response, url: str) -> None:
    """Refuse a web page: no model starts with '<'."""
    if "text/html" not in response.headers.get("Content-Type", "") and not start.lstrip().startswith(b"<"):
        return

    title = re.search(rb"<title[^>]*>(.*?)</title>", start, re.IGNORECASE | re.DOTALL)
    said = " ".join(html.unescape(title[1].decode(errors="replace")).split())[:80] if title else ""
    raise DownloadError(
        f"cannot download {url}: the server sends a web page instead of the file"
        + (f' ("{said}")' if said.isprintable() and said else "")
    )


def _validator(response: httpx.Response) -> str:
    etag: str = response.headers.get("ETag", "")
    if etag and not etag.startswith("W/"):  # If-Range knows no weak ones
        return etag
    return str(response.headers.get("Last-Modified", ""))


def _total(response: httpx.Response, offset: int) -> int | None:
    if response.status_code == 206:
        found = re.search(r"/(\d+)$", response.headers.get("Content-Range", ""))
        return int(found[1]) if found else None

    length = response.headers.get("Content-Length", "")
    return offset + int(length) if length.isdecimal() else None


def _retry_after(response: httpx.Response) -> float:
    text = response.headers.get("Retry-After", "")
    # a date, which is allowed as well, is passed over
    return min(float(text), _LONGEST_WAIT_S) if text.isdecimal() else 0.0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
