"""Pages of a report: how many items of it, and where the page before ended."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gateway.admin.resources.values import In

CURSOR_CHARS_MAX = 400

Cursor = Annotated[
    str, Field(strict=True, min_length=1, max_length=CURSOR_CHARS_MAX, pattern="^[A-Za-z0-9_-]+$")
]


class Paged(In):
    """What is asked for a page."""

    limit: int = Field(default=1_000, ge=1, le=10_000, description="Most items to tell.")
    cursor: Cursor | None = Field(
        default=None, description="`next_cursor` of the page before, with the same parameters."
    )
