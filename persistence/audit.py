"""Who changed what, and when: written in the transaction of the change."""

from __future__ import annotations

from sqlalchemy import insert

from gateway.core.administration import Row
from persistence.subject import Change
from persistence.tables import audit_log

PLAIN = (int, str, bool, dict, list, type(None))
MADE_OR_CHANGED = frozenset({"create", "change"})


def record(change: Change, row: Row) -> None:
    """Write the audit row of one change; secrets and their digests are never part of it."""
    command = change.command
    after = _plain(command.render(row) if command.verb in MADE_OR_CHANGED else command.values)
    change.connection.execute(
        insert(audit_log).values(
            actor=command.actor.scope,
            admin_token_id=command.actor.token_id,
            action=command.verb,
            resource=command.resource,
            resource_id=str(row["id"]),
            before=_plain(command.render(change.before)) if change.before is not None else None,
            after=after or None,
            request_id=command.request_id,
        )
    )


def _plain(values: Row) -> dict[str, object]:
    """The values as JSON has them: days, instants and money as text."""
    return {name: value if isinstance(value, PLAIN) else str(value) for name, value in values.items()}
