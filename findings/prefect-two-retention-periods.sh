#!/usr/bin/env bash
# Prefect 3.8.8, how long a server keeps things: PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD takes a number of
# seconds, PREFECT_SERVER_EVENTS_RETENTION_PERIOD beside it does not. A number there is no warning and no default: no
# process in that environment can read its settings, so neither server nor worker nor command starts. Both take an
# ISO 8601 duration, which is what a file that all of them read had better say.
#
# Seen: 2592000 is 30 days for the one; for the other "Input should be a valid timedelta". P30D is 30 days for both.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
# the two others within what Prefect 3.8.8 works with
"$work/venv/bin/pip" install -q prefect==3.8.8 'fastapi<0.151' 'sqlalchemy<2.1'
export PREFECT_HOME="$work/home"

told() {  # NAME VALUE: what Prefect makes of a setting, in days, or the first line of its complaint
    env "$1=$2" "$work/venv/bin/python" -W ignore - <<'PY'
import sys

try:
    from prefect.settings import get_current_settings

    server = get_current_settings().server
except Exception as error:
    print("refused:", "valid timedelta" in str(error))
    sys.exit()
print(server.events.retention_period.days, server.services.db_vacuum.retention_period.days)
PY
}

vacuum=$(told PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD 2592000)
events=$(told PREFECT_SERVER_EVENTS_RETENTION_PERIOD 2592000)
iso=$(told PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD P30D; told PREFECT_SERVER_EVENTS_RETENTION_PERIOD P30D)
printf 'vacuum, 2592000: %s days\nevents, 2592000: %s\nP30D: %s\n' "${vacuum#* }" "$events" "$(echo $iso)"
test "${vacuum#* }" = 30
test "$events" = "refused: True"
test "$(echo $iso)" = "7 30 30 90"
echo "as described"
