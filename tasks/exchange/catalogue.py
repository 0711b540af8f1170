"""A published model -> a file in the cache that has been checked against its hash.

The final name appears only after the check. Where nobody states a hash, the user decides: by
``accept_sha256``, with a hash from elsewhere, or by ``trust``, on first use. Either is written down
in ``trust.json`` beside the file, and another content is refused from then on, also when the file
was deleted and is downloaded again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from styleclip.tasks.exchange.transfers import (
    DownloadError,
    Observer,
    PartState,
    Retries,
    discard,
    state_path,
    transfer,
)
from styleclip.tasks.storage import write_bytes_atomic
from styleclip_core.files.checkpoint import file_sha256
from styleclip_core.models.catalog import ORIGINS, PublishedModel

RECORD = "trust.json"


class HashMismatchError(DownloadError):
    """A file is not the one that was published, or that was trusted before."""


class UntrustedFileError(DownloadError):
    """A file has no published hash, and nobody has said yet that it may be used."""


@dataclass(frozen=True, slots=True)
class Consent:
    """What the user says to a file without a published hash.

    Attributes:
        accept_sha256: The only hash to accept; counts more than the catalogue's.
        trust: Whether to accept whatever comes, the first time.
    """

    accept_sha256: str | None = None
    trust: bool = False

    def __post_init__(self) -> None:
        text = self.accept_sha256
        if text is not None and (len(text) != 64 or set(text) - set("0123456789abcdef")):
            raise ValueError(f"--accept-sha256 takes 64 hexadecimal digits in lower case, got {text!r}")


def model_path(model: PublishedModel, folder: Path) -> Path:
    """Return where a model lies under the cache's folder once it is fetched."""
    return folder / model.name / model.file


