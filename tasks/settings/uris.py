"""Kinds of values that forms take: URIs without credentials, prompts, names that are known."""

from __future__ import annotations

import re
from typing import Annotated
from zoneinfo import available_timezones

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from styleclip_core.templates import TEMPLATE_SETS

# A URI with a user's name and password, or an S3 one with keys where its bucket should be.
_CREDENTIALS = r"[A-Za-z0-9+.-]+://[^/]*:[^/]*@|[sS]3[aA]?://(?!arn:)[^/]*[:@]"


def _without_credentials(uri: str) -> str:
    if re.match(_CREDENTIALS, uri):
        raise ValueError("the URI holds credentials; give them in the environment, never in a parameter")
    return uri


# What the server checks before there is a run that would store the value. An empty one passes: it is what a
# deployment has whose variables were not set, and a run that needs it says so.
_URI_SCHEMA = WithJsonSchema({"type": "string", "pattern": f"^(?!{_CREDENTIALS})"})
Prompt = Annotated[str, Field(min_length=1)]
OptionalUri = Annotated[str, AfterValidator(_without_credentials), _URI_SCHEMA]
UriOrNone = Annotated[OptionalUri | None, BeforeValidator(lambda given: given or None)]  # a form sends ""
Uri = Annotated[str, Field(min_length=1), AfterValidator(_without_credentials), _URI_SCHEMA]


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
