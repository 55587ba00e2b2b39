"""Additions of credits as the Admin API writes them, arriving as the counters post them."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from tests.connections import connected
from tests.persistence.scenario import Account, one


def give(
    url: str,
    account: Account,
    amount: int,
    *,
    priority: int = 100,
    expires_ms: int | None = None,
    category: str = "paid",
    unit_cost: str | None = None,
) -> int:
    """Add credits; the posting is the account's next movement. Answers the addition's id."""
    write_id = uuid.uuid4()
    expires_at = None if expires_ms is None else datetime.fromtimestamp(expires_ms / 1000, UTC)
    with connected(url) as connection:
        addition = one(
            connection,
            "INSERT INTO credit_addition (organization_id, credits_added, priority, expires_at, category,"
            ' unit_cost, control_write_id, "timestamp") VALUES (%s, %s, %s, %s, %s, %s, %s, %s) RETURNING id',
            account.organization_id, amount, priority, expires_at, category, unit_cost, write_id,
            datetime.fromtimestamp(account.at_ms / 1000, UTC),
        )  # fmt: skip
    account.credit(amount, str(write_id))
    return addition


def post_expiries(url: str, account: Account) -> int:
    """Post the intents that wait, as the pusher and the scripts do; answers what they took."""
    taken = 0
    with connected(url) as connection:
        waiting = connection.execute(
            "UPDATE control_write SET state = 'applied' WHERE state = 'pending' AND verb = 'credits'"
            " AND account = %s RETURNING id::text, (payload->>'amount')::bigint",
            (f"organization:{account.organization_id}",),
        ).fetchall()
    for write_id, amount in waiting:
        account.credit(amount, write_id)
        taken -= amount
    return taken
