"""Accounts that contradict what is stored, as the writer stops them and lets them go on.

What stopped an account stays in the outbox until a person has said what it is worth.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from psycopg import Connection

from gateway.core.accounts.ledger import places_before
from gateway.core.accounts.outbox import FlushReport, stream_place
from gateway.core.model import INTEGER_MAX
from persistence.ledger import statements
from persistence.ledger.accounts import month_of, neighbours
from persistence.ledger.copying import Place
from persistence.ledger.guard import UNKNOWN, Fault, Placed, event_of

# By account: until when (Unix ms) what came in was accepted, and why.
Accepted = Mapping[str, tuple[float, str]]
ACCEPTABLE = ("conflict", UNKNOWN)


def stopped(connection: Connection[Any], partitions: Sequence[int]) -> set[str]:
    """The accounts of these partitions under quarantine."""
    return {account for (account,) in connection.execute(statements.STOPPED, (list(partitions),))}


def accepted(connection: Connection[Any], partitions: Sequence[int]) -> Accepted:
    """The accounts of these partitions whose contradictions somebody accepted."""
    rows = connection.execute(statements.ACCEPTED, (list(partitions),))
    return {account: (float(until_ms), reason) for account, until_ms, reason in rows}


def set_aside(faults: Iterable[Fault], accepted: Accepted) -> dict[Place, str]:
    """The entries among these faults that somebody accepted as contradictions, with the reason."""
    aside = {}
    for fault in faults:
        until_ms, why = accepted.get(fault.account, (0.0, ""))
        if fault.kind in ACCEPTABLE and stream_place(fault.entry_id)[0] <= until_ms:
            aside[fault.partition, fault.entry_id] = f"{fault.reason}; set aside: {why}"
    return aside


def file_breaks(connection: Connection[Any], fresh: Sequence[Placed], accepted: Accepted) -> None:
    """Where an account goes on after what was set aside from another balance, store that."""
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


def quarantine(connection: Connection[Any], faults: Iterable[Fault]) -> None:
    """Stop accounts until a person or the verifier releases them."""
    for fault in sorted(faults, key=lambda fault: fault.account):
        event = fault.event
        where = (fault.account, fault.partition, event.organization_id, event.tenant_id)
        seqs = (_bounded(event.epoch), fault.stored_seq, _bounded(fault.found_seq))
        why = (fault.kind, fault.behind, fault.entry_id.decode())
        connection.execute(statements.QUARANTINE, (*where, *why, *seqs, fault.reason, _stood(fault)))


def mark(connection: Connection[Any], report: FlushReport) -> None:
    """Note the newest entry of each partition that leaves the outbox once this is committed."""
    leaving = {partition: list(ids) for partition, ids in report.acknowledged.items()}
    for (partition, _), ids in report.parked.items():
        leaving.setdefault(partition, []).extend(ids)
    newest = {partition: max(ids, key=stream_place) for partition, ids in leaving.items() if ids}
    if newest:
        partitions = sorted(newest)
        connection.execute(statements.MARK, (partitions, [newest[one].decode() for one in partitions]))


def _stood(fault: Fault) -> str | None:
    """Where an account stood before the entry that stopped it, as JSON; None where that says nothing."""
    for place in places_before(fault.event):
        if place.account == fault.account and abs(place.balance or 0) <= INTEGER_MAX:
            return json.dumps(
                {"balance": place.balance, "cycle": _bounded(place.cycle), "at_ms": place.at_ms}
            )
    return None


def _bounded(number: int) -> int:
    return max(0, min(number, INTEGER_MAX))
