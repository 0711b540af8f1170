#!/usr/bin/env bash
# Prefect 3.8.8, CronSchedule with a time zone: a time of the clock that is skipped in spring is neither left out nor
# moved behind the gap, as cron daemons do; it is started before it, by as much as is skipped. Where the clock skips
# midnight (Cairo, Beirut, Havana, Santiago), "0 0 * * *" is then started at 23:00 of the date before: two runs have
# one date, and the date of the change has none. Whoever names a nightly result by its local date loses a night.
#
# Seen, Africa/Cairo, 2026: 04-23 00:00, 04-23 23:00, 04-25 00:00. Seen, America/New_York, "30 2 * * *": 03-08 01:30.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
# the two others within what Prefect 3.8.8 works with
"$work/venv/bin/pip" install -q prefect==3.8.8 'fastapi<0.151' 'sqlalchemy<2.1'
"$work/venv/bin/python" -W ignore - <<'PY'
import asyncio
from datetime import datetime, timezone
from zoneinfo import ZoneInfo

from prefect.server.schemas.schedules import CronSchedule


def starts(cron, name, day):
    schedule = CronSchedule(cron=cron, timezone=name)
    found = asyncio.run(schedule.get_dates(3, datetime(2026, *day, 12, tzinfo=timezone.utc)))
    return [each.astimezone(ZoneInfo(name)).strftime("%m-%d %H:%M") for each in found]


cairo = starts("0 0 * * *", "Africa/Cairo", (4, 22))
york = starts("30 2 * * *", "America/New_York", (3, 6))
print("Africa/Cairo, 0 0:", cairo)
print("America/New_York, 30 2:", york)
assert cairo == ["04-23 00:00", "04-23 23:00", "04-25 00:00"]
assert york == ["03-07 02:30", "03-08 01:30", "03-09 02:30"]
PY
echo "as described"
