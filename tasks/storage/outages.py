"""What goes wrong with storage: whose fault it is, and for how long to wait until it has passed.

An error is an object's (it is missing, this one may not be read) or the store's: it does not answer, is
overloaded, is full, or refuses the credentials as such. The difference decides what becomes of a batch:
an object's error is written into its row, a store's error fails the shard, so that Retry does it again.
``styleclip.tasks.storage.items`` decides it where items are read.

A remote store that does not answer is asked again, after pauses that grow, for as many seconds as
``STYLECLIP_STORAGE_PATIENCE`` says (60 if it is not set). The seconds count from the first failure that no
answer has followed, whoever saw it: a store that is down for the night is waited for once, not once for
every object.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    CapacityNotAvailableError,
    ChecksumError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    LoginError,
    MetadataRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    PaginationError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from styleclip_core.errors import StyleCLIPError

_T = TypeVar("_T")
_DEFAULT_PATIENCE_S, _LONGEST_PAUSE_S = 60.0, 5.0
_logger = logging.getLogger(__name__)


class StorageError(StyleCLIPError):
    """An object could not be listed, read or written."""


class MissingObjectError(StorageError):
    """There is no such object or bucket."""


class ChangedObjectError(StorageError):
    """An object is no longer the version that was listed."""


class AccessDeniedError(StorageError):
    """The credentials in use may not do this."""


class StoreError(StorageError):
    """The store is at fault, not an object: whatever was under way must be done again."""


class StoreUnavailableError(StoreError):
    """The store does not answer, or says that it cannot now."""


class CredentialsError(StoreError, AccessDeniedError):
    """The store refuses the credentials as such: they are unknown, wrong or expired."""


class MissingCredentialsError(CredentialsError):
    """This machine has no credentials for the store, or half of them."""


class StoreSetupError(StoreError):
    """This machine is not set up for the store: an endpoint, a region, certificates or options are wrong."""


class StoreFullError(StoreError):
    """There is no space left, or nothing may be written there."""


class UnreadablePrefixError(StoreError):
    """No object under a prefix can be read, so none of them is to blame."""


class UnservedObjectError(StorageError):
    """A store fails for one object, for as long as it is asked, and serves others beside it."""


_CREDENTIALS_CODES = {
    "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken",
    "InvalidSecurity", "TokenRefreshRequired", "RequestTimeTooSkewed", "RequestExpired", "NotSignedUp",
    "AccountProblem", "AllAccessDisabled",
}  # fmt: skip
_PASSING_CODES = {
    "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests",
    "RequestTimeout", "RequestTimeoutException", "OperationAborted", "InternalError", "ServiceUnavailable",
    # what the store says of a request whose body was damaged on its way
    "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch",
}  # fmt: skip
_NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, ProfileNotFound)
_CREDENTIALS_ERRORS = (CredentialRetrievalError, TokenRetrievalError, NoAuthTokenError, SSOError, LoginError)
# those of botocore that come of a request under way; its others come of settings, and no waiting mends them
_SENDING_ERRORS = (
    HTTPClientError, BotoConnectionError, IncompleteReadError, ChecksumError, FlexibleChecksumError,
    MetadataRetrievalError, PaginationError, CapacityNotAvailableError, ResponseParserError,
    aiohttp.ClientError, TimeoutError,
)  # fmt: skip
# a file of certificates that is not there, or is none
_CERTIFICATES = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, ssl.SSLError)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_PASSING = {
    errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT,
    errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ENOTCONN,
    errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EBUSY, errno.ENOMEM,
}  # fmt: skip
_FOREIGN = (OSError, BotoCoreError, ClientError, ResponseParserError, aiohttp.ClientError)
# Of further kinds of storage (hf://, https://, ...), whose packages need not be here: errors go by where they
# were defined, and by the status that their answer has.
_CLIENTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "huggingface_hub")


@contextmanager
def explained(uri: str, action: str) -> Iterator[None]:
    """Turn what storage libraries raise into one error that names object, cause and remedy."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, _FOREIGN) and not _is_of_a_client(error) and not _is_of_options(error):
            raise
        kind = classify(error)
        reason = " ".join((str(error) or type(error).__name__).split())[:300]
        told = f"cannot {action} {uri}: {_explanation(kind, reason)}"
        raise kind(told + (_whose_path(uri) if kind is MissingObjectError else "")) from error


def _is_of_a_client(error: Exception) -> bool:
    """Return whether an error comes from a package that speaks HTTP for some kind of storage."""
    return any(each.__module__.partition(".")[0] in _CLIENTS for each in type(error).__mro__)


def _is_of_options(error: Exception) -> bool:
    """Return whether an error is what botocore raises of an option or an endpoint that it cannot use."""
    # s3fs passes an option it does not know on
    return isinstance(error, TypeError) or (type(error) is ValueError and "Invalid endpoint" in str(error))


def _whose_path(uri: str) -> str:
    """Return, of a path, on which machine it was looked for: whoever typed it into a form has another one."""
    from styleclip.tasks.storage.places import here, is_local  # which knows the errors above

    if not is_local(uri):
        return ""
    return f" where this is executed ({here()}); give a path that exists there, or a URI"


