"""Prometheus' own tool reads the rules and the dashboard's queries, and says when each rule fires."""

import json
import shutil
import subprocess

import pytest
import yaml
from running import ROOT

PLACE = ROOT / "docs" / "monitoring"
RULES = yaml.safe_load((PLACE / "styleclip.rules.yml").read_text())["groups"][0]["rules"]
PANELS = json.loads((PLACE / "styleclip.dashboard.json").read_text())["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]


def promtool(*arguments: str) -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("there is no promtool on the PATH; `make operations` installs it where it may")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_rule_fires_when_it_should_and_not_before():
    tests = yaml.safe_load((PLACE / "styleclip.rules.test.yml").read_text())["tests"]
    for expected in (True, False):
        tried = {
            each["alertname"] for test in tests for each in test["alert_rule_test"]
            if bool(each.get("exp_alerts")) is expected
        }  # fmt: skip
        assert tried == {rule["alert"] for rule in RULES}
    promtool("check", "rules", str(PLACE / "styleclip.rules.yml"))
    promtool("test", "rules", str(PLACE / "styleclip.rules.test.yml"))


def test_every_query_of_the_dashboard_is_one(tmp_path):
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(QUERIES)]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    assert f"{len(QUERIES)} rules found" in promtool("check", "rules", str(file))
