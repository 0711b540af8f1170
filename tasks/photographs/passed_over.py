"""What lies under a prefix of photographs and is not read: counted by ending, and said with what to do."""

from __future__ import annotations

from collections.abc import Mapping

_SHOWN = 8
_PHOTOGRAPHS = "not read; convert to JPEG or PNG"
_OF_PHONES = "not read; install the extra heic, or convert to JPEG or PNG"
_ARCHIVES = "an archive; unpack it"
_SHARDS = "archives; give them as --form tars"
_IMAGES = "tables; those with images are read as --form parquet"
_TABLES = "a table; write its images as files"
_REMEDIES = {
    **dict.fromkeys((".heic", ".heif", ".hif"), _OF_PHONES),
    **dict.fromkeys((".jxl", ".avif", ".webp", ".jp2", ".psd"), _PHOTOGRAPHS),
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"), _PHOTOGRAPHS),
    **dict.fromkeys((".zip", ".gz", ".tgz", ".7z", ".zst", ".bz2", ".xz"), _ARCHIVES),
    **dict.fromkeys((".arrow", ".tfrecord", ".lmdb", ".h5", ".hdf5"), _TABLES),
    ".tar": _SHARDS,
    ".parquet": _IMAGES,
    "": "give them one, e.g. .jpg",
    "/": "not followed; copy what is there, or give it as the prefix",
}  # fmt: skip
_NAMES = {"": "without an ending", "/": "linked folder"}


def describe(counts: Mapping[str, int]) -> str:
    """Return one sentence about what was passed over, or nothing if there was nothing.

    Args:
        counts: How often each lower-case ending was seen, ``""`` for none, ``"/"`` for a linked folder.
    """
    counts = {ending: count for ending, count in counts.items() if count > 0}
    if not counts:
        return ""

    # what may be a photograph comes first, then what there is most of
    ordered = sorted(counts.items(), key=lambda each: (each[0] not in _REMEDIES, -each[1], each[0]))
    parts = [_part(ending, count) for ending, count in ordered[:_SHOWN]]

    rest = sum(count for _, count in ordered[_SHOWN:])
    return "passed over: " + ", ".join(parts + ([f"{rest} with other endings"] if rest else []))


def _part(ending: str, count: int) -> str:
    name = _NAMES.get(ending, ending)
    plural = "s" if ending == "/" and count > 1 else ""
    remedy = f" ({_REMEDIES[ending]})" if ending in _REMEDIES else ""
    return f"{count:,} {name}{plural}{remedy}"
