"""Quarantine: accounts with contradictions are stopped by the writer, and released.

The entries of a stopped account wait in the outbox until a person decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from psycopg import Connection

from gateway.core.accounts.flush_batch import FlushReport, stream_place
from gateway.core.accounts.outbox import places_before
from gateway.core.model import INTEGER_MAX
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


def stopped_accounts(connection: Connection[Any], partitions: Sequence[int]) -> set[str]:
    return {account for (account,) in connection.execute(statements.STOPPED, (list(partitions),))}


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
    done: set[str] = set()
    for placed in fresh if accepted else ():
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


def quarantine(connection: Connection[Any], faults: Iterable[QuarantineReason]) -> None:
    """Stop accounts until a person or the verifier releases them."""
    for fault in sorted(faults, key=lambda fault: fault.account):
        event = fault.event
        where = (fault.account, fault.partition, event.organization_id, event.tenant_id)
        seqs = (_bounded(event.epoch), fault.stored_seq, _bounded(fault.found_seq))
        why = (fault.kind, fault.behind, fault.entry_id.decode())
        connection.execute(statements.QUARANTINE, (*where, *why, *seqs, fault.reason, _stood(fault)))


def mark_stopped(connection: Connection[Any], report: FlushReport) -> None:
    """Store, for each partition, the newest entry that is deleted from the outbox after this transaction."""
    leaving = {partition: list(ids) for partition, ids in report.acknowledged.items()}
    for (partition, _), ids in report.parked.items():
        leaving.setdefault(partition, []).extend(ids)
    newest = {partition: max(ids, key=stream_place) for partition, ids in leaving.items() if ids}
    if newest:
        partitions = sorted(newest)
        connection.execute(statements.MARK, (partitions, [newest[one].decode() for one in partitions]))


def _stood(fault: QuarantineReason) -> str | None:
    """Return the state of a fault's account before the entry that stopped it, as JSON; None if unknown."""
    for place in places_before(fault.event):
        if place.account == fault.account and abs(place.balance or 0) <= INTEGER_MAX:
            return json.dumps(
                {"balance": place.balance, "cycle": _bounded(place.cycle), "at_ms": place.at_ms}
            )
    return None


def _bounded(number: int) -> int:
    return max(0, min(number, INTEGER_MAX))
