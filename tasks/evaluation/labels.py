"""What images are scored for by prompts, and what is known to be true of them.

Prompts are a YAML or JSON list. An entry is a text, or a mapping:

    - a photo of a cat                                      # excludes the other plain labels
    - {name: dog, prompt: a photo of a dog}                 # the same, under a name of its own
    - {name: day, prompt: daylight, group: light}           # excludes only the labels of its group
    - {name: glasses, prompt: face with glasses, negative: face}   # true or false by itself

Labels are a table, ``.csv`` or ``.parquet``, with a column ``image_key``, relative to the images' prefix,
and columns that are named as prompts (1 or 0, true or false; empty for not known) or as groups (the name of
the label that holds). The group of plain labels is called ``label``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from pydantic import Field, ValidationError

from styleclip.tasks.artifacts import read_table
from styleclip.tasks.artifacts.outcomes import Row
from styleclip.tasks.evaluation.attributes import check_names, load_entries
from styleclip.tasks.settings import Prompt, Settings, SettingsError, describe
from styleclip.tasks.storage import read_bytes

PLAIN = "label"
_TRUE, _FALSE = {"1", "true", "yes", "1.0"}, {"0", "false", "no", "0.0"}


class LabelPrompt(Settings):
    """Something that an image may show."""

    name: str = Field("", description="Short name; the prompt itself if empty")
    prompt: Prompt = Field(description="What is said of an image that shows it")
    negative: str = Field(
        "", description="What is said of one that does not; with it, the label excludes no other"
    )
    group: str = Field(
        PLAIN, description="Labels of one group, without a negative prompt, exclude each other"
    )

    @property
    def label(self) -> str:
        """Return the label's name."""
        return self.name or self.prompt


def load_prompts(uri: str) -> list[LabelPrompt]:
    """Read a list of prompts; a list of attributes is one, too.

    Raises:
        SettingsError: If it is no such list, or a name comes twice; the message names the entry.
    """
    found = []
    for number, entry in enumerate(load_entries(uri, "prompts"), start=1):
        try:
            found.append(LabelPrompt.model_validate(_entry(entry)))
        except ValidationError as error:
            raise SettingsError(f"{uri}, prompt {number}: {describe(error)}") from error

    check_names([each.label for each in found])
    return found


def _entry(entry: object) -> object:
    if isinstance(entry, str):
        return {"prompt": entry}
    if isinstance(entry, dict) and "positive" in entry:  # an attribute
        rest = {name: value for name, value in entry.items() if name != "positive"}
        return {"negative": "face", **rest, "prompt": entry["positive"]}
    return entry


def load_truth(uri: str, prompts: Sequence[LabelPrompt]) -> dict[str, dict[str, bool]]:
    """Read a table of labels: what is known to hold, by image key and label.

    Raises:
        SettingsError: If the file has another form, or no column with the name of a prompt or a group.
        StorageError: If it cannot be read.
    """
    rows = _rows(uri)
    columns = set(rows[0]) if rows else set()
    groups = {each.group for each in prompts if not each.negative}
    known = {each.label for each in prompts} | groups

    # a table none of whose columns is asked for would make every accuracy one of nothing
    if "image_key" not in columns or not columns & known:
        raise SettingsError(
            f"{uri} must have a column image_key and one that is named as a prompt or a group, e.g. "
            f"{sorted(known)[0]!r}; it has {', '.join(sorted(map(str, columns))) or 'no rows'}"
        )

    return {str(row["image_key"]): dict(_truths(uri, row, prompts)) for row in rows}


def _truths(uri: str, row: Row, prompts: Sequence[LabelPrompt]) -> list[tuple[str, bool]]:
    """Return what a row says of each label."""
    found = []
    for each in prompts:
        said = _text(row.get(each.label))
        named = "" if each.negative else _text(row.get(each.group))

        # what a column of the label's own says outweighs the group's
        if said in _TRUE | _FALSE:
            found.append((each.label, said in _TRUE))
        elif said:
            raise SettingsError(
                f"{uri}, {row['image_key']}: {each.label!r} is {said!r}; give 1, 0 or nothing"
            )
        elif named:
            found.append((each.label, named == each.label.lower()))
    return found


def _text(value: Any) -> str:  # noqa: ANN401 - whatever a table holds
    # NaN, which is not equal to itself, is an empty cell
    return "" if value is None or value != value else str(value).strip().lower()


def _rows(uri: str) -> list[Row]:
    if uri.endswith(".parquet"):
        return [dict(row) for row in read_table(uri).to_pylist()]

    if uri.endswith(".csv"):
        try:
            # spreadsheets write a byte order mark
            text = read_bytes(uri).decode("utf-8-sig")
            return [dict(row) for row in csv.DictReader(io.StringIO(text, newline=""), strict=True)]
        except (UnicodeDecodeError, csv.Error) as error:
            raise SettingsError(f"{uri} is no readable CSV file: {error}") from error

    raise SettingsError(f"{uri} is no table of labels by its name; give a .parquet or .csv file")