def _explanation(kind: type[StorageError], reason: str) -> str:
    return {
        MissingObjectError: "there is no such object or bucket",
        AccessDeniedError: "access denied; check the credentials or the AWS profile in use",
        CredentialsError: f"the credentials are refused ({reason}); renew them, then press Retry",
        MissingCredentialsError: f"there are no credentials ({reason}); set AWS_PROFILE, or "
        'AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or for a public bucket {"anon": true} in '
        "STYLECLIP_STORAGE_OPTIONS, then press Retry",
        StoreSetupError: f"this machine is not set up for the store ({reason}); check AWS_ENDPOINT_URL, the "
        "region, AWS_CA_BUNDLE, the AWS config file and STYLECLIP_STORAGE_OPTIONS, then press Retry",
        StoreFullError: f"no space is left there ({reason}); free some, then press Retry",
        StoreUnavailableError: f"the store does not answer ({reason}); check the endpoint and the network, "
        "then press Retry",
    }.get(kind, f"{reason}; check the endpoint, the credentials and the network")


def classify(error: Exception) -> type[StorageError]:
    """Return what kind of error a storage library has raised."""
    # s3fs raises an OSError of its own; S3's answer, which says more, is its cause
    answer = error if isinstance(error, ClientError) else error.__cause__
    if isinstance(answer, ClientError):
        code = str(answer.response.get("Error", {}).get("Code", ""))
        status = answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in _CREDENTIALS_CODES:
            return CredentialsError
        if code in _PASSING_CODES or status >= 500 or status == 429:
            return StoreUnavailableError

    if _is_of_a_client(error):
        return _by_status(getattr(getattr(error, "response", None), "status_code", None))
    if isinstance(error, FileNotFoundError):
        return MissingObjectError
    if isinstance(error, PermissionError):
        return AccessDeniedError
    if isinstance(error, _NO_CREDENTIALS):
        return MissingCredentialsError
    if isinstance(error, _CREDENTIALS_ERRORS):
        return CredentialsError
    # what is asked for is at fault, say a key, and was never asked for
    if isinstance(error, ParamValidationError):
        return StorageError
    if isinstance(error, _SENDING_ERRORS):
        return StoreSetupError if _distrusts(error) else StoreUnavailableError
    if isinstance(error, BotoCoreError) or _is_of_options(error):
        return StoreSetupError

    # what is left are the disk's and the network's errors, told apart by number alone
    number = error.errno if isinstance(error, OSError) else None
    if number in _FULL:
        return StoreFullError
    return StoreUnavailableError if number in _PASSING or isinstance(error, ConnectionError) else StorageError


def _distrusts(error: Exception) -> bool:
    """Return whether a request failed for the certificates: the store's, or those to hold it against."""
    inner = getattr(error, "kwargs", {}).get("error")
    if isinstance(inner, ssl.CertificateError):
        return True
    # a handshake that breaks off may do so once, and is another error of botocore
    return type(error) is HTTPClientError and isinstance(inner, _CERTIFICATES)


def _by_status(status: int | None) -> type[StorageError]:
    """Return what an HTTP status says; without one there was no answer."""
    if status in (404, 410):
        return MissingObjectError
    if status in (401, 403):
        return AccessDeniedError
    return StoreUnavailableError if status is None or status >= 500 or status == 429 else StorageError


def patience() -> float:
    """Return for how many seconds a store that does not answer is waited for.

    Raises:
        StorageError: If ``STYLECLIP_STORAGE_PATIENCE`` is not a number from 0.
    """
    wanted = os.environ.get("STYLECLIP_STORAGE_PATIENCE", "")
    try:
        seconds = float(wanted) if wanted else _DEFAULT_PATIENCE_S
    except ValueError:
        seconds = math.nan

    if not 0 <= seconds < math.inf:
        raise StorageError(f"STYLECLIP_STORAGE_PATIENCE must be a number of seconds from 0, got {wanted!r}")
    return seconds


def patiently(place: str, uri: str, action: str, work: Callable[[], _T]) -> _T:
    """Return what ``work`` returns; where the store does not answer, ask again until patience ends.

    Args:
        place: Name of the store, e.g. ``"s3://bucket"``; what calls of one place see counts for all.
        uri: What the work is about, for messages.
        action: What the work does, a verb, for messages.
        work: Does it; must be safe to do twice.

    Raises:
        StorageError: If it cannot be done; a ``StoreError`` if no object is to blame for that.
    """

    def once() -> _T:
        try:
            with explained(uri, action):
                done = work()
        except StoreUnavailableError as error:
            _watch.failed(place, error)
            raise
        _watch.answered(place)
        return done

    def enough(state: RetryCallState) -> bool:
        # counted from the store's first failure: the patience of many calls must not add up
        return max(state.seconds_since_start or 0.0, _watch.lasting(place)) >= patience()

    again = Retrying(
        retry=retry_if_exception_type(StoreUnavailableError),
        wait=wait_random_exponential(multiplier=0.2, max=_LONGEST_PAUSE_S),
        stop=enough,
        reraise=True,
    )
    return again(once)


class _Watch:
    """How long each store has not answered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: dict[str, tuple[float, float]] = {}  # first and last failure

    def failed(self, place: str, error: StorageError) -> None:
        now = time.monotonic()
        with self._lock:
            first, last = self._since.get(place, (now, -math.inf))
            new = now - last > patience() + _LONGEST_PAUSE_S  # nobody has asked since; that was another one
            self._since[place] = (now if new else first, now)
        if new:
            _logger.warning("%s does not answer (%s); asking again", place, error.__cause__)

    def answered(self, place: str) -> None:
        # looked at without the lock, as every answer comes by here
        if place not in self._since:
            return
        with self._lock:
            first, _ = self._since.pop(place, (math.inf, 0.0))

        # a hiccup is not worth a line in the log
        if time.monotonic() - first > 1.0:
            _logger.warning("%s answers again, after %.1f s", place, time.monotonic() - first)

    def lasting(self, place: str) -> float:
        first, _ = self._since.get(place, (time.monotonic(), 0.0))
        return time.monotonic() - first


_watch = _Watch()
