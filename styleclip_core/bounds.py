"""Bounds of options, ``Ge(1)`` and the like: those of the package ``annotated-types``, which pydantic reads.

A machine that was set up for torch alone often lacks that package, and the core needs nothing else of it.
There the same five stand in: what they are called and what they hold is what ``options`` looks at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from annotated_types import Ge as Ge
    from annotated_types import Gt as Gt
    from annotated_types import Le as Le
    from annotated_types import Lt as Lt
    from annotated_types import MultipleOf as MultipleOf
else:
    try:
        from annotated_types import Ge, Gt, Le, Lt, MultipleOf
    except ModuleNotFoundError:
        from dataclasses import make_dataclass

        # one field each, named as the package names it; where pydantic is, so is the package
        Ge, Gt, Le, Lt, MultipleOf = (
            make_dataclass(name, [(field, object)], frozen=True, slots=True)
            for name, field in (
                ("Ge", "ge"), ("Gt", "gt"), ("Le", "le"), ("Lt", "lt"), ("MultipleOf", "multiple_of"),
            )
        )  # fmt: skip
