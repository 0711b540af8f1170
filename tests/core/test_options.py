"""Options written once, on a settings dataclass: bounds that hold, and what names a result."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from hypothesis import given
from hypothesis import strategies as st

from styleclip_core.options import (
    ChangesNoResult,
    NamedIfChanged,
    NamedWith,
    Says,
    annotated_fields,
    check,
    describe_excess,
    parameters,
)


@dataclass(frozen=True, slots=True)
class Oven:
    heat: Annotated[float, Gt(0), Lt(300), Says("Heat in degrees")] = 180.0
    trays: Annotated[int, Ge(2), Le(6), MultipleOf(2), Says("Trays in it")] = 2
    fan: Annotated[Literal["off", "on"], Says("Whether air moves")] = "off"
    alarm: Annotated[int | None, Ge(1), Says("Minutes until it rings"), ChangesNoResult("only a sound")] = (
        None
    )
    steam: Annotated[float, Ge(0), Says("Litres of water"), NamedIfChanged()] = 0.0
    speed: Annotated[int, Ge(0), Says("Of the fan"), NamedWith("steam")] = 3

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True)
class Kitchen(Oven):
    shelves: tuple[str, ...] = ("salt", "flour")
    second: Annotated[Oven | None, NamedIfChanged()] = None


@given(st.floats() | st.integers())
def test_a_number_of_any_setting_is_finite_and_bounded(value):
    assert bool(describe_excess(value)) == bool(describe_excess((1.0, value)))
    whole = isinstance(value, int)
    assert (not describe_excess(value)) == (abs(value) <= (2**31 - 1 if whole else 1e6))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"heat": 0}, "heat must be more than 0, got 0"),
        ({"heat": 300.0}, r"heat must be less than 300, got 300\.0"),
        ({"heat": float("nan")}, "heat must be a finite number, got nan"),
        ({"heat": float("inf")}, "heat must be a finite number, got inf"),
        ({"steam": 1e300}, r"steam must be from -1,000,000 to 1,000,000, got 1e\+300"),
        ({"speed": 2**31}, "speed must be from -2,147,483,647 to 2,147,483,647, got 2147483648"),
        ({"trays": 0}, "trays must be at least 2, got 0"),
        ({"trays": 8}, "trays must be at most 6, got 8"),
        ({"trays": 3}, "trays must be a multiple of 2, got 3"),
        ({"fan": "warm"}, "fan must be one of 'off', 'on', got 'warm'"),
        ({"alarm": 0}, "alarm must be at least 1, got 0"),
    ],
)
def test_a_value_out_of_bounds_is_named_with_its_bound(values, message):
    for kind in (Oven, Kitchen):
        with pytest.raises(ValueError, match=f"^{message}$"):
            kind(**values)


def test_values_at_their_bounds_and_none_are_fine():
    assert Oven(heat=299.9, trays=6, alarm=None, steam=0) == Oven(heat=299.9, trays=6)
    assert Oven(trays=2, alarm=1).alarm == 1


def test_a_field_keeps_its_type_and_all_that_is_said_of_it():
    fields = annotated_fields(Kitchen)
    assert list(fields) == ["heat", "trays", "fan", "alarm", "steam", "speed", "shelves", "second"]
    assert fields["heat"] == (float, (Gt(0), Lt(300), Says("Heat in degrees")))
    assert fields["shelves"] == (tuple[str, ...], ())


def test_parameters_are_what_decides_a_result():
    plain = {"heat": 180.0, "trays": 2, "fan": "off"}
    assert parameters(Oven()) == parameters(Oven(alarm=5)) == parameters(Oven(speed=9)) == plain
    assert parameters(Oven(steam=0.5)) == plain | {"steam": 0.5, "speed": 3}
    shelves = {"shelves": ["salt", "flour"]}
    assert parameters(Kitchen()) == plain | shelves
    assert parameters(Kitchen(second=Oven(heat=90, alarm=2))) == plain | shelves | {
        "second": plain | {"heat": 90}
    }
