"""Updates of accounts, control writes and charges by a batch, in the transaction that stores its rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from psycopg import Connection

from gateway.core.accounts.outbox import EventFlag, OutboxEntry
from persistence.billing import top_ups
from persistence.ledger import late_units, statements
from persistence.ledger.guard import Placed
from persistence.ledger.rollup import RollupDelta
from persistence.ledger.statements import bounded

_UNLIMITED = int(EventFlag.UNLIMITED)
_BLOCKED, _MANUAL = int(EventFlag.BLOCKED), int(EventFlag.MANUAL_BLOCK)


def move(connection: Connection[Any], moves: RollupDelta) -> None:
    """Update accounts and roll-ups by the entries that are stored for the first time."""
    quotas = [_quota_row(id_, event, moves.resets.get(id_)) for id_, event in sorted(moves.quotas.items())]
    paid = [(id_, e.balance, e.ahead, e.epoch, e.credit_seq) for id_, e in sorted(moves.credits.items())]
    spends = [(id_, e.spent, e.epoch, e.spend_seq, e.at_ms) for id_, e in sorted(moves.spends.items())]
    activated = sorted((e.organization_id, e.service_id, e.source, e.at_ms) for e in moves.activations)
    for statement, rows in (
        (statements.MOVE_QUOTAS, quotas),
        (statements.MOVE_CREDITS, paid),
        (statements.MOVE_SPENDS, spends),
        (statements.ROLL_UP, _added_up(moves.daily)),
        (statements.ROLL_UP_TIERS, _added_up(moves.priced)),
        (late_units.ROLL_UP, _added_up(moves.told)),
        (statements.ACTIVATE, activated),
    ):
        if rows:
            connection.execute(statement, statements.columns_of(rows))


def charge(connection: Connection[Any], moves: RollupDelta) -> None:
    """Charge what the stored movements make billable: tokens used beyond ended plans, and sold credits."""
    if moves.beyond:
        connection.execute(statements.CHARGE_TOKENS, (sorted(moves.beyond),))
    if moves.granted:
        connection.execute(statements.CHARGE_CREDITS, (sorted(moves.granted),))


def top_up(connection: Connection[Any], moves: RollupDelta) -> None:
    """Close the top-up orders whose credits have arrived; order credits for balances at their threshold."""
    if moves.granted:
        connection.execute(top_ups.CLOSE_AFTER, (sorted(moves.granted),))
    if moves.credits:
        connection.execute(top_ups.ORDER_AFTER, (sorted(moves.credits),))


def set_status(connection: Connection[Any], status_changes: Iterable[Placed], moves: RollupDelta) -> None:
    """Store whether tenants are blocked, after entries that block or unblock them by hand.

    A tenant with a later movement is left out.
    """
    last = {}
    for _, (_, _, event) in status_changes:
        assert event is not None
        moved = moves.quotas.get(event.tenant_id)
        if moved is not None and moved.seq > event.seq:
            continue
        last[event.tenant_id] = (bool(event.flags & _BLOCKED), bool(event.flags & _MANUAL))
    if last:
        connection.execute(
            statements.STAND, statements.columns_of([(id_, *flags) for id_, flags in sorted(last.items())])
        )


def finish(connection: Connection[Any], control_ids: Sequence[str], renewed: Iterable[int]) -> None:
    """Mark the control writes in `control_ids` as done, as their movements are stored.

    Tenants whose plan changed, or in `renewed`, get the total of their plan.
    """
    changed: set[int] = set(renewed)
    if control_ids:
        ids = sorted(control_ids)
        connection.execute(statements.FINISH, (ids,))
        changed.update(id_ for (id_,) in connection.execute(statements.CHANGE_PLANS, (ids,)))
    if changed:
        connection.execute(statements.RENEW_TOTALS, (sorted(changed),))


def _quota_row(tenant_id: int, event: OutboxEntry, reset_ms: int | None) -> tuple[Any, ...]:
    """Return the row of a tenant's quota after a movement."""
    unlimited = event.flags & _UNLIMITED
    return (
        tenant_id, event.used, None if unlimited else event.remaining, event.remaining if unlimited else 0,
        bool(event.flags & _BLOCKED), bool(event.flags & _MANUAL), reset_ms, event.next_reset_ms,
        event.cycle, event.epoch, event.seq,
    )  # fmt: skip


def _added_up(buckets: Mapping[Any, Sequence[int]]) -> list[tuple[Any, ...]]:
    return [(*bucket, *map(bounded, sums)) for bucket, sums in sorted(buckets.items())]
