"""What a scheduled build of a relevance table does each night, and which date a night has."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from pydantic import Field, model_validator

from styleclip.tasks.settings.settings import Settings
from styleclip.tasks.settings.uris import TimeZone


class Nightly(Settings):
    """What each night of a scheduled build does: start the table, or add samples to the last night's."""

    samples: int = Field(100, ge=1, description="Style codes per channel that a night adds")
    most: int = Field(1000, ge=1, description="Style codes per channel from which on nights add nothing")
    time_zone: TimeZone = Field("UTC", description="Where the date of a night is read")
    night: str = Field(
        "",
        pattern=r"^(\d{4}-\d{2}-\d{2})?$",
        description="Date of a night's morning, as 2031-05-17; empty for the night when the run was due",
    )

    def date_of(self, due: datetime) -> str:
        """Return the date of the night that a run which was due then belongs to.

        A night reaches from noon to noon and has the date of its morning. Midnight would not do: where the
        clock skips it, Prefect starts a run of 0:00 at 23:00, on the date before, which has had its run.
        """
        here = due.astimezone(ZoneInfo(self.time_zone))
        # the clock's own hours are counted, as no clock is changed about noon
        return self.night or (here.replace(tzinfo=None) + timedelta(hours=12)).date().isoformat()

    @model_validator(mode="after")
    def _check(self) -> Nightly:
        if self.night:
            date.fromisoformat(self.night)
        return self
