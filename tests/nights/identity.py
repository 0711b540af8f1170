"""Every input of a step, replaced at every moment: is anything ever filed under another's name?

A case runs a flow three times undisturbed: with the input as it is, with another one in its place, and with
the first one again. What these leave are the right results. Then the input is replaced in the middle of a
run, the run is retried with the other one there, and again with the first one put back. Whatever lies under a
name of the undisturbed runs must be what they left there.

``make identity`` prints the matrix, the tests take a part of it.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.states import State, StateType
from prefect.task_runners import ThreadPoolTaskRunner

from styleclip.tasks.running import networks
from tests.left import files_of

MOMENTS = ("before it is read", "between shards", "before Retry")
_VOLATILE = re.compile(r"seconds|(.*_)?(etag|version)")  # columns that differ from run to run
Left = dict[str, bytes]
Hook = tuple[str, str]  # a module and a function of it


@dataclass(frozen=True)
class Case:
    """One input of one flow.

    Attributes:
        name: The flow and the input.
        file: The input.
        other: Makes other content of the same form.
        flow: What reads it.
        parameters: Of the flow.
        out: Folder that holds all that the flow writes.
        named: A function after whose return results are named by the input.
        work: A function that is called for each shard or batch.
        made: Whether the run itself makes the input, before it reads it.
    """

    name: str
    file: Path
    other: Callable[[bytes], bytes]
    flow: Flow[..., Any]
    parameters: Mapping[str, Any]
    out: Path
    named: Hook
    work: Hook
    made: bool = False


@dataclass
class Outcome:
    """What became of a case at one moment.

    Attributes:
        replaced: How the run ended that met the other input: refused, row (an item says so), or done (with
            what it had read before, or what it read anew under a name of its own).
        retried: The same of the Retry with the other input still there.
        back: How the run ended once the first input was back.
        wrong: Names under which something else lies than undisturbed runs left.
        lost: Names that the last run should have left.
    """

    replaced: str = ""
    retried: str = ""
    back: str = ""
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        """Return what must not be: a wrong or lost result, or an end that is not good once all is back."""
        ended = [] if self.back in ("done", "row, then done") else [f"ended: {self.back}"]
        return [*(f"wrong: {each}" for each in self.wrong), *(f"lost: {each}" for each in self.lost), *ended]


def forget() -> None:
    """Forget what this process knows of files, as a new process of a worker would not know it."""
    networks._loaded.clear()
    for name, module in list(sys.modules.items()):
        if name.startswith("styleclip."):
            for each in vars(module).values():
                if hasattr(each, "cache_clear") and getattr(each, "__module__", "") == name:
                    each.cache_clear()


def left_in(folder: Path) -> Left:
    """Return what lies in a folder, by name, without what says how long it took."""
    return files_of(folder)


class Truth:
    """What undisturbed runs left: files by name, and good rows by the place of their table.

    The name of a batch holds when its photographs were written, so its table may lie under a name that no
    undisturbed run uses; then its rows must be such as some of them left in a table of that kind.
    """

    def __init__(self) -> None:
        self.files: dict[str, set[str]] = {}
        self.rows: dict[str, set[str]] = {}

    def add(self, left: Left) -> None:
        for name, content in left.items():
            for place in (name, _without_version(name)):
                self.files.setdefault(place, set()).add(_digest(content))
            if name.endswith(".parquet"):
                for place in (_folder(name), _kind(name)):
                    self.rows.setdefault(place, set()).update(_good_rows(content))

    def wrong(self, left: Left) -> Iterator[str]:
        """Yield what lies under a name and is not what an undisturbed run left there."""
        for name, content in left.items():
            if not _is_result(name):
                continue
            if name.endswith(".parquet"):
                there = self.rows.get(_folder(name), self.rows.get(_kind(name), set()))
                yield from (f"{name}: {row[:300]}" for row in sorted(_good_rows(content) - there)[:1])
            elif _digest(content) not in self.files.get(name, self.files.get(_without_version(name), set())):
                yield name


def _is_result(name: str) -> bool:
    """Return whether a file is a result; lists and pages say when their photographs were written."""
    listed = re.search(r"(^|/)(index|pages|edits-index|thumbnails)/|contact-sheet", name)
    return name.endswith((".png", ".safetensors", ".parquet", ".mp4")) and not listed


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _without_version(text: str) -> str:
    """Take out of names what tells versions of one key apart: of a local file it is when it was written."""
    return re.sub(r"~[0-9a-f]{12}\b", "~", text)


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _kind(name: str) -> str:
    """Return what a table is, without what tells it from others of its kind."""
    kind = re.sub(r"[0-9a-f]{12,}(-[0-9a-f]{12,})?", "*", name)
    # one of a part is of the kind of the whole
    return re.sub(r"^(partial|batches|scores)/", "tables/", re.sub(r"\*.*attempt.*", "*", kind))


def _good_rows(content: bytes) -> set[str]:
    """Return the rows of a table that do not tell of a failure, without what differs from run to run."""
    table = pq.read_table(io.BytesIO(content))
    kept = [name for name in table.column_names if not _VOLATILE.fullmatch(name)]
    return {
        _without_version(repr(row))
        for row in table.select(kept).to_pylist()
        if row.get("status", "ok") == "ok" and row.get("error") is None
    }


@contextmanager
def patched(hook: Hook, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Wrap a function of a module."""
    module = sys.modules[hook[0]]
    with mock.patch.object(module, hook[1], make(getattr(module, hook[1]))):
        yield


