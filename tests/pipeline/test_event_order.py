"""An event whose leader never comes is held back for seconds; one whose leader is late keeps its place."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from prefect.server.events.ordering import EventArrivedEarly
from prefect.server.events.schemas.events import ReceivedEvent

from styleclip.flows.event_order import PATIENCE, CausalOrdering


def event(name: str, *, follows: UUID | None, age: timedelta = timedelta(0)) -> ReceivedEvent:
    when = datetime.now(UTC) - age
    return ReceivedEvent(
        id=uuid4(), occurred=when, received=when, event=name, follows=follows,
        resource={"prefect.resource.id": "prefect.flow-run.one"},
    )  # fmt: skip


class Seen:
    """A consumer of events that notes what it is given, in order."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.ordering = CausalOrdering(scope=uuid4().hex)

    async def __call__(self, event: ReceivedEvent, depth: int = 0) -> None:
        async with self.ordering.preceding_event_confirmed(self, event, depth):
            self.names.append(event.event)


def test_what_follows_an_event_that_never_comes_is_given_up_after_a_while():
    async def story() -> None:
        seen = Seen()
        pending = event("Pending", follows=uuid4(), age=PATIENCE + timedelta(seconds=1))
        failed = event("Failed", follows=pending.id)
        young = event("Pending", follows=uuid4())
        for each in (pending, failed, young):
            with pytest.raises(EventArrivedEarly):
                await seen(each)
        assert seen.names == []

        # as the server does every 5 s; what waited behind follows in its order
        for each in await seen.ordering.get_lost_followers():
            await seen(each)
        assert seen.names == ["Pending", "Failed"]
        assert await seen.ordering.get_lost_followers() == []

    asyncio.run(story())


def test_a_leader_that_is_late_still_goes_first():
    async def story() -> None:
        seen = Seen()
        pending = event("Pending", follows=None)
        with pytest.raises(EventArrivedEarly):
            await seen(event("Running", follows=pending.id))
        await seen(pending)
        assert seen.names == ["Pending", "Running"]

    asyncio.run(story())
