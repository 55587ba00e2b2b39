"""What is asked of usage: by what it is grouped, and what is added up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

# The groups of a report, each with the column it stands for.
GROUPS: Final = {
    "organization": "organization_id",
    "tenant": "tenant_id",
    "user": "user_id",
    "api_key": "api_key_id",
    "project": "project_id",
    "service": "service_id",
    "model": "model",
}
# What a call has none of, where a null cannot be told from another: nobody's is 0, no project is -1.
NO_PROJECT: Final = -1
DIMENSIONS: Final = (
    "organization_id", "start", "tenant_id", "api_key_id", "user_id", "project_id", "service_id", "model",
    "currency",
)  # fmt: skip
SUMS: Final = (
    "requests", "refused", "input", "cache_read", "cache_write", "output", "reasoning", "tokens", "credits",
    "units", "cost", "estimated", "unpriced",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Calls from `since` to `until` (not included), whole hours, told apart by `groups` and `interval`.

    `filters` are values by column.
    """

    since: datetime
    until: datetime
    interval: str
    groups: tuple[str, ...]
    filters: Mapping[str, object]
    rows_max: int