def once(act: Callable[[], None], *, after: int = 0, before: int = 0) -> Callable[[Callable[..., Any]], Any]:
    """Return a wrapper that acts once: after the so-manieth call has returned, or before it begins."""
    calls = [0]

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            number = calls[0]
            if number == before:
                act()
            result = real(*args, **kwargs)
            if number == after:
                act()
            return result

        return wrapped

    return wrap


class InjectedError(RuntimeError):
    """The fault that ends a run before its Retry."""


def _fail() -> None:
    raise InjectedError("injected")


def run(case: Case) -> State[Any]:
    """Run the flow of a case as a worker does that has just begun."""
    forget()
    return _one_at_a_time(case.flow)(**case.parameters, return_state=True)


def retry(case: Case, first: State[Any]) -> State[Any]:
    """Press Retry; what has completed is run anew, as the next night does it."""
    if first.is_completed():
        return run(case)
    forget()
    with get_client(sync_client=True) as client:
        known = first.state_details.flow_run_id
        client.set_flow_run_state(known, State(type=StateType.SCHEDULED, name="AwaitingRetry"), force=True)
        flow_run = client.read_flow_run(known)
    return run_flow(
        _one_at_a_time(case.flow), flow_run=flow_run, parameters=dict(case.parameters), return_type="state"
    )


def _one_at_a_time(flow: Flow[..., Any]) -> Flow[..., Any]:
    return flow.with_options(task_runner=ThreadPoolTaskRunner(max_workers=1))


def _how(state: State[Any]) -> str:
    """Return how a run ended, in a word."""
    if state.is_completed():
        return "row" if any(step.failed for step in state.result().steps) else "done"
    text = state.message or ""
    if "InjectedError" in text:
        return "ended"
    return "refused" if re.search(r"changed|other content|made with|put .* back", text) else f"failed: {text}"


def truth_of(case: Case) -> tuple[Truth, set[str]]:
    """Return what undisturbed runs leave, and the names of what the one with the first input does."""
    truth, names = Truth(), set[str]()
    before = b"" if case.made else case.file.read_bytes()
    for content in (before,) if case.made else (before, case.other(before), before):
        shutil.rmtree(case.out, ignore_errors=True)
        if not case.made:
            case.file.write_bytes(content)
        state = run(case)
        if content == before:
            assert state.is_completed(), f"{case.name}: {state.message}"
        found = left_in(case.out)
        truth.add(found)
        if content == before:
            names = {
                _without_version(name) for name in found if _is_result(name) and not name.endswith(".parquet")
            }
    return truth, names


def disturb(case: Case, moment: str, truth: Truth, names: set[str]) -> Outcome:
    """Replace the input at one moment of a run, retry, put it back, retry; and look after each."""
    outcome, before = Outcome(), case.file.read_bytes()
    shutil.rmtree(case.out, ignore_errors=True)

    def replace() -> None:
        case.file.parent.mkdir(parents=True, exist_ok=True)
        case.file.write_bytes(case.other(before))
        forget()

    def look(state: State[Any]) -> str:
        found = left_in(case.out)
        if case.made:  # it lies there replaced, which is not the run's doing
            found.pop(str(case.file.relative_to(case.out)), None)
        outcome.wrong += truth.wrong(found)
        return _how(state)

    try:
        hook, wrapper = {
            "before it is read": (case.named, once(replace, after=1)),
            "between shards": (case.work, once(replace, after=1)),
            "before Retry": (case.work, once(_fail, before=2)),
        }[moment]
        with patched(hook, wrapper):
            first = run(case)
        if moment == "before Retry":
            assert not first.is_completed(), f"{case.name}: there is no second call of {case.work}"
            replace()
        outcome.replaced = look(first)
        second = retry(case, first)
        outcome.retried = look(second)
    finally:
        case.file.write_bytes(before)

    third = retry(case, second)
    outcome.back = look(third)
    if outcome.back == "row":  # it kept the list of what had changed; the next run lists anew
        outcome.back = f"row, then {look(run(case))}"
    outcome.lost = sorted(names - set(map(_without_version, left_in(case.out))))
    return outcome
