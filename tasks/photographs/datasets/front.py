"""The front door: what somebody gives as photographs -> where they lie, of which form, and their samples."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice

from braceexpand import braceexpand
from pydantic import BaseModel, ConfigDict

from styleclip.tasks.photographs.datasets import tables, tars
from styleclip.tasks.photographs.datasets.lists import LIST_ENDINGS, list_samples, rows_of
from styleclip.tasks.photographs.datasets.samples import Sample, in_order, of_object
from styleclip.tasks.photographs.datasets.subsets import matcher
from styleclip.tasks.running.overlap import read_ahead
from styleclip.tasks.settings import SettingsError
from styleclip.tasks.settings.datasets import DataSet, Form
from styleclip.tasks.storage import (
    MissingObjectError,
    ObjectInfo,
    exists,
    first_page,
    join,
    sorted_objects,
    stat,
)
from styleclip.tasks.storage.places import scheme_of
from styleclip_core.errors import StyleCLIPError
from styleclip_core.images import ENDINGS

_SPECIAL = re.compile(r"[*?\[{]")
_LITERAL = re.compile(r"\[([*?\[])\]")  # one of these characters, as itself
_MOST_PATTERNS = 100_000
_FEW = 1000  # objects that are asked for by name, where a prefix would have to be listed
_METADATA = tuple(f"metadata{ending}" for ending in (".csv", ".jsonl", ".parquet"))  # as imagefolder has them
_ENDINGS: dict[str, tuple[str, ...]] = {
    "images": ENDINGS, "tars": (tars.ENDING,), "parquet": (tables.ENDING,),
}  # fmt: skip
_SCHEMES_OF_ARCHIVES = ("tar", "zip", "libarchive")


class NoImagesError(StyleCLIPError):
    """There is no image where some should be."""


class Source(BaseModel):
    """Where a data set lies and how it is read.

    Attributes:
        named: As it was given.
        prefix: URI of the prefix that its objects lie under.
        form: What they are; ``auto`` where the listing will say.
        patterns: Keys of the objects that count, as glob patterns; all if empty.
        file: URI of the list, of lists.
        dataset: How it is read, and which of its images count.
    """

    model_config = ConfigDict(frozen=True)

    named: str
    prefix: str
    form: Form = "auto"
    patterns: tuple[str, ...] = ()
    file: str = ""
    dataset: DataSet = DataSet()

    @property
    def swept(self) -> list[str]:
        """Return the prefixes where a later run would find what is written there; none if it names each."""
        return [] if self.file or (self.patterns and self.is_named) else [self.prefix]

    @property
    def is_named(self) -> bool:
        """Return whether every object is named, so that there is nothing to list."""
        return all(not _SPECIAL.search(_LITERAL.sub("", each)) for each in self.patterns)


def locate(photos: str, dataset: DataSet) -> Source:
    """Find out what a place is: a prefix, or one object, a glob or a pattern with braces of some.

    Args:
        photos: The place, in its one form.
        dataset: How it is read.

    Raises:
        SettingsError: If it can be none, or is not of the form that is named.
        StorageError: If that cannot be found out.
    """
    if scheme_of(photos) in _SCHEMES_OF_ARCHIVES:
        raise SettingsError(f"{photos}: give the archive itself, or the prefix that its tar shards lie under")

    found = partial(Source, named=photos, dataset=dataset)
    ending = posixpath.splitext(photos.lower())[1]
    single = ending in (*ENDINGS, *LIST_ENDINGS, tars.ENDING) and exists(photos)
    if single:
        return _one_object(photos, ending, dataset)

    # a folder's own name may hold such characters
    if _SPECIAL.search(photos.partition("://")[2] or photos) and not _is_prefix(photos):
        prefix, patterns = _split(photos)
        form = dataset.form if dataset.form != "auto" else _form_of(patterns)
        return found(prefix=prefix, patterns=patterns, form=form)

    if dataset.form == "list":
        raise SettingsError(
            f"{photos} is no list: give the URI of a file that ends in {', '.join(LIST_ENDINGS)}"
        )
    return found(prefix=photos, form=dataset.form)


def _one_object(photos: str, ending: str, dataset: DataSet) -> Source:
    folder, _, name = photos.rpartition("/")
    found = partial(Source, named=photos, dataset=dataset)
    form: Form = dataset.form
    if form == "auto":
        form = "images" if ending in ENDINGS else "tars" if ending == tars.ENDING else "list"
        # a table holds images, or says where some are
        if ending == tables.ENDING and tables.is_table_of_images(photos, stat(photos)):
            form = "parquet"

    if form == "list":
        if ending not in LIST_ENDINGS:
            raise SettingsError(f"{photos} is no list; give one that ends in {', '.join(LIST_ENDINGS)}")
        return found(prefix=dataset.keys_under or folder, form=form, file=photos)
    if ending not in _ENDINGS[form]:
        raise SettingsError(f"{photos} is no data set of {form}, which end in {', '.join(_ENDINGS[form])}")
    return found(prefix=folder or "/", form=form, patterns=(_literal(name),))


def _literal(name: str) -> str:
    return re.sub(r"[*?\[]", lambda each: f"[{each[0]}]", name)


def _is_prefix(photos: str) -> bool:
    try:
        return bool(first_page(photos, 1))
    except MissingObjectError:
        return False


def _split(photos: str) -> tuple[str, tuple[str, ...]]:
    """Return the prefix that all objects of a pattern lie under, and the patterns below it.

    Raises:
        SettingsError: If its braces do not fit, or stand for too much.
    """
    scheme, separator, rest = photos.rpartition("://")
    literal = _SPECIAL.split(rest, maxsplit=1)[0].rpartition("/")[0]
    prefix = f"{scheme}{separator}{literal}"
    below = photos[len(prefix) + 1 :]
    try:
        patterns = tuple(islice(braceexpand(below), _MOST_PATTERNS + 1))
    except ValueError as error:
        raise SettingsError(f"{photos}: {error}; close every brace, or write a list") from error
    if len(patterns) > _MOST_PATTERNS:
        raise SettingsError(f"{photos} stands for more than {_MOST_PATTERNS:,} names; write * or a list")
    return prefix or "/", patterns


def _form_of(patterns: tuple[str, ...]) -> Form:
    for form, endings in _ENDINGS.items():
        if all(each.lower().endswith(endings) for each in patterns):
            return form  # type: ignore[return-value]
    return "auto"


@contextmanager
def opened(source: Source, workspace: str, passed_over: Counter[str]) -> Iterator[Iterable[Sample]]:
    """List a data set and give its samples, sorted by key, to be gone through any number of times.

    Args:
        source: Where it lies.
        workspace: URI of the folder for artifacts, where archives that were listed are kept.
        passed_over: Counts what is not read, by ending.

    Raises:
        NoImagesError: If nothing of that form is there.
        SettingsError: If a list or a table does not say which column to read.
        StorageError: If it cannot be listed.
    """
    if source.form == "list":
        samples = list_samples(source.file, source.prefix, source.dataset.column)
        with in_order(samples) as found:
            yield found
        return

    with _objects(source, passed_over) as (form, objects):
        if form == "images":
            with _described(source, objects, passed_over) as found:
                yield found
            return

        def archives(item: ObjectInfo) -> list[Sample]:
            return tars.archive_samples(source.prefix, item, workspace, passed_over)

        # archives are read many at once, a table's rows as they come
        if form == "tars":
            samples = (each for part in read_ahead(objects, archives, ahead=16) for each in part)
        else:
            column = source.dataset.column
            samples = (each for item in objects for each in tables.table_samples(source.prefix, item, column))
        with in_order(samples) as found:
            yield found


@contextmanager
def _objects(source: Source, passed_over: Counter[str]) -> Iterator[tuple[Form, Iterable[ObjectInfo]]]:
    """Give the form of a data set and its objects; without a form, images before archives before tables."""
    if source.patterns and source.is_named and len(source.patterns) <= _FEW:
        yield source.form, _asked_for(source)
        return

    endings = tuple(each for some in _ENDINGS.values() for each in some)
    with sorted_objects(source.prefix, endings, passed_over) as listed:
        wanted = _Those(listed, matcher(source.patterns)) if source.patterns else listed
        counts = Counter(posixpath.splitext(item.key.lower())[1] for item in wanted)
        kinds = {form: sum(counts[each] for each in some) for form, some in _ENDINGS.items()}

        form: Form = source.form
        if form == "auto":
            form = next((each for each in ("images", "tars", "parquet") if kinds[each]), "images")
        for each, count in counts.items():
            if each not in _ENDINGS[form]:
                passed_over[each] += count
        yield form, _Those(wanted, lambda key: key.lower().endswith(_ENDINGS[form]))


class _Those(Iterable[ObjectInfo]):
    def __init__(self, objects: Iterable[ObjectInfo], counts: Callable[[str], bool]) -> None:
        self._objects, self._counts = objects, counts

    def __iter__(self) -> Iterator[ObjectInfo]:
        return (item for item in self._objects if self._counts(item.key))


def _asked_for(source: Source) -> list[ObjectInfo]:
    """Return objects that are named one by one.

    Raises:
        MissingObjectError: If one is not there.
    """
    keys = sorted({_LITERAL.sub(r"\1", each) for each in source.patterns})
    found = read_ahead(keys, lambda key: stat(join(source.prefix, key)), ahead=64)
    return [replace(item, key=key) for key, item in zip(keys, found, strict=True)]


@contextmanager
def _described(
    source: Source, objects: Iterable[ObjectInfo], passed_over: Counter[str]
) -> Iterator[Iterable[Sample]]:
    """Give objects as samples, with the columns of a metadata file that lies beside them."""
    for name in _METADATA:
        uri = join(source.prefix, name)
        if exists(uri):
            passed_over[posixpath.splitext(name)[1]] -= 1  # it is read, after all
            with rows_of(uri) as rows, in_order(_about(uri, rows)) as about:
                yield _Joined(objects, about)
            return
    yield _Plain(objects)


class _Plain(Iterable[Sample]):
    def __init__(self, objects: Iterable[ObjectInfo]) -> None:
        self._objects = objects

    def __iter__(self) -> Iterator[Sample]:
        return map(of_object, self._objects)


class _Joined(Iterable[Sample]):
    """Objects with what a table says of them; both are sorted by key."""

    def __init__(self, objects: Iterable[ObjectInfo], about: Iterable[Sample]) -> None:
        self._objects, self._about = objects, about

    def __iter__(self) -> Iterator[Sample]:
        rows = iter(self._about)
        row = next(rows, None)
        for item in self._objects:
            while row and row.key < item.key:
                row = next(rows, None)
            yield of_object(item, row.columns if row and row.key == item.key else None)


def _about(uri: str, rows: Iterable[dict[str, object]]) -> Iterator[Sample]:
    for row in rows:
        name = next((each for each in ("file_name", "image_key", "key") if each in row), None)
        if name is None:
            raise SettingsError(f"{uri} has no column file_name, so it says nothing of the images beside it")
        yield Sample(str(row[name]), "", 0, columns={k: v for k, v in row.items() if k != name})
