"""Whole objects of S3, read and written at a tenth of what a request costs through s3fs.

s3fs finds out where a bucket is and with whose credentials, opens the way, and is asked for everything else.
Once it has been answered, ``obstore`` sends the requests that a batch makes for each of its images. What does
not go well on that way is asked for again through s3fs, which says whose fault it is: so errors, their texts
and how long a store is waited for are the same on both ways, and during an outage s3fs alone asks.

Where a request is made in some special way (encryption, a requester who pays, an address book of its own, a
proxy, certificates, FIPS), s3fs makes it. ``obstore`` reads variables of the environment too, some of which
s3fs has never heard of or takes for less than what it is told: none of them decides anything here.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import fsspec
import fsspec.asyn
from botocore import UNSIGNED
from botocore.credentials import Credentials
from botocore.utils import get_environ_proxies

if TYPE_CHECKING:
    from obstore.store import S3Store

_T = TypeVar("_T")
# what is larger takes its time on any way, and s3fs sends it in parts
MOST_BYTES = 2**23
_TIMEOUT = timedelta(seconds=20)
_FAILURES = 8  # in a row, each with an answer through s3fs: this store wants to be asked otherwise
# what the environment tells obstore alone, and no option takes back
_ENCRYPTION = ("AWS_SERVER_SIDE_ENCRYPTION", "AWS_SSE_")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_lock = threading.Lock()


def directly(
    fs: fsspec.AbstractFileSystem,
    path: str,
    quick: Callable[[S3Store, str], _T | None],
    slow: Callable[[], _T],
) -> _T:
    """Return what ``quick`` does with a store and a key of it, or what ``slow`` does where it does nothing.

    Args:
        fs: s3fs for the path.
        path: Of the object, with its bucket.
        quick: Does it with one request; None if that has not gone well.
        slow: Does it through s3fs; what it raises is the error.
    """
    way = _way(fs, path)
    if way is None:
        return slow()

    bucket, key, _ = fs.split_path(path)
    found, doubted = way.ask(bucket, key, quick)
    if found is not None:
        return found
    done = slow()
    way.open(doubted)
    return done


def get(store: S3Store, key: str, etag: str = "", part: slice = slice(None)) -> bytes | None:
    """Return an object's content, or a stretch of it; None if it is not the version of an etag.

    Raises:
        Exception: Whatever is in the way.
    """
    import obstore

    options: dict[str, Any] = {"if_match": f'"{etag}"'} if etag else {}
    if part.stop is not None:
        options["range"] = (part.start or 0, part.stop)
    answer = obstore.get(store, key, options=options)  # type: ignore[arg-type] # keys chosen above
    # not every store knows conditions
    if etag and str(answer.meta["e_tag"]).strip('"') != etag:
        return None
    content = bytes(answer.bytes())
    first, end = answer.range
    return content if len(content) == end - first else None


def put(store: S3Store, key: str, data: bytes, content_type: str = "") -> bool:
    """Write an object whole; its type is the store's own guess if none is given.

    Raises:
        Exception: Whatever is in the way.
    """
    import obstore

    about = {"Content-Type": content_type} if content_type else {}
    obstore.put(store, key, data, attributes=about, use_multipart=False)
    return True


def head(store: S3Store, key: str) -> str | None:
    """Return the version of an object: its etag; empty if there is no such object.

    Raises:
        Exception: Whatever is in the way.
    """
    import obstore

    try:
        return (obstore.head(store, key)["e_tag"] or "").strip('"') or None
    except FileNotFoundError:
        return ""


class _SpecialError(Exception):
    """Requests of this client are made in some special way."""


class _Way:
    """The short way to the buckets of one file system, which is closed until s3fs has been answered."""

    def __init__(self, fs: fsspec.AbstractFileSystem) -> None:
        self._fs, self._process = fs, os.getpid()
        self._open, self._failures = False, 0
        self._opened = 0  # times
        self._stores: dict[str, S3Store] = {}
        self._credentials: Any = None

    def open(self, doubted: int | None = None) -> None:
        """Take it from now on: the store has answered s3fs.

        Args:
            doubted: The opening in which this way did not lead to that answer; None if it was not tried.
        """
        with _lock:
            if self._failures >= _FAILURES:
                return
            # an outage fails many requests at once, and says as much as one of them
            if doubted == self._opened:
                self._failures += 1
            elif self._open:
                return
            self._open = self._failures < _FAILURES
            self._opened += 1

    def ask(
        self, bucket: str, key: str, work: Callable[[S3Store, str], _T | None]
    ) -> tuple[_T | None, int | None]:
        """Return what work does; None where it has not gone well, or the way is not open to a key.

        Beside it stands the opening in which it failed, if s3fs has to tell whether the store is to blame.
        """
        opened = self._opened
        if not self._open or not _BUCKET.fullmatch(bucket) or not _is_plain(key):
            return None, None
        # threads of the other library do not follow a fork
        if self._process != os.getpid():
            return None, None

        from obstore.exceptions import PreconditionError

        try:
            store = self._store(bucket)
            found = work(store, key) if store else None
        except (FileNotFoundError, PreconditionError):  # an answer, which s3fs tells better
            return None, None
        except PermissionError:
            # as well, unless credentials have been renewed meanwhile: those in use then are taken next time
            self._stores.clear()
            return None, opened
        except _SpecialError:
            self._open, self._failures = False, _FAILURES
            return None, None
        except Exception:
            # what is wrong s3fs finds out; another thread may have done so, and opened the way again
            if opened == self._opened:
                self._open = False
            self._stores.clear()
            return None, opened
        if found is not None:
            self._failures = 0
        return found, None

    def _store(self, bucket: str) -> S3Store | None:
        # credentials that run out soon are renewed by s3fs, when it asks
        stale = getattr(self._credentials, "refresh_needed", None)
        if stale and stale():
            self._open = False
            self._stores.clear()
            return None
        # another thread may clear what this one has found
        found = self._stores.get(bucket)
        if found is None:
            with _lock:
                found = self._stores.get(bucket) or self._connect(bucket)
                self._stores[bucket] = found
        return found

    def _connect(self, bucket: str) -> S3Store:
        from obstore.store import S3Store

        client, self._credentials = fsspec.asyn.sync(self._fs.loop, _client_of, self._fs)
        signed: dict[str, Any] = {"skip_signature": True}
        if self._credentials is not None:
            frozen = fsspec.asyn.sync(self._fs.loop, _frozen, self._credentials)
            known = {"access_key_id": frozen.access_key, "secret_access_key": frozen.secret_key}
            # called for, as to keys that are given obstore adds the environment's token
            signed = {
                "credential_provider": lambda: {**known, "token": frozen.token, "expires_at": None},
                "skip_signature": False,
            }

        endpoint, region = client.meta.endpoint_url, client.meta.region_name
        return S3Store(
            bucket, endpoint=endpoint, virtual_hosted_style_request=False,
            # said for the environment, which may say otherwise
            config={"aws_endpoint_url_s3": endpoint}, s3_express=False, request_payer=False,
            region=region if region not in (None, "aws-global") else "us-east-1",
            client_options={
                "allow_http": endpoint.startswith("http://"), "timeout": _TIMEOUT, "connect_timeout": "5s",
            },
            # whoever calls is patient
            retry_config={"max_retries": 0, "retry_timeout": _TIMEOUT},
            **signed,
        )  # fmt: skip


def _way(fs: fsspec.AbstractFileSystem, path: str) -> _Way | None:
    """Return the short way of a file system; None where its requests are special."""
    # kept in the instance: one with renewed credentials is another instance
    known = vars(fs)
    if "_styleclip_way" not in known:
        known["_styleclip_way"] = _Way(fs) if _is_usual(fs) else None
    way: _Way | None = known["_styleclip_way"]
    return way


def _is_usual(fs: fsspec.AbstractFileSystem) -> bool:
    """Return whether a file system asks with nothing but an endpoint, a region and credentials."""
    special = (fs.s3_additional_kwargs, fs.req_kw, fs.version_aware, fs.cache_regions, not fs.use_ssl)
    said = {
        "kwargs": {"profile"},
        "client_kwargs": {"endpoint_url", "region_name"},
        "config_kwargs": {"retries", "s3"},
    }
    return not any(special) and not any(set(getattr(fs, name) or {}) - usual for name, usual in said.items())


async def _client_of(fs: fsspec.AbstractFileSystem) -> tuple[Any, Any]:
    """Return the client of s3fs and its credentials; None for the latter where requests are not signed.

    Raises:
        _SpecialError: If environment or configuration files make its requests special, or would make those
            of obstore so.
    """
    if any(name.startswith(_ENCRYPTION) for name in os.environ):
        raise _SpecialError
    client = await fs.set_session()
    config, endpoint = client.meta.config, client.meta.endpoint_url
    trusted = endpoint.startswith("https://") and fs.session.get_config_variable("ca_bundle")
    fips, dual = (getattr(config, f"use_{name}_endpoint", None) for name in ("fips", "dualstack"))
    # buckets in the path of the address, as obstore asks here too
    shaped = config.s3 and config.s3 != {"addressing_style": "path"}
    if any((shaped, config.proxies, get_environ_proxies(endpoint), trusted, fips, dual)):
        raise _SpecialError
    if config.signature_version is UNSIGNED:
        return client, None
    if config.signature_version != "s3v4":
        raise _SpecialError

    given = fs.key and fs.secret
    return client, Credentials(fs.key, fs.secret, fs.token) if given else await fs.session.get_credentials()


async def _frozen(credentials: Any) -> Any:  # noqa: ANN401 - botocore has no types
    frozen = credentials.get_frozen_credentials()
    return frozen if hasattr(frozen, "access_key") else await frozen


def _is_plain(key: str) -> bool:
    """Return whether obstore takes a key as it is; it would mend others, and ask for another object."""
    return key.isprintable() and not {"", ".", ".."} & set(key.split("/"))
