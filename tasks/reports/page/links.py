"""Addresses: relative links from a page to its images, and where a person's browser finds the page.

Keys come from anyone. A link is made of percent-encoded parts, none of which can lead out of the prefix.
"""

from __future__ import annotations

import os
from urllib.parse import quote

from styleclip.tasks.settings import SettingsError
from styleclip.tasks.storage import canonical, is_local, local_path, scheme_of

_VARIABLE = "STYLECLIP_LINKS"


def safe_name(key: str) -> bool:
    """Return whether a relative key stays below the prefix it is relative to, for any server and browser."""
    parts = key.split("/")
    # some browsers take a backslash for a slash, some servers end a name at a NUL
    return all(part not in ("", ".", "..") and "\\" not in part and "\0" not in part for part in parts)


def relative_link(key: str, up: int = 0) -> str:
    """Return a link to a relative key, ``up`` folders above the page; empty if the key would leave them.

    >>> relative_link("images/a b/ü#1.png", up=2)
    '../../images/a%20b/%C3%BC%231.png'
    """
    if not safe_name(key):
        return ""

    encoded = "/".join(quote(part, safe="") for part in key.split("/"))
    return f"{'../' * up}{encoded}" if up else f"./{encoded}"


def parent(uri: str, levels: int = 1) -> str:
    """Return the folder ``levels`` above an object."""
    for _ in range(levels):
        uri = uri.rstrip("/").rpartition("/")[0]
    return uri


def below(uri: str, prefix: str) -> str:
    """Return a URI relative to a prefix, or nothing if it lies elsewhere."""
    start = f"{prefix.rstrip('/')}/"
    return uri.removeprefix(start) if uri.startswith(start) else ""


def public_url(uri: str) -> str:
    """Return where a browser finds an object.

    ``STYLECLIP_LINKS`` says which prefix is served where, e.g.
    ``s3://results/=https://results.example.org/``, several separated by spaces. Without it, an object of
    S3 is looked for at the endpoint in use, and a local file at its ``file:`` address.

    Raises:
        SettingsError: If the variable cannot be read.
    """
    # the longest prefix says most about the object
    for prefix, place in sorted(_served().items(), key=lambda item: -len(item[0])):
        rest = below(uri, prefix)
        if rest:
            return f"{place.rstrip('/')}/{quote(rest)}"

    if is_local(uri):
        return local_path(uri).absolute().as_uri()

    if scheme_of(uri) != "s3":
        return uri

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return f"{(endpoint or 'https://s3.amazonaws.com').rstrip('/')}/{quote(uri.partition('://')[2])}"


def _served() -> dict[str, str]:
    served = {}
    for entry in os.environ.get(_VARIABLE, "").split():
        prefix, separator, place = entry.partition("=")
        if not separator or not place.startswith(("http://", "https://")):
            raise SettingsError(
                f"{_VARIABLE} has the entry {entry!r}; write PREFIX=https://PLACE, more of them after spaces"
            )

        served[canonical(prefix)] = place
    return served
