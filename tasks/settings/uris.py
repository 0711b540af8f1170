"""Kinds of values that forms take: places in their one form, prompts, names that are known."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar
from zoneinfo import available_timezones

from pydantic import AfterValidator, BeforeValidator, GetCoreSchemaHandler, WithJsonSchema

from styleclip_core.errors import CheckpointError
from styleclip_core.models.clip_names import PREFIXES, clip_place, parse_clip
from styleclip_core.templates import TEMPLATE_SETS

_Group = TypeVar("_Group")


class _UsualIfNone:
    """Takes nothing for a group of settings as they usually are: a form sends that for one nobody opened."""

    def __get_pydantic_core_schema__(self, group: Any, handler: GetCoreSchemaHandler) -> Any:  # noqa: ANN401
        def filled_in(given: object) -> object:
            return group() if given is None else given

        return handler.generate_schema(Annotated[group, BeforeValidator(filled_in)])


OrUsual = Annotated[_Group, _UsualIfNone()]


def _place(given: str) -> str:
    from styleclip.tasks.storage import canonical  # takes a second, and `styleclip --help` has no use for it

    return canonical(given)


def _place_or_empty(given: str) -> str:
    return _place(given) if given else given


def _clip(given: str) -> str:
    try:
        place = clip_place(given)
        return parse_clip(given).at(_place(place)).given if place else given
    except CheckpointError as error:
        raise ValueError(str(error)) from error


class _PlaceSchema:
    """What the server checks before there is a run that would store the value.

    An empty one passes: it is what a deployment has whose variables were not set, and a run that needs it
    says so.
    """

    def __init__(self, prefixes: str = "") -> None:
        self._prefixes = prefixes

    def __get_pydantic_json_schema__(self, _core: Any, _handler: Any) -> dict[str, Any]:  # noqa: ANN401
        from styleclip.tasks.storage import NO_PLACE

        return {"type": "string", "pattern": f"^(?!{self._prefixes}(?:{NO_PLACE}))"}


OptionalUri = Annotated[str, AfterValidator(_place_or_empty), _PlaceSchema()]
UriOrNone = Annotated[OptionalUri | None, BeforeValidator(lambda given: given or None)]  # a form sends ""
Uri = Annotated[str, AfterValidator(_place), _PlaceSchema()]
Clip = Annotated[str, AfterValidator(_clip), _PlaceSchema(f"{PREFIXES}?")]


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("a prompt is blank; say what an image shows, e.g. grey hair")
    return text


Prompt = Annotated[
    str, AfterValidator(_not_blank), WithJsonSchema({"type": "string", "minLength": 1, "pattern": r"\S"})
]


def _known_templates(name: str) -> str:
    if name not in TEMPLATE_SETS:
        raise ValueError(f"unknown template set {name!r}; there are {', '.join(TEMPLATE_SETS)}")
    return name


TemplateSet = Annotated[
    str, AfterValidator(_known_templates), WithJsonSchema({"type": "string", "enum": list(TEMPLATE_SETS)})
]


def _known_time_zone(name: str) -> str:
    if name not in available_timezones():
        raise ValueError(f"unknown time zone {name!r}; give one such as Europe/Berlin or UTC")
    return name


TimeZone = Annotated[
    str,
    AfterValidator(_known_time_zone),
    WithJsonSchema({"type": "string", "enum": sorted(available_timezones())}),
]
