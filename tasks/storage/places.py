"""What a place is called: one form for each, however it was spelled, and a refusal of what can be none.

Results are named after places, and places are compared, so that no two spellings may pass for two places:

    photos, ./photos/, a/../photos, file:///data/photos, a link to it    /data/photos
    s3a://bucket/in/, S3://bucket/in                                     s3://bucket/in

On an object store only slashes at the end go: ``a//b`` and ``a/b`` are different keys there.
"""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from pathlib import Path

import fsspec

from styleclip.tasks.storage.outages import StorageError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_ALIASES = {"s3a": "s3", "gcs": "gs", "local": "file"}
_WINDOWS = r"[A-Za-z]:(?:[\\/]|$)|\\\\"
_AUTHORITY = (
    r"(?:[^/]*::)?(?:"  # a cache or an archive before the place itself
    r"[A-Za-z0-9+.-]+://[^/]*:[^/]*@|[sS]3[aA]?://(?!arn:)[^/]*[:@]|[hH][tT][tT][pP][sS]?://[^/]*@)"
)
# What makes a link that anybody may use: signed ones of S3, Google and Azure, and keys by their usual names.
_SIGNING = "|".join(
    (
        "X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)", "Signature", "sig", "AWSAccessKeyId",
        "GoogleAccessId", "(?:access_?|auth_?|id_?)?token", "(?:api_?|access_?|secret_?|account_?)?key",
        "SharedAccessSignature", "(?:client_?)?secret", "pass(?:word|wd)?", "credentials?",
    )
)  # fmt: skip
_CREDENTIALS = rf"{_AUTHORITY}|[\s\S]*[?&;#](?i:{_SIGNING})="
_MISSPELT = r"[A-Za-z][A-Za-z0-9+.-]+:/(?!/)|[sS]3[aA]?:(?!//)"
_NO_BUCKET = r"(?![fF][iI][lL][eE]:)[A-Za-z][A-Za-z0-9+.-]*:///*$|[sS]3[aA]?:///"

# What matches this is refused before there is a run that would store it: servers know no more than patterns.
NO_PLACE = rf"{_CREDENTIALS}|{_WINDOWS}|{_MISSPELT}|{_NO_BUCKET}|[^\x00]*\x00"


class PlaceError(StorageError, ValueError):
    """What was given names no place."""


def scheme_of(uri: str) -> str:
    """Return the kind of storage of a URI, ``"file"`` for a path.

    Raises:
        PlaceError: If it looks like a URI and is none: a folder of that name would be made else.
    """
    found = _SCHEME.match(uri)
    if not found:
        _refuse_misspelt(uri)
        return "file"
    name = found[1].lower()
    return _ALIASES.get(name, name)


def has_scheme(text: str) -> bool:
    """Return whether a text begins as a URI does, with a scheme."""
    return _SCHEME.match(text) is not None


def is_local(uri: str) -> bool:
    """Return whether a URI is a path on this machine."""
    return scheme_of(uri) == "file"


def local_path(uri: str) -> Path:
    """Return the path of a local URI."""
    return Path(_SCHEME.sub("", uri, count=1)).expanduser()


def canonical(uri: str) -> str:
    """Return the one form of a place.

    A local place becomes an absolute path without links; where it is itself a link to a file, the link's
    name stays, as its ending says what the file holds. A remote one has the usual name of its scheme, in
    lower case, and no slash at its end.

    Raises:
        PlaceError: If it can be no place, or holds credentials.
    """
    if not uri.strip():
        raise PlaceError("a place is empty; give a path or a URI such as s3://bucket/prefix")
    if "\0" in uri:
        raise PlaceError(f"{uri!r} holds a NUL character, which no name can; remove it")
    refuse_credentials(uri)

    scheme = scheme_of(uri)
    if scheme == "file":
        return _canonical_path(uri)

    rest = uri.partition("://")[2].rstrip("/")
    if scheme == "memory":  # which takes what follows for a path
        rest = rest.lstrip("/")
    if not rest or rest.startswith("/"):
        raise PlaceError(f"{uri} names no bucket; give one, as in {scheme}://bucket{rest and '/...'}")
    if scheme not in fsspec.available_protocols():
        raise PlaceError(f"{uri}: there is no storage of the kind {scheme}; give a path or an s3:// URI")
    return f"{scheme}://{rest}"


def here() -> str:
    """Return what a local path depends on: the machine, and where a relative one starts."""
    with suppress(OSError):  # the working directory may be gone
        return f"{socket.gethostname()}, in {Path.cwd()}"
    return socket.gethostname()


def canonical_prefix(uri: str) -> str:
    """Return the one form of what places begin with: a place itself, or a scheme alone (``s3://``)."""
    return f"{scheme_of(uri)}://" if _SCHEME.fullmatch(uri) else canonical(uri)


def lies_in(place: str, prefix: str) -> bool:
    """Return whether a place is a prefix or lies under it, in whole folders; both in their one form."""
    # the slash keeps apart places of which one's name begins with the other's
    return f"{place}/".startswith(prefix if prefix.endswith("/") else f"{prefix}/")


def holds_credentials(uri: str) -> bool:
    """Return whether a URI would carry a secret into logs and results."""
    return bool(re.match(_CREDENTIALS, uri))


def refuse_credentials(uri: str) -> None:
    """Refuse a URI that would carry a secret into logs and results.

    Raises:
        PlaceError: If it holds credentials; the message does not repeat them.
    """
    if holds_credentials(uri):
        raise PlaceError(
            "the URI holds credentials; give them in the environment, e.g. AWS_ACCESS_KEY_ID or AWS_PROFILE, "
            "never in a URI or a parameter, where a signed link or a token is one too"
        )


def _refuse_misspelt(path: str) -> None:
    """Refuse a path that was meant as a URI, or as one of Windows."""
    if re.match(_WINDOWS, path):
        raise PlaceError(f"{path} is a path of Windows; give one of this machine, or an s3:// URI")
    if re.match(_MISSPELT, path):
        scheme, _, rest = path.partition(":")
        meant = f"{scheme.lower()}://{rest if scheme.lower() == 'file' else rest.lstrip('/')}"
        raise PlaceError(
            f"{path} is neither a URI nor a plain path; did you mean {meant}? (the folder is ./{path})"
        )


def _canonical_path(uri: str) -> str:
    """Return an absolute path none of whose folders is a link."""
    try:
        path = local_path(uri)
        resolved = path.resolve()
    except (
        OSError,
        RuntimeError,
    ) as error:  # no such user, links in a circle, a working directory that is gone
        raise PlaceError(f"{uri} leads nowhere: {error}; give an absolute path") from error

    # of a link to a file the name stays: caches keep weights under hashes, without an ending
    if path.name not in ("", "..") and resolved.is_file():
        return str(path.parent.resolve() / path.name)
    return str(resolved)
