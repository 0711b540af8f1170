"""Every date has its night, in every time zone: a scheduled start for each date, and no two for one.

Prefect's own schedule is slow, so its starts are computed here too, and compared with it where clocks change.
"""

import asyncio
import os
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from zoneinfo import ZoneInfo, available_timezones

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prefect.server.schemas.schedules import CronSchedule

from styleclip.tasks.settings import Nightly

CRONS = {(0, 0): "0 0 * * *", (0, 30): "30 0 * * *", (2, 0): "0 2 * * *", (2, 30): "30 2 * * *",
         (23, 59): "59 23 * * *"}  # fmt: skip
DAY = timedelta(days=1)
FIRST, LAST = datetime(2026, 1, 1), datetime(2036, 12, 31)
LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"


@lru_cache(maxsize=1)
def zones() -> dict[str, list[datetime]]:
    """One time zone of all that keep the same time over these years, and when its clocks change (UTC)."""
    days = [FIRST.replace(tzinfo=UTC) + number * DAY for number in range(-3, (LAST - FIRST).days + 4)]
    found: dict[tuple, str] = {}
    changes: dict[str, list[datetime]] = {}
    for name in sorted(available_timezones()):
        zone = ZoneInfo(name)
        # utcoffset() of a UTC time is that of UTC, so it is asked of the same instant there
        offsets = [day.astimezone(zone).utcoffset() for day in days]
        moments = []
        for number in range(1, len(days)):
            low, high = days[number - 1], days[number]
            while offsets[number] != offsets[number - 1] and high - low > timedelta(minutes=1):
                middle = low + (high - low) / 2
                same = middle.astimezone(zone).utcoffset() == offsets[number - 1]
                low, high = (middle, high) if same else (low, middle)
            if offsets[number] != offsets[number - 1]:
                moments.append(high.replace(second=0, microsecond=0))
        key = (offsets[0], tuple(moments), tuple(moment.astimezone(zone).utcoffset() for moment in moments))
        if key not in found:
            found[key] = name
            changes[name] = moments
    return changes


def start(wall: datetime, zone: ZoneInfo) -> datetime:
    """Return when Prefect starts what is due at a time of the clock (UTC).

    A time that comes twice is meant the first time. One that is skipped is counted back from the clock as it
    goes after the gap, so that it comes earlier, by as much as is skipped. The larger offset is both.
    """
    offsets = (wall.replace(tzinfo=zone, fold=fold).utcoffset() for fold in (0, 1))
    return (wall - max(offset for offset in offsets if offset is not None)).replace(tzinfo=UTC)


def by_prefect(cron: str, name: str, noon: datetime, count: int) -> list[datetime]:
    """Return the next starts after a noon as Prefect's scheduler makes them (UTC)."""
    schedule = CronSchedule(cron=cron, timezone=name)
    found = asyncio.run(schedule.get_dates(count, start(noon, ZoneInfo(name))))
    return [each.astimezone(UTC) for each in found]


def by_clock(time: tuple[int, int], name: str, noon: datetime, count: int) -> list[datetime]:
    """Return the same by the rule above."""
    hour, minute = time
    first = noon.replace(hour=hour, minute=minute) + DAY * (hour < 12)
    return [start(first + number * DAY, ZoneInfo(name)) for number in range(count)]


def check_dates(name: str, dates: list[datetime]) -> None:
    """What is scheduled once a date is the night of that date's morning, an evening's that of the next."""
    zone, nightly = ZoneInfo(name), Nightly(time_zone=name)
    for hour, minute in CRONS:
        nights = [nightly.date_of(start(date.replace(hour=hour, minute=minute), zone)) for date in dates]
        assert nights == [(date + DAY * (hour >= 12)).date().isoformat() for date in dates], (name, hour)


def test_every_date_has_one_night_wherever_clocks_change():
    changing = {name: moments for name, moments in zones().items() if moments}
    assert {"Africa/Cairo", "Asia/Beirut"} <= set(changing)
    for name, moments in changing.items():
        for moment in moments:
            day = moment.replace(tzinfo=None, hour=0, minute=0)
            check_dates(name, [day + number * DAY for number in range(-3, 4)])


@pytest.mark.skipif(not LONG, reason="takes minutes: make test-long")
def test_every_date_of_eleven_years_has_one_night():
    dates = [FIRST + number * DAY for number in range((LAST - FIRST).days + 1)]
    for name in zones():
        check_dates(name, dates)


@given(
    name=st.sampled_from(sorted(zones())), number=st.integers(0, (LAST - FIRST).days - 6),
    time=st.sampled_from(sorted(CRONS)),
)  # fmt: skip
def test_any_week_has_seven_nights_by_prefect_s_own_schedule(name, number, time):
    noon = FIRST + number * DAY + DAY / 2
    starts = by_prefect(CRONS[time], name, noon, 7)
    assert starts == by_clock(time, name, noon, 7)
    assert len({Nightly(time_zone=name).date_of(each) for each in starts}) == 7


def test_starts_are_prefect_s_where_clocks_change():
    changing = {name: moments for name, moments in zones().items() if moments}
    # the first two changes of every zone: one forwards, one back
    for name, moments in changing.items():
        for moment in moments[:2]:
            noon = moment.astimezone(ZoneInfo(name)).replace(tzinfo=None, hour=12, minute=0) - 2 * DAY
            for time, cron in CRONS.items():
                assert by_prefect(cron, name, noon, 3) == by_clock(time, name, noon, 3), (name, cron, moment)


def test_a_start_in_a_skipped_hour_comes_early_and_in_a_doubled_one_once():
    # Cairo skips 0:00 to 1:00 on 2026-04-24, Berlin has 2:00 to 3:00 twice on 2026-10-25
    (cairo,) = by_prefect("0 0 * * *", "Africa/Cairo", datetime(2026, 4, 23, 12), 1)
    assert cairo.astimezone(ZoneInfo("Africa/Cairo")).strftime("%d %H:%M") == "23 23:00"
    assert Nightly(time_zone="Africa/Cairo").date_of(cairo) == "2026-04-24"
    berlin = by_prefect("30 2 * * *", "Europe/Berlin", datetime(2026, 10, 24, 12), 2)
    assert [each.isoformat() for each in berlin] == ["2026-10-25T00:30:00+00:00", "2026-10-26T01:30:00+00:00"]


def test_schedules_are_in_the_time_zone_that_nights_are_read_in():
    deployments = yaml.safe_load((Path(__file__).parents[2] / "prefect.yaml").read_text())["deployments"]
    nightly = [each for each in deployments if "nightly" in each["parameters"]]
    assert nightly
    for each in nightly:
        zones = {schedule["timezone"] for schedule in each["schedules"]}
        assert zones == {each["parameters"]["nightly"]["time_zone"]}
