"""Runs every loader on hostile files, in a process of its own, and tells what went wrong.

The process watches itself: an audit hook records whatever is executed, imported, opened, started or
connected while a loader runs, the kernel the most memory that was held, an alarm ends what does not come
to an end. ``python tests/core/hostile_run.py`` prints the whole account.
"""

import contextlib
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

HERE = Path(__file__).parent
LIMIT_S = 60  # for one loader on one file; all are done in a few seconds
SLOW_S = 0.3  # what takes longer was read by the machine that all share: one loader will do
THOROUGH = "HOSTILE_EXAMPLES" in os.environ  # unless there is time
LIMIT_MIB = 700  # more than any of them may hold beyond what the process held before
_ROOM = 6 << 30  # of address space, so that a failure does not take the machine along
_REMEDIES = ("fetch it again", "give ", "convert ", "add ", "say so", "unpack it", "the names are")
_FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile", "os.putenv", "os.remove",
    "os.rename", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.truncate", "subprocess", "pty", "exec",
    "compile", "import", "pickle.find_class", "marshal", "code.__new__", "function.__new__", "ctypes",
    "socket", "urllib", "shutil", "tempfile", "webbrowser", "builtins.input", "builtins.breakpoint",
)  # fmt: skip
_events = None


def watch():
    """Install the audit hook; it records only inside ``watched``."""

    def hook(event, arguments):
        if _events is None:
            return
        if event == "open":
            path, mode, flags = arguments
            if (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or set(mode or "") & set("wax+"):
                _events.append(f"open {path!r:.80} for writing")
        elif event.startswith(_FORBIDDEN):
            _events.append(f"{event} {arguments!r:.80}")

    sys.addaudithook(hook)


@contextlib.contextmanager
def watched():
    """Give the list of what was executed, imported, started or written to."""
    global _events
    _events = found = []
    try:
        yield found
    finally:
        _events = None


def loaders():
    """Return the public loaders by name."""
    import styleclip_core.models.encoder
    import styleclip_core.models.identity
    import styleclip_core.models.lpips
    import styleclip_core.models.mapper
    from styleclip_core import load_clip, load_generator

    return {
        "generator": load_generator, "clip": load_clip,
        "encoder": styleclip_core.models.encoder.load_encoder,
        "identity": styleclip_core.models.identity.load_identity,
        "mapper": styleclip_core.models.mapper.load_mapper,
        "perceptual": styleclip_core.models.lpips.load_perceptual,
    }  # fmt: skip


def attempt(load, path):
    """Return ``(what came of it, problems)`` of one loader on one file."""
    from styleclip_core.errors import CheckpointError

    outcome, problems = "loaded", []
    with watched() as events:
        try:
            load(path)
        except CheckpointError as error:
            outcome, caught = str(error), error
        except Exception as error:  # an error of another class is what is looked for
            outcome, caught = "", error
    if outcome == "":
        problems.append(f"{type(caught).__name__} instead of CheckpointError: {str(caught)[:200]}")
    elif outcome != "loaded":
        problems += _of_message(outcome, path)
        problems += _of_memory(caught)
    return outcome, problems + events


def _of_message(message, path):
    if len(message) > len(str(path)) + 700:
        yield f"a message of {len(message)} characters: {message[:100]!r}"
    if str(path) not in message:
        yield f"no file is named: {message[:200]!r}"
    if not message.isprintable():
        yield f"not printable: {message[:200]!r}"
    if not any(remedy in message for remedy in _REMEDIES):
        yield f"no remedy: {message[:300]!r}"


def _of_memory(error):
    while error is not None:
        if isinstance(error, MemoryError) or "alloc" in str(error):
            yield f"it asked for too much memory: {str(error)[:200]}"
        error = error.__cause__ or error.__context__


def _held(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) >> 10


def _examine():
    """Answer names, a line each, by reports, a line each."""
    from hostile_files import CORPUS, valid_files

    readers = loaders()
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=".*which activation it was trained with")  # bare files of CLIPs
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # where a program that runs would leave its mark
        for index, (content, kind) in enumerate(valid_files().values()):  # everything is imported now
            path = Path(folder) / f"valid{index}"
            path.write_bytes(content)
            readers[kind](path)
            for load in readers.values():
                attempt(load, path)

        resource.setrlimit(resource.RLIMIT_AS, ((_held("VmSize") << 20) + _ROOM,) * 2)
        watch()
        gc.collect()
        gc.freeze()  # else every collection looks through the corpus

        for index, line in enumerate(sys.stdin):
            name = json.loads(line)
            place = Path(folder) / str(index)
            place.mkdir()
            os.chdir(place)
            CORPUS[name](place / "x.pt")
            print(json.dumps(_report(name, place, readers)), flush=True)
            for path in place.iterdir():
                path.unlink() if not path.is_dir() or path.is_symlink() else path.rmdir()


