"""prefect.yaml is code: every entrypoint loads and every parameter is one that its flow takes."""

from importlib import import_module
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def _flow(deployment):
    module, _, name = deployment["entrypoint"].partition(":")
    return getattr(import_module(module), name)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda each: each["entrypoint"])
def test_parameters_fit_their_flow(deployment):
    flow = _flow(deployment)
    parameters = flow.validate_parameters(deployment["parameters"])
    assert set(deployment["parameters"]) <= set(parameters)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda each: each["entrypoint"])
def test_a_wrong_parameter_would_be_noticed(deployment):
    from prefect.exceptions import ParameterTypeError

    flow = _flow(deployment)
    taken = flow.parameters.properties
    settings = next(name for name in ("models", "execution", "manifest", "out") if name in taken)
    wrong = {**deployment["parameters"], settings: {"generator": "g", "klip": "x"}}
    with pytest.raises(ParameterTypeError, match=settings if settings in ("manifest", "out") else "klip"):
        flow.validate_parameters(wrong)


def test_names_are_unique_and_schedules_have_time_zones():
    names = [(each["entrypoint"], each["name"]) for each in DEPLOYMENTS]
    assert len(set(names)) == len(names)
    schedules = [schedule for each in DEPLOYMENTS for schedule in each.get("schedules", [])]
    assert schedules
    assert all("timezone" in schedule for schedule in schedules)
