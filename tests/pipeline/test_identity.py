"""Inputs that are replaced in the middle of a run leave nothing under another's name.

``make identity`` goes through all inputs and moments; here is one of each kind that no narrower test has.
"""

from __future__ import annotations

import pytest

from tests.nights.identity import MOMENTS, disturb, truth_of
from tests.nights.identity_cases import Place, cases

pytestmark = pytest.mark.usefixtures("prefect_server")
HERE = {"edit: tuning": 1, "evaluate: edited image": 1, "evaluate: manifest": 2, "paste: table of faces": 0}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@pytest.mark.parametrize("name", HERE)
def test_nothing_is_filed_under_the_name_of_what_was_replaced(name, place, prefect_server):
    case = dict(cases(place))[name]()
    truth, names = truth_of(case)
    assert disturb(case, MOMENTS[HERE[name]], truth, names).problems() == []
