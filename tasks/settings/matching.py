"""How ways to where images that show a prompt have their channels are found."""

from __future__ import annotations

from pydantic import Field

from tasks.settings.settings import Settings


class Matching(Settings):
    """How edits find where images that show a prompt have their channels."""

    codes: int = Field(
        2000, ge=100, description="Sampled style codes that CLIP looks at, once for all prompts"
    )
