"""Names of outputs: whatever an object is called, what is made of it never leaves its prefix."""

from __future__ import annotations

import hashlib
import re

_PLAIN_FOLDER = re.compile(r"[a-z0-9][a-z0-9_ +-]*")
_PLAIN_NAME = re.compile(r"[a-z0-9][a-z0-9._ +-]*")
_MAX_PART, _MAX_KEY = 180, 800
_VERSION_DIGITS = 12


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

    *folders, name = image_key.split("/")
    plain = (
        len(image_key) <= _MAX_KEY
        and all(_PLAIN_FOLDER.fullmatch(part) and len(part) <= _MAX_PART for part in folders)
        and _PLAIN_NAME.fullmatch(name) is not None
        and len(name) <= _MAX_PART
        and not name.endswith((" ", "."))
    )

    if not plain:
        # no plain folder is called "_", and the hash keeps apart what reads alike
        digest = hashlib.sha256(image_key.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        readable = re.sub(r"[^a-z0-9]+", "-", image_key.lower())[-60:].strip("-")
        return f"_/{readable}~{digest}{suffix}"

    # "~" is in no plain name, so a lengthened key is never another key itself
    if version:
        return f"{image_key}{suffix}"
    return image_key if name.endswith(suffix) else f"{image_key}~{suffix}"
