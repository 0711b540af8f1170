"""The order in which a Prefect server looks at events, with less patience for one that never comes.

Whatever happens to a run names the event before it, and Prefect's triggers hold it back until that one has
come, for up to 15 minutes. But the scheduler makes its runs without an event: of a run that is made less than
5 minutes before it begins, as after `styleclip deploy`, the first event never comes, and everything after
it, its failure too, would be told 15 minutes late. So the server is told to use this module,
``PREFECT_SERVER_EVENTS_CAUSAL_ORDERING=styleclip.flows.event_order``.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from prefect.server.events.ordering import memory
from prefect.server.events.schemas.events import ReceivedEvent

PATIENCE = timedelta(seconds=20)  # events that overtake each other are fractions of a second apart


class CausalOrdering(memory.CausalOrdering):
    """Prefect's own, which gives up an event that has not come after ``PATIENCE``."""

    async def get_lost_followers(self) -> list[ReceivedEvent]:
        """Return the events whose leader does not come; the server asks every 5 s."""
        async with self._lock:
            overdue = datetime.now(UTC) - PATIENCE
            waiting = [self._events[each] for each, since in self._waitlist.items() if since <= overdue]

            # a leader that counts as seen holds nothing back; those behind these follow at once
            for event in waiting:
                if event.follows:
                    self._seen_events[event.follows] = True
        return sorted(waiting, key=lambda event: event.occurred)
