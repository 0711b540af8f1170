"""Names of outputs: whatever an object is called, what is made of it never leaves its prefix."""

from __future__ import annotations

import hashlib
import re
import unicodedata

_PLAIN_FOLDER = re.compile(r"[a-z0-9][a-z0-9_ +-]*")
_PLAIN_NAME = re.compile(r"[a-z0-9][a-z0-9._ +-]*")
_MAX_PART, _MAX_KEY = 180, 800
_VERSION_DIGITS, _APART_DIGITS = 12, 16
_FORBIDDEN = frozenset('\\:*?"<>|#%')  # by Windows (SeaweedFS takes \ for /), links, names of places
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)  # by Windows


def output_key(image_key: str, *, suffix: str, version: str | None = None) -> str:
    """Map an object key, whoever chose it, to a relative path of ours.

    Plain keys stay readable (``faces/0001.png`` -> ``faces/0001.png``). Any other (``..``, absolute,
    upper case that another key may differ from only by case, odd Unicode, very long) goes to a flat
    folder under a name with its hash. Different keys never share a path, and no path leaves the prefix.

    Args:
        image_key: The key, any string.
        suffix: Ending of the output, e.g. ``".png"``.
        version: Hash of what the object holds. What is made of another version of it gets a name of its own
            then, ``faces/0001.png~3f2a1b9c04d5.png``, and takes nobody's place.

    Returns:
        A relative path of at most 900 bytes, each part at most 255.
    """
    if version:
        suffix = f"~{version[:_VERSION_DIGITS]}{suffix}"
    if not _is_plain(image_key):
        return f"{mangled(image_key)}{suffix}"

    # "~" is in no plain name, so a lengthened key is never another key itself
    if version:
        return f"{image_key}{suffix}"
    return image_key if image_key.endswith(suffix) else f"{image_key}~{suffix}"


def readable_key(image_key: str, *, suffix: str, version: str) -> str:
    """Map an object key, whoever chose it, to a relative path of ours that a person recognizes.

    As ``output_key`` but for keys that are safe without being plain. ``Bob Smith/IMG_0001.JPG``, ``café.png``
    stay what they are, and get 16 digits in place of 12, of a hash of key and content. So keys that differ by
    case or by Unicode's normal form alone lie apart even where the file system cannot tell them so; which
    other keys there are does not matter, and none that is added renames another.

    Only what no store or browser should meet goes to the flat folder: ``..``, empty parts, control and
    invisible characters, what Windows reserves, ``#``, ``%``, a ``~`` in folders, and what is too long.

    Args:
        image_key: The key, any string.
        suffix: Ending of the output, e.g. ``".png"``.
        version: Hash of what the object holds.

    Returns:
        A relative path of at most 900 bytes, each part at most 255.
    """
    if not is_safe(image_key):
        return f"{mangled(image_key)}~{version[:_VERSION_DIGITS]}{suffix}"
    if _is_plain(image_key):
        return output_key(image_key, suffix=suffix, version=version)
    apart = hashlib.sha256(f"{image_key}\0{version}".encode()).hexdigest()[:_APART_DIGITS]
    return f"{image_key}~{apart}{suffix}"


def is_safe(image_key: str) -> bool:
    """Return whether a key, lengthened by ``~`` and digits, may stand in paths, links and tars as it is."""
    *folders, _ = parts = image_key.split("/")
    if len(_bytes(image_key)) > _MAX_KEY or parts[0] == "_":
        return False

    # a folder with "~" could be called as the output of another key is
    return not any("~" in folder for folder in folders) and all(
        part
        and part.strip(" .") == part
        and len(_bytes(part)) <= _MAX_PART
        and not _RESERVED.fullmatch(part)
        and not any(letter in _FORBIDDEN or _is_invisible(letter) for letter in part)
        for part in parts
    )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _is_invisible(letter: str) -> bool:
    # controls, direction marks, halves of characters, and every space but the common one
    return letter != " " and unicodedata.category(letter)[0] in "CZ"


def _is_plain(image_key: str) -> bool:
    *folders, name = image_key.split("/")
    return (
        len(image_key) <= _MAX_KEY
        and all(_PLAIN_FOLDER.fullmatch(part) and len(part) <= _MAX_PART for part in folders)
        and _PLAIN_NAME.fullmatch(name) is not None
        and len(name) <= _MAX_PART
        and not name.endswith((" ", "."))
    )


def mangled(image_key: str) -> str:
    """Return a name for any key, in the flat folder: what can be read of it, and a hash."""
    # no folder of another key is called "_", and the hash keeps apart what reads alike
    digest = hashlib.sha256(_bytes(image_key)).hexdigest()[:32]
    readable = re.sub(r"[^a-z0-9]+", "-", image_key.lower())[-60:].strip("-")
    return f"_/{readable}~{digest}"
