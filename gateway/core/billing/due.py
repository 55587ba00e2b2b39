"""An invoice that the schedule wants. Pure."""

from __future__ import annotations

from datetime import date
from typing import NamedTuple


class Due(NamedTuple):
    """An invoice to be drafted or, where it is a draft, made again; `source` of a one-off invoice."""

    organization_id: int
    draft_id: int | None
    period_start: date
    period_end: date
    source: str | None
    finalize: bool
