"""Setting up makes each automation once, leaves alone what is as it should be, and mends what is not."""

import pytest
from prefect.automations import Automation
from prefect.client.orchestration import get_client
from pydantic import SecretStr, ValidationError

from styleclip.flows.alerts import LATE, MISSING, NOTIFY, ZOMBIES
from styleclip.flows.server_setup import ServerSetup, set_up

NAMES = (ZOMBIES, NOTIFY, LATE, MISSING)
WANTED = ServerSetup(webhook=SecretStr("https://hooks.example.org/canary"), unprotected=True)


def ids() -> dict[str, tuple[str, str]]:
    """Return the ids of all of the project's automations and of their triggers, which a change replaces."""
    with get_client(sync_client=True) as client:
        found = client.request("POST", "/automations/filter", json={}).json()
    ours = [each for each in found if each["name"].startswith("styleclip: ")]
    assert sorted(each["name"] for each in ours) == sorted(NAMES)  # once each
    return {each["name"]: (each["id"], each["trigger"]["id"]) for each in ours}


@pytest.fixture
def made(prefect_server) -> dict[str, tuple[str, str]]:
    set_up(WANTED)
    return ids()


def test_setting_up_again_leaves_what_an_automation_waits_for(made):
    lines = set_up(WANTED)
    for name in NAMES:
        assert f"automation {name!r}: there" in lines
    assert ids() == made


def test_what_is_wanted_otherwise_is_changed_alone(made):
    lines = set_up(WANTED.model_copy(update={"missing_after": 3600}))
    assert f"automation {MISSING!r}: brought up to date" in lines
    after = ids()
    assert [name for name in NAMES if after[name] != made[name]] == [MISSING]
    assert after[MISSING][0] == made[MISSING][0]
    found = Automation.read(name=MISSING)
    assert "no table for 1 h" in found.actions[0].payload
    assert found.trigger.within.total_seconds() == 3600


def test_what_somebody_switched_off_or_changed_is_as_it_should_be_again(made):
    changed = Automation.read(name=LATE)
    changed.enabled = False
    changed.update()
    assert f"automation {LATE!r}: brought up to date" in set_up(WANTED)
    assert Automation.read(name=LATE).enabled


def test_messages_have_links_where_the_server_does_not_know_its_address(made, prefect_server):
    address = prefect_server.removesuffix("/api")
    for name in (NOTIFY, LATE):
        assert (
            f'or ("{address}/runs/flow-run/" ~ flow_run.id)' in Automation.read(name=name).actions[0].payload
        )
    assert f"completed {address}/deployments" in Automation.read(name=MISSING).actions[0].payload


def test_a_server_with_prefect_s_own_patience_is_named(made):
    assert set_up(WANTED)[-1].endswith(
        "set PREFECT_SERVER_EVENTS_CAUSAL_ORDERING=styleclip.flows.event_order on the server"
    )
    # nobody is told anything, and so nothing late
    assert "CAUSAL_ORDERING" not in set_up(ServerSetup(unprotected=True))[-1]


@pytest.mark.parametrize("wrong", [{"late_after": 29}, {"missing_after": 9}, {"nightly": "nightly"}], ids=str)
def test_a_wait_that_prefect_cannot_keep_is_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        ServerSetup(**wrong)
