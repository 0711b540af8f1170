"""Deploying what ``prefect.yaml`` says, without taking anything from a schedule that runs.

``prefect deploy --all`` leaves empty what the shell does not know, and replaces the schedules of a deployment
by those of the file, all of them active. So the values are read from a file, what a schedule would lack is
refused before anything is deployed, and Prefect is given a file in which the server's schedules stand beside
ours. Then every deployment gets the form that ``forms`` makes of its flow, and what of ours the file
does not have any more is named; nothing is ever deleted.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from styleclip.flows.forms import flow_of, form_of
from styleclip.tasks.storage import holds_credentials
from styleclip_core.errors import StyleCLIPError

_VARIABLE = re.compile(r"\{\{\s*\$(\w+)\s*\}\}")
_SECRET = re.compile(r"(?i)secret|passw|token|credential|access_key|api_key|auth_string")
_TAG = "styleclip"  # which all deployments of ours have
_PAGE = 100  # deployments of one question to the server
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)")


class DeployError(StyleCLIPError):
    """The deployments were not deployed, or not all of them."""


def read_environment(path: Path) -> dict[str, str]:
    """Read KEY=VALUE lines as systemd reads an EnvironmentFile.

    A line that begins with # or ; is a comment, and nothing else is: what follows a value belongs to it.
    Quotes around a value are taken off.

    Raises:
        DeployError: If there is no such file, or a line is none of these.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DeployError(f"cannot read the environment file {path}: {error}") from error

    found = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith(("#", ";")):
            continue
        matched = _ASSIGNMENT.fullmatch(line)
        if not matched:
            # not shown, as it may hold a secret
            raise DeployError(f"{path}:{number} is no KEY=VALUE; write one, or begin a comment with #")
        name, value = matched.groups()
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
        found[name] = value[1:-1] if quoted else value
    return found


def write_file(file: Path) -> None:
    """Write the deployments that come with this version, for a place that is no checkout of it.

    Raises:
        DeployError: If there is such a file, which may hold somebody's changes, or it cannot be written.
    """
    ours = resources.files("styleclip.flows").joinpath("prefect.yaml").read_text(encoding="utf-8")
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(ours)
    except FileExistsError as error:
        raise DeployError(
            f"{file} is there already and stays as it is; to compare them, name another with --prefect-file"
        ) from error
    except OSError as error:
        raise DeployError(f"cannot write {file}: {error}") from error


def deploy(file: Path, values: Mapping[str, str]) -> list[str]:
    """Deploy all of a file; return a line about each deployment.

    Args:
        file: As ``prefect.yaml``; modules are imported, and runs started, in its folder.
        values: Variables of the environment; those beside them are read too.

    Raises:
        DeployError: If a schedule would lack values, before anything is deployed; or if Prefect refuses.
    """
    environment = {**os.environ, **values}
    content = yaml.safe_load(_read(file))
    with get_client(sync_client=True) as client:
        known = {_name(each): _known(client, each) for each in content["deployments"]}

    if telling := [line for each in content["deployments"] for line in _tells(each, environment)]:
        raise DeployError(
            f"{'; '.join(telling)}; whatever is deployed can be read on the server, so give credentials in "
            "the environment of the worker, or as {{ prefect.blocks.secret.NAME }}; nothing was deployed"
        )
    lacking = [
        line for each in content["deployments"] for line in _lacks(each, known[_name(each)], environment)
    ]
    if lacking:
        raise DeployError(
            f"{'; '.join(lacking)}; give them in the environment file or the shell; nothing was deployed"
        )

    for each in content["deployments"]:
        _keep(each, known[_name(each)])
    _run_prefect(content, file.resolve().parent, environment)

    with get_client(sync_client=True) as client:
        for each in content["deployments"]:
            _give_form(client, each)
        told = [_told(_name(each), known[_name(each)]) for each in content["deployments"]]
        return [*told, *_left_behind(client, content["deployments"])]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise DeployError(
            f"cannot read {file}: {error}; run this where prefect.yaml lies, or write one with "
            "`styleclip deploy --write`"
        ) from error


def _name(deployment: Mapping[str, Any]) -> str:
    """Return what the server calls a deployment; a flow's name is that of its function, with dashes."""
    function = str(deployment["entrypoint"]).rpartition(":")[2]
    return f"{function.replace('_', '-')}/{deployment['name']}"


def _known(client: SyncPrefectClient, deployment: Mapping[str, Any]) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(_name(deployment))
    except ObjectNotFound:
        return None


def _lacks(
    deployment: Mapping[str, Any], known: DeploymentResponse | None, environment: Mapping[str, str]
) -> Iterator[str]:
    """Yield what a deployment with a schedule would lack."""
    unset = [
        (place, name)
        for place, name in _variables(deployment.get("parameters", {}))
        if not environment.get(name)
    ]
    # a schedule that waits to be switched on starts nothing that could lack a value
    if not any(each.get("active", True) for each in deployment.get("schedules") or ()):
        if not known or not known.schedules:
            return
        # somebody has given it a schedule, or may have: what is filled in now must not be emptied
        unset = [(place, name) for place, name in unset if _at(known.parameters, place)]

    if unset:
        names = ", ".join(dict.fromkeys(name for _, name in unset))
        yield f"{_name(deployment)} has a schedule and would lack {names}"