def _report(name, place, readers):
    """Run every loader on the file of a place and tell what came of it."""
    before_names = set(os.listdir(place))
    report = {"name": name, "problems": [], "outcomes": {}, "mib": 0, "seconds": 0.0}
    gc.collect()
    for kind, load in readers.items():
        if report["seconds"] > SLOW_S and not THOROUGH:
            continue
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before, start = _held("VmRSS"), time.monotonic()
        signal.alarm(LIMIT_S)
        outcome, problems = attempt(load, place / "x.pt")
        signal.alarm(0)

        held = _held("VmHWM") - before
        if held > LIMIT_MIB:
            problems.append(f"{held} MiB were held")
        report["mib"] = max(report["mib"], held)
        report["seconds"] = max(report["seconds"], time.monotonic() - start)
        report["problems"] += [f"{kind}: {problem}" for problem in problems]
        report["outcomes"][kind] = outcome[:400]

    if set(os.listdir(place)) != before_names:
        report["problems"].append("something was written: a program ran")
    return report


class Examination:
    """A process that runs every loader on one case after another; another takes its place if it ends."""

    def __enter__(self):
        self._process = None
        return self

    def __exit__(self, *_):
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()
            self._end()

    def report(self, name):
        """Run every loader on one case; a process that ends over it is a problem of the case."""
        if self._process is None:
            self._start()
        self._process.stdin.write(f"{json.dumps(name)}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)

        status, trace = self._process.wait(), self._end()
        problem = f"the process ended with {status} ({signal.SIGALRM}: after {LIMIT_S} s): {trace[-300:]}"
        return {"name": name, "problems": [problem], "outcomes": {}, "mib": 0, "seconds": 0.0}

    def _start(self):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed when the process has ended
        environment = os.environ | {"PYTHONPATH": f"{HERE.parent.parent}", "MALLOC_ARENA_MAX": "2"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._errors, text=True, env=environment,
        )  # fmt: skip

    def _end(self):
        self._process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process = None
        self._errors.seek(0)
        trace = self._errors.read()
        self._errors.close()
        return trace


def examine(names):
    """Run every loader on every case; yield a report for each."""
    with Examination() as examination:
        for name in names:
            yield examination.report(name)


def main():
    sys.path.insert(0, str(HERE))
    if sys.argv[1:] == ["-"]:
        _examine()
        return
    from hostile_files import CORPUS

    wanted = [name for name in CORPUS if all(word in name for word in sys.argv[1:])]
    reports = []
    for report in examine(wanted):
        reports.append(report)
        for problem in report["problems"]:
            print(f"{report['name']}: {problem}", flush=True)
        loaded = [kind for kind, outcome in report["outcomes"].items() if outcome == "loaded"]
        if loaded:
            print(f"{report['name']}: loaded as {', '.join(loaded)}", flush=True)
    bad = sum(bool(report["problems"]) for report in reports)
    most = max(reports, key=lambda report: report["mib"])
    slowest = max(reports, key=lambda report: report["seconds"])
    loads = sum(len(report["outcomes"]) for report in reports)
    print(f"{len(reports)} files, {loads} loads, {bad} files with problems")
    print(
        f"most memory: {most['mib']} MiB ({most['name']}); longest: {slowest['seconds']:.1f} s ({slowest['name']})"
    )


if __name__ == "__main__":
    main()
