"""Which programs run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gateway.admin.resources.resource import Report
from gateway.admin.resources.values import Instant, Out
from gateway.core.accounts.roles import Reach, access


class RunningProgram(Out):
    """One gateway worker or keeper, as it says of itself."""

    id: str
    role: Literal["gateway", "keeper"]
    version: str
    layout: int = Field(description="Of what Redis holds, the newest that it knows.")
    schema_version: str | None = Field(
        description="Of PostgreSQL, the newest that it knows; null of a gateway."
    )
    host: str
    started_at: Instant
    said_at: Instant = Field(description="When it said last that it is there, by the clock of Redis.")
    refused: str | None = Field(description="Why it serves nothing, and what helps; null where it serves.")


class Programs(Out):
    """Who runs which version, and what is stored. Who is silent for 90 seconds is not there any more."""

    layout: int = Field(description="The newest in Redis; 0 where there is nothing yet.")
    schema_version: str | None
    runs_from: str | None = Field(
        description="Programs that know the schema up to this one, or more, run on it."
    )
    items: list[RunningProgram] = Field(description="Those that began last first.")


REPORT = Report(
    name="programs",
    access=access(reach=Reach.WHOLE),
    description="Who runs which version.",
    summary="Read which gateway workers and keepers run, and which of them are too old",
    out=Programs,
)
