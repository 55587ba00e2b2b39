"""The running programs, as the Admin API shows them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gateway.admin.resources.resource import (
    ReportEndpoint,
)
from gateway.admin.resources.values import (
    Instant,
    Out,
)
from gateway.core.accounts.administration import (
    RowScope,
    access,
)


class RunningProgram(Out):
    """A gateway worker or keeper, as reported by itself."""

    id: str
    role: Literal["gateway", "keeper"]
    version: str
    layout: int = Field(description="Of what Redis holds, the newest that it knows.")
    forms: str | None = Field(
        default=None,
        description="The second number of that layout: programs of others never serve together; null of a release.",
    )
    waits: bool = Field(
        default=False, description="Whether it serves nothing until programs of other forms end."
    )
    schema_version: str | None = Field(
        description="Of PostgreSQL, the newest that it knows; null of a gateway."
    )
    host: str
    knows: list[str] = Field(
        default=[], description="Capabilities that it knows; none of a program before 1.1.0."
    )
    time_zones: str | None = Field(
        default=None,
        description="The edition of the time zones that it reads, such as 2026f; null of a program before 1.1.0.",
    )
    started_at: Instant
    said_at: Instant = Field(description="When it said last that it is there, by the clock of Redis.")
    refused: str | None = Field(description="Why it serves nothing, and what helps; null where it serves.")


class Programs(Out):
    """The running programs and the stored versions. A program silent for 90 seconds is left out."""

    layout: int = Field(description="The newest in Redis; 0 where there is nothing yet.")
    schema_version: str | None
    runs_from: str | None = Field(
        description="Programs that know the schema up to this one, or more, run on it."
    )
    items: list[RunningProgram] = Field(description="Those that began last first.")


PROGRAMS_REPORT = ReportEndpoint(
    name="programs",
    access=access(reach=RowScope.WHOLE),
    description="Who runs which version.",
    summary="Read which gateway workers and keepers run, and which of them are too old",
    out=Programs,
)
