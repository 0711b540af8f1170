"""What a run is called in Prefect's UI: what it does, to what, so that a list of runs can be read.

    edit photographs/few: white hair, cap, open mouth
    relevance of ffhq.pkl, night of 2031-05-17

Prefect asks for the name once a run begins and its parameters are validated. A name is there to be read and
decides nothing, so a parameter of an unexpected form is left out of it, and no name fails a run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from prefect import runtime

from styleclip.tasks.settings import Nightly
from styleclip.tasks.storage import holds_credentials

LONGEST = 120  # characters
_PARTS = 2  # of a place: its last folders tell it from others
_BATCH = "batches"  # the folder whose subfolders are batches, each with its manifest

Parameters = Mapping[str, Any]


def run_name(flow: str) -> Callable[[], str]:
    """Return what Prefect calls for the name of a run of a flow."""
    describe = _DESCRIBED[flow]

    def name() -> str:
        return name_of(describe, runtime.flow_run.parameters or {}, flow)

    return name


def name_of(describe: Callable[[Parameters], str], parameters: Parameters, otherwise: str) -> str:
    """Return a name in one line of at most ``LONGEST`` characters; ``otherwise`` where there is none."""
    try:
        text = f"{'dry run: ' if parameters.get('dry_run') else ''}{describe(parameters)}"
    except (AttributeError, LookupError, TypeError, ValueError):
        return otherwise  # parameters of another form than the flow's; what is wrong with them the flow says

    shown = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1].rstrip()}…"


def listed(begin: str, items: Iterable[object]) -> str:
    """Return ``begin`` and as many items as there is room for, with the number of the others.

    >>> listed("edit in", ["white hair", "cap"])
    'edit in: white hair, cap'
    """
    texts = [" ".join(str(item).split()) for item in items]
    if not texts:
        return begin

    # the first one stands in any case, and is cut with the name if it is too long
    shown = f"{begin}: {texts[0]}"
    for number, text in enumerate(texts[1:], start=1):
        rest = len(texts) - number - 1
        more = f"{shown}, {text}"
        if len(more) + len(_and_more(rest)) > LONGEST:
            room = LONGEST - len(_and_more(rest + 1))
            return shown[:room].rstrip(" ,") + _and_more(rest + 1)
        shown = more
    return shown


def _and_more(count: int) -> str:
    return f" and {count} more" if count else ""


def place(uri: object, parts: int = _PARTS) -> str:
    """Return the last folders of a place, without scheme, query and whatever might be a secret."""
    if not isinstance(uri, str) or holds_credentials(uri):
        return "…"
    path = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*://", "", uri)
    path = re.split(r"[?#]", path, maxsplit=1)[0] if path != uri else path
    return "/".join([part for part in path.split("/") if part][-parts:])


def _file(uri: object) -> str:
    return place(uri, 1)


def _generator(given: Parameters) -> str:
    return _file(given["models"].generator)


def _targets(edits: Sequence[Any]) -> list[str]:
    """Return what edits are after: every step's target, as an edit file has them."""
    return [" then ".join(step.target for step in (edit, *edit.then)) for edit in edits]


def _batch(manifest: object) -> str:
    """Return the batch of a manifest: its folder, and the place that it belongs to."""
    folders = place(manifest, 4).split("/")[:-1]
    return "/".join(folder for folder in folders if folder != _BATCH)


def _edited(uri: object) -> str:
    """Return where edited faces lie: a folder of them, or the batch of a manifest."""
    return _batch(uri) if str(uri).endswith(".parquet") else place(uri)


def _relevance(given: Parameters) -> str:
    nightly, add = given.get("nightly"), given.get("add_samples")
    if isinstance(nightly, Nightly):
        due = runtime.flow_run.scheduled_start_time
        night = nightly.date_of(due if isinstance(due, datetime) else datetime.now(UTC))
        return f"relevance of {_generator(given)}, night of {night}"
    return f"relevance of {_generator(given)}" + (f", {add} samples more" if add else "")


def _choose(given: Parameters) -> str:
    where = f" on {place(given['photos'])}" if given.get("photos") else ""
    return listed(f"choose strengths{where}", _targets(given["edits"]))


def _explore(given: Parameters) -> str:
    question = given["question"]
    return f"explore {question.channel or question.target} of {_generator(given)}"


def _prune(given: Parameters) -> str:
    rules = [f"older than {given['older_than']}"] if given.get("older_than") else []
    rules += [f"all but the newest {given['keep_last']}"] if given.get("keep_last") else []
    rules += list(given.get("batches") or ())
    return listed(
        f"{'prune' if given.get('confirmed') else 'dry run of pruning'} {place(given['out'])}", rules
    )


_DESCRIBED: dict[str, Callable[[Parameters], str]] = {
    "build-relevance": _relevance,
    "edit-images": lambda given: listed(f"edit {place(given['photos'])}", _targets(given["edits"])),
    "choose-edits": _choose,
    "invert-images": lambda given: f"invert {place(given['photos'])}",
    "sample-styles": lambda given: f"sample style codes of {_generator(given)}",
    "train-mapper": lambda given: listed("train mappers", given["targets"]),
    "align-faces": lambda given: f"cut faces out of {place(given['photos'])}",
    "paste-faces": lambda given: f"put faces of {_edited(given['edited'])} back",
    "evaluate-edits": lambda given: f"score edits of {_batch(given['manifest'])}",
    "score-images": lambda given: listed(
        f"score {place(given['images'])}", [each.label for each in given["prompts"]]
    ),
    "inspect-prompts": lambda given: listed("check prompts", _targets(given["edits"])),
    "explore-channels": _explore,
    "export-pairs": lambda given: f"pairs of {_batch(given['manifest'])}",
    "report-batch": lambda given: f"page of {_batch(given['manifest'])}",
    "report-partial": lambda given: f"partial pages of {place(given['out'])}",
    "account-storage": lambda given: f"account of {place(given['out'])}",
    "prune": _prune,
}
