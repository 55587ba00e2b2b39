"""Contradictions that a person accepted: their entries are set aside, and drifts are stored for their accounts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from psycopg import Connection

from gateway.core.accounts.flush_batch import stream_place
from gateway.core.accounts.outbox import places_before
from persistence.ledger import statements
from persistence.ledger.copying import Place
from persistence.ledger.guard import UNKNOWN, Movement, Placed, QuarantineReason, event_of


def neighbours(
    connection: Connection[Any], account: str, seq: int
) -> tuple[dict[int, Movement], dict[int, int]]:
    """Return the stored movements at a sequence number and next to it, and the drifts there.

    A drift is a change of the balance without a movement. Both are by sequence number.
    """
    kind, _, number = account.partition(":")
    here = {"id": int(number), "from": seq - 1, "to": seq + 1, "account": account}
    rows = {
        at: Movement(
            account, at, epoch, delta, balance, month_of(moment.timestamp()) if kind == "spend" else 0
        )
        for at, epoch, delta, balance, moment in connection.execute(statements.AROUND[kind], here)
    }
    return rows, dict(map(tuple, connection.execute(statements.DRIFTS_AROUND, here)))


def month_of(seconds: float) -> int:
    """Return the UTC month of a Unix time, as year × 12 + month."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.year * 12 + moment.month


# By account: the time (Unix ms) up to which a person accepted contradictions, and the reason.
Accepted = Mapping[str, tuple[float, str]]
ACCEPTABLE = ("conflict", UNKNOWN)


def accepted_accounts(connection: Connection[Any], partitions: Sequence[int]) -> Accepted:
    rows = connection.execute(statements.ACCEPTED, (list(partitions),))
    return {account: (float(until_ms), reason) for account, until_ms, reason in rows}


def set_aside_account(faults: Iterable[QuarantineReason], accepted: Accepted) -> dict[Place, str]:
    """Return the entries of those faults that a person has accepted, each with the reason.

    They are set aside instead of stopping their account.
    """
    aside = {}
    for fault in faults:
        until_ms, why = accepted.get(fault.account, (0.0, ""))
        if fault.kind in ACCEPTABLE and stream_place(fault.entry_id)[0] <= until_ms:
            aside[fault.partition, fault.entry_id] = f"{fault.reason}; set aside: {why}"
    return aside


def file_breaks(connection: Connection[Any], fresh: Sequence[Placed], accepted: Accepted) -> None:
    """Store a drift for each account that continues from another balance than the stored rows give.

    This happens after an entry of the account was set aside, as accepted by a person.
    """
    if not accepted:
        return
    done: set[str] = set()
    for placed in fresh:
        event = event_of(placed)
        for place in places_before(event):
            if place.account in done or place.account not in accepted or place.seq == 0:
                continue
            done.add(place.account)
            around, drifts = neighbours(connection, place.account, place.seq)
            before = around.get(place.seq)
            if before is None or before.balance is None or place.balance is None:
                continue
            if before.month and before.month < month_of(event.at_ms / 1000):
                continue
            difference = place.balance - before.balance - drifts.get(place.seq, 0)
            if difference:
                connection.execute(statements.FILE_DRIFT, (place.account, place.seq, difference))