def trusted_sha256(record: Path) -> str | None:
    """Return the hash that a user accepted before; None if there is none.

    Raises:
        UntrustedFileError: If the record is damaged.
    """
    if not record.exists():
        return None

    try:
        return str(json.loads(record.read_text())["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UntrustedFileError(
            f"{record} is damaged; delete it and accept the file anew with --accept-sha256 or --trust"
        ) from error


@dataclass(frozen=True, slots=True)
class _Case:
    """A model, where it is to lie, and what decides whether it may."""

    model: PublishedModel
    path: Path
    consent: Consent
    tell: Callable[[str], None]

    @property
    def expected(self) -> str | None:
        # what the user says now outweighs the catalogue, and this an earlier consent
        return self.consent.accept_sha256 or self.model.sha256 or trusted_sha256(self.path.with_name(RECORD))

    @property
    def origin(self) -> str:
        if self.consent.accept_sha256:
            return "given by --accept-sha256"
        return ORIGINS[self.model.sha256_origin] if self.model.sha256 else "trusted at first use"


def fetch_model(
    model: PublishedModel,
    folder: Path,
    consent: Consent = Consent(),
    *,
    observe: Observer = lambda done, total: None,
    tell: Callable[[str], None] = lambda text: None,
    retries: Retries = Retries(),
) -> Path:
    """Download a model into the cache, or check the one that is there.

    Args:
        model: What to fetch.
        folder: The cache's folder for models; every model has a folder of its own in it.
        consent: What the user says to a file without a published hash.
        observe: Progress of the download, in bytes.
        tell: Takes sentences for the user.
        retries: How stubborn the download is.

    Returns:
        Where the checked file lies.

    Raises:
        HashMismatchError: If the bytes are not the published or the trusted ones.
        UntrustedFileError: If no hash is known and the user did not consent.
        DownloadError: If it cannot be downloaded or stored.
    """
    path = model_path(model, folder)
    case = _Case(model, path, consent, tell)
    with _alone(path.parent, lambda: tell(f"another process is fetching {model.name}; waiting for it")):
        if path.exists():
            _check_kept(case)
        else:
            part = path.with_name(f"{path.name}.part")
            _download(model, part, observe, retries)
            _check_download(case, part)

            # only now: whatever has the final name has been checked
            part.replace(path)
            discard(part)
    return path


@contextmanager
def _alone(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a folder's lock; the system frees it when a process dies."""
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            # tried first, so that waiting can be announced
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()
    except OSError as error:
        raise DownloadError(f"cannot use {folder}: {error.strerror or error}; set STYLECLIP_CACHE") from error

    try:
        yield
    finally:
        lock.release()


def _download(model: PublishedModel, part: Path, observe: Observer, retries: Retries) -> None:
    # what an earlier try has downloaded takes up room that this one does not need again
    free = shutil.disk_usage(part.parent).free + (part.stat().st_size if part.exists() else 0)
    if model.size is not None and free < model.size:
        raise DownloadError(
            f"{model.name} takes {model.size:,} bytes and {part.parent} has room for {free:,}; make room "
            "or set STYLECLIP_CACHE"
        )

    try:
        transfer(model.url, part, observe, retries)
    except DownloadError as error:
        raise DownloadError(
            f"{error}. By hand: download it from {model.page}, put it at {part.with_name(model.file)}, and "
            f"run 'styleclip models fetch {model.name}' to have it checked"
        ) from error


def _check_download(case: _Case, part: Path) -> None:
    """Let a finished download pass, or raise; one with wrong content is deleted."""
    found, wrong = _examine(case, part)
    if wrong:
        discard(part)
        raise HashMismatchError(
            f"{case.model.name}: the download {wrong}; it was deleted. Try again; if it stays so, the file "
            f"at {case.model.page} was changed: find out why before you accept it with --accept-sha256"
        )

    # where nobody says how long the file is, a cut one looks whole
    state = PartState.read(state_path(part))
    _decide(case, found, whole=case.model.size is not None or (state is not None and state.total is not None))


def _check_kept(case: _Case) -> None:
    """Let a file that is already there pass, or raise; it is not deleted, it may be the user's own."""
    found, wrong = _examine(case, case.path)
    if wrong:
        raise HashMismatchError(
            f"{case.path} {wrong}; delete it to download it again, or, if you know why it differs, accept it "
            "with --accept-sha256"
        )

    _decide(case, found, whole=True)
    case.tell(f"{case.model.name} is already there, checked")


def _examine(case: _Case, file: Path) -> tuple[str, str]:
    """Return a file's hash, and what is wrong with it, if anything."""
    found, size, expected = file_sha256(file), file.stat().st_size, case.expected
    if expected is not None:
        same = found == expected
        return found, "" if same else f"has SHA-256 {found}, expected {expected} ({case.origin})"

    # without a hash, what else is known of the file must do
    if case.model.size not in (None, size):
        return found, f"has {size:,} bytes, expected {case.model.size:,}"

    # a login or an error page may come with status 200
    with file.open("rb") as stream:
        page = stream.read(512).lstrip().startswith(b"<")
    return found, "is a web page, not a model" if page else ""


def _decide(case: _Case, found: str, *, whole: bool) -> None:
    """Ask for consent to a file that nobody trustworthy vouches for, and write down that it was given."""
    model, consent = case.model, case.consent
    if case.expected is None:
        case.tell(f"SHA-256 {found}")
        if model.reported_sha256 is not None:
            same = found == model.reported_sha256
            case.tell(f"{'the same that' if same else 'NOT the one that'} one other project recorded")

        if not (consent.trust and whole):
            cut = "" if whole else "the server does not say how long it is, so it may be cut; "
            ways = f"--accept-sha256 {found}" + (" or --trust" if whole else "")
            raise UntrustedFileError(
                f"{model.name}: nobody trustworthy states a SHA-256 for it; {cut}compare {found} with "
                f"another source, then run this again with {ways} (nothing is downloaded twice)"
            )
    elif consent.accept_sha256 is None or consent.accept_sha256 == model.sha256:
        return  # the catalogue or an earlier consent vouches for it

    # from now on another content is refused, even if the file is deleted and downloaded again
    record = {"name": model.name, "url": model.url, "sha256": found}
    record["accepted_by"] = "--accept-sha256" if consent.accept_sha256 else "--trust"
    write_bytes_atomic(str(case.path.with_name(RECORD)), (json.dumps(record, indent=2) + "\n").encode())
