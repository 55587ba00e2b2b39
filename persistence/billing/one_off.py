"""Which invoices are of one source alone, and what keeps one from being made."""

from __future__ import annotations

from sqlalchemy import select, true

from gateway.core.accounts.administration import Row
from gateway.core.billing.charge import Wanted
from gateway.errors import Conflict
from persistence.subject import Change
from persistence.tables import invoice

NOTHING_OWED = "Nothing of this source is owed that no invoice has."


def misfits(values: Row) -> tuple[tuple[str, str], ...]:
    """What keeps fields from saying either a period or a source."""
    if values.get("source") is None:
        wanted = "is required, but for a one-off invoice of a source"
        found = [(name, wanted) for name in ("period_start", "period_end") if values.get(name) is None]
        return (*found, *((("source_id", "needs a source"),) if values.get("source_id") is not None else ()))
    if values.get("period_start") is not None:
        return (("period_start", "is when what the source owes began: give period_end alone, or none"),)
    return ()


def refuse_second_draft(change: Change, organization_id: int) -> None:
    """Raise `Conflict` where a draft shows the same charges."""
    values = change.command.values
    here, source_id = invoice.c, values.get("source_id")
    same = here.source_id.is_(None) | (here.source_id == source_id) if source_id is not None else true()
    other = select(here.id).where(
        here.organization_id == organization_id, here.corrects_id.is_(None), here.status == "draft",
        here.source == values["source"], same,
    )  # fmt: skip
    if draft := change.connection.execute(other.limit(1)).scalar():
        raise Conflict(f"Draft {draft} is of this source: finalize or delete it.")


def only_of(row: Row) -> Wanted | None:
    """The one source that an invoice is of; None of one over a period."""
    source, source_id = row.get("source"), row.get("source_id")
    return None if source is None else (str(source), None if source_id is None else int(str(source_id)))
