"""What a Prefect server tells people, and what it ends by itself: its automations.

An automation that is there as it should be is left alone: a change of it forgets what it waits for, and the
wait for a table that is missing would begin anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.automations import Automation
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

NOTIFY, ZOMBIES = "styleclip: notify of failed and crashed runs", "styleclip: crash runs without a heartbeat"
LATE, MISSING = "styleclip: notify of late runs", "styleclip: notify of a missing table"
SHORTEST = 10  # seconds, the least that Prefect lets a trigger wait

_BY = "Made by `styleclip setup-server`"
_RUNS = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})
_ENDS = {f"prefect.flow-run.{state}" for state in ("Failed", "Crashed", "TimedOut")}
_BEGUN = _ENDS | {
    f"prefect.flow-run.{state}" for state in ("Running", "Completed", "Cancelling", "Cancelled")
}
_WAITS = {f"prefect.flow-run.{state}" for state in ("Late", "Pending", "Submitting", "InfrastructurePending")}


@dataclass(frozen=True)
class Receivers:
    """Who is told, and where the links in messages lead.

    Attributes:
        webhook: Block of a webhook that takes ``{"text": ...}``.
        notification: Block of a notification.
        ui: Address of the server's pages, for links.
    """

    webhook: UUID | None
    notification: UUID | None
    ui: str

    def __bool__(self) -> bool:
        return bool(self.webhook or self.notification)

    def told(self, title: str, text: str) -> list[CallWebhook | SendNotification]:
        """Return the actions that tell it; ``title`` and ``text`` are expressions of Jinja."""
        actions: list[CallWebhook | SendNotification] = []
        if self.webhook:
            payload = f'{{"text": {{{{ ({title} ~ ": " ~ {text})|tojson }}}} }}'
            actions.append(CallWebhook(block_document_id=self.webhook, payload=payload))
        if self.notification:
            subject, body = (f"{{{{ {each} }}}}" for each in (title, text))
            actions.append(SendNotification(block_document_id=self.notification, subject=subject, body=body))
        return actions

    def of_run(self, text: str) -> list[CallWebhook | SendNotification]:
        """Return the actions that tell something of the run of an event, with its state and a link."""
        # a server that does not know its own address has none to give
        link = f"((flow_run|ui_url) or ({json.dumps(self.ui + '/runs/flow-run/')} ~ flow_run.id))"
        title = 'flow.name ~ "/" ~ flow_run.name ~ " is " ~ flow_run.state.name'
        return self.told(title, f'{text} ~ " " ~ {link}')


def failed(receivers: Receivers) -> Automation:
    """Return the automation that tells of every run that failed, crashed or timed out, at once."""
    return Automation(
        name=NOTIFY,
        description=_BY,
        trigger=EventTrigger(
            expect=_ENDS, match=_RUNS, posture=Posture.Reactive, threshold=1, within=timedelta(0)
        ),
        actions=list(receivers.of_run('(flow_run.state.message or "")')),
    )


def late(receivers: Receivers, after: timedelta, known_after: timedelta) -> Automation:
    """Return the automation that tells of a run that has not begun, or was taken by a worker that went then.

    Runs of a schedule and of deployments with the tag ``nightly`` are meant: others have no time at which
    they are due, and wait in their queue for as long as those before them take.

    Args:
        receivers: Who is told.
        after: Since it was due.
        known_after: Since then, when the server calls it late.
    """
    scheduled = ["prefect.tag.auto-scheduled", "prefect.tag.nightly"]
    waited = f"{after.total_seconds():g} s"
    text = f'"not begun {waited} after it was due: no worker, or none that is left, or no place in the pool"'

    # once it is late or taken, whatever shows that it has begun or ended will do; silence is what triggers
    return Automation(
        name=LATE,
        description=_BY,
        trigger=EventTrigger(
            after=_WAITS,
            expect=_BEGUN,
            match=_RUNS,
            match_related=ResourceSpecification({"prefect.resource.id": scheduled}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=max(after - known_after, timedelta(seconds=SHORTEST)),
        ),
        actions=list(receivers.of_run(text)),
    )


def missing(receivers: Receivers, deployment: str, after: timedelta) -> Automation:
    """Return the automation that tells of a deployment of which no run has completed for a while.

    Every completed run begins the wait anew, and so does the message: it is repeated while nothing completes.
    """
    flow, _, name = deployment.partition("/")
    completed = {"prefect.flow-run.Completed"}
    hours = f"{after.total_seconds() / 3600:.3g} h"
    said = json.dumps(f"no run of {deployment} has completed {receivers.ui}/deployments")

    # `after` is what makes the wait slide: without it, one run would fill a whole window of that length
    return Automation(
        name=MISSING,
        description=_BY,
        trigger=EventTrigger(
            after=completed,
            expect=completed,
            match=_RUNS,
            match_related=[
                ResourceSpecification({"prefect.resource.role": role, "prefect.resource.name": value})
                for role, value in (("flow", flow), ("deployment", name))
            ],
            posture=Posture.Proactive,
            threshold=1,
            within=after,
        ),
        actions=list(receivers.told(f'"no table for {hours}"', said)),
    )


def zombies(silence: int) -> Automation:
    """Return the automation that ends runs whose process has gone, so that Retry is offered."""
    message = f"No sign of life for {silence} s: the process, its worker or its machine has gone."

    # after a heartbeat, any event of the run is a sign of life, its end too; silence is what triggers
    return Automation(
        name=ZOMBIES,
        description=_BY,
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=silence),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=message)],
    )


def save(wanted: Automation) -> str:
    """Make an automation, or bring the one of its name up to date; return a line about it."""
    # looked for by name, or setting up twice would tell of every failure twice
    try:
        known: Any = Automation.read(name=wanted.name)
    except ValueError:  # there is none of that name
        known = None

    if known is not None and _said(known) == _said(wanted):
        return f"automation {wanted.name!r}: there"
    change: Callable[[], Any] = wanted.create
    if known is not None:
        wanted.id, change = known.id, wanted.update
    change()
    return f"automation {wanted.name!r}: {'made' if known is None else 'brought up to date'}"


def _said(automation: Automation) -> object:
    """Return what an automation says, without the ids that the server gives to it and its parts."""
    parts = {"name", "description", "enabled", "trigger", "actions"}
    return _without_ids(automation.model_dump(mode="json", include=parts))


def _without_ids(value: object) -> object:
    if isinstance(value, dict):
        return {name: _without_ids(each) for name, each in value.items() if name != "id"}
    if isinstance(value, list):
        each = [_without_ids(part) for part in value]
        # sets have no order on their way through JSON
        return sorted(each) if all(isinstance(part, str) for part in each) else each  # type: ignore[type-var]
    return value