def _tells(deployment: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[str]:
    """Yield where a deployment would tell the server a secret; never the secret."""
    for part in ("parameters", "schedules", "work_pool"):
        for place, text in _texts(deployment.get(part), (part,)):
            # what a variable stands for is what would be stored
            filled = _VARIABLE.sub(lambda found: environment.get(found[1], ""), text)
            named = part == "work_pool" and _SECRET.search(place[-1]) and "prefect.blocks." not in filled
            if holds_credentials(filled) or (named and filled):
                yield f"{_name(deployment)} holds credentials in {'.'.join(place)}"


def _texts(value: object, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield every text in a value, each with its place."""
    if isinstance(value, str):
        yield place, value
    pairs = value.items() if isinstance(value, Mapping) else ()
    for name, each in enumerate(value) if isinstance(value, list) else pairs:
        yield from _texts(each, (*place, str(name)))


def _variables(value: object, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the variables in parameters, each with the place of its value."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _variables(each, (*place, str(name)))
    elif isinstance(value, str):
        for name in _VARIABLE.findall(value):
            yield place, name


def _at(value: Any, place: tuple[str, ...]) -> Any:  # noqa: ANN401 - a JSON value
    for name in place:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _keep(deployment: dict[str, Any], known: DeploymentResponse | None) -> None:
    """Write into a deployment what the server has beside it: who paused what, and schedules of others."""
    if known is None:
        return
    if known.paused:
        deployment["paused"] = True
    if not deployment.get("schedules"):  # Prefect leaves those of the server alone
        return

    slugs = {schedule.slug: schedule for schedule in known.schedules}
    ours = [dict(each) for each in deployment["schedules"]]
    for each in ours:
        if each.get("slug") in slugs:
            each["active"] = slugs[each["slug"]].active
    names = {each.get("slug") for each in ours}
    others = [each for each in known.schedules if each.slug is None or each.slug not in names]
    deployment["schedules"] = [*ours, *filter(None, map(_written, others))]


def _written(known: DeploymentSchedule) -> dict[str, Any]:
    """Return a schedule of the server as ``prefect.yaml`` says it; nothing of one that is none."""
    schedule = known.schedule
    if isinstance(schedule, CronSchedule):
        found: dict[str, Any] = {"cron": schedule.cron, "day_or": schedule.day_or}
    elif isinstance(schedule, IntervalSchedule):
        found = {
            "interval": schedule.interval.total_seconds(), "anchor_date": schedule.anchor_date.isoformat(),
        }  # fmt: skip
    elif isinstance(schedule, RRuleSchedule):
        found = {"rrule": schedule.rrule}
    else:
        return {}

    found |= {"timezone": schedule.timezone, "active": known.active}
    found |= {"parameters": known.parameters, "slug": known.slug}
    return {name: value for name, value in found.items() if value not in (None, {})}


def _run_prefect(content: Mapping[str, Any], folder: Path, environment: Mapping[str, str]) -> None:
    with tempfile.TemporaryDirectory(prefix="styleclip-deploy-") as place:
        # a file of its own: the one that was given stays as it is
        merged = Path(place) / "prefect.yaml"
        merged.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

        # this interpreter's Prefect, whatever else is on the path
        prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
        command = [*prefect, "deploy", "--all", "--prefect-file", str(merged)]
        done = subprocess.run(
            command, cwd=folder, env=dict(environment), capture_output=True, text=True, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    # it says what was wrong at the end of what it says
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).split())[-600:]
        raise DeployError(f"prefect deploy ended with {done.returncode}, some may be deployed: {said}")


def _give_form(client: SyncPrefectClient, deployment: Mapping[str, Any]) -> None:
    """Put the form in the place of what Prefect has derived from the flow's signature."""
    form = form_of(flow_of(str(deployment["entrypoint"])))
    known = client.read_deployment_by_name(_name(deployment))
    try:
        client.update_deployment(known.id, DeploymentUpdate(parameter_openapi_schema=form))
    except PrefectHTTPStatusError as error:
        # the values of the file do not fit the form, which Prefect has not asked about
        raise DeployError(
            f"{_name(deployment)} is deployed, but the server refuses its values: {error.response.text[:600]}"
        ) from error


def _left_behind(client: SyncPrefectClient, wanted: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line about each deployment of ours that the file does not have (any more)."""
    names = {_name(each) for each in wanted}
    flows = sorted({name.partition("/")[0] for name in names})
    pools = {each["work_pool"]["name"] for each in wanted if each.get("work_pool")}

    # of a flow of ours, and in our pool or with our tag: others may have a flow of that name
    for flow in flows:
        for known in _all_deployments(client, flow):
            name = f"{flow}/{known.name}"
            if name in names or not (known.work_pool_name in pools or _TAG in known.tags):
                continue
            running = not known.paused and any(each.active for each in known.schedules)
            goes_on = "; its schedule goes on starting runs until then" if running else ""
            yield (
                f"{name}: is on the server and not in the file; if nobody needs it, remove it with "
                f"`prefect deployment delete {shlex.quote(name)}`{goes_on}"
            )


def _all_deployments(client: SyncPrefectClient, flow: str) -> Iterator[DeploymentResponse]:
    wanted, offset = FlowFilter(name=FlowFilterName(any_=[flow])), 0
    while found := client.read_deployments(flow_filter=wanted, limit=_PAGE, offset=offset):
        yield from found
        offset += len(found)


def _told(name: str, known: DeploymentResponse | None) -> str:
    if known is None:
        return f"{name}: made"
    paused = known.paused or any(not each.active for each in known.schedules)
    return f"{name}: brought up to date{', what was paused stays paused' if paused else ''}"
