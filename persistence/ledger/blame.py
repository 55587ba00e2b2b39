"""What to do with entries PostgreSQL refuses, so that the rest of their batch can be stored.

A row that is there already stops its account. Unreadable metadata is set aside and the charge
stands: nobody escapes a bill by what he writes into a header. Anything else becomes a dead
letter, raw, and a listed gap of its own account.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import psycopg
from psycopg import errors

from gateway.core.accounts.ledger import moved
from gateway.core.accounts.outbox import Batch
from persistence.complaint import complaint
from persistence.ledger.copying import Copies, Place
from persistence.ledger.guard import Fault, Placed, event_of, storable

SET_ASIDE = b'{"unreadable":true}'


@dataclass(slots=True)
class Refused:
    """What one batch's attempts have learned: reasons by place, and accounts to stop.

    `aside` are those of `poison` that contradict what is stored, accepted by a person.
    """

    poison: dict[Place, str] = field(default_factory=dict)
    aside: set[Place] = field(default_factory=set)
    unreadable: dict[Place, str] = field(default_factory=dict)
    stops: dict[str, Fault] = field(default_factory=dict)

    def learn(self, error: psycopg.Error, batch: Batch, copies: Copies) -> bool:
        """Take an error of PostgreSQL into account; False if no entry can be blamed for it."""
        before = self._size()
        reason = complaint(error)
        named = copies.refused(error)
        if named is not None and isinstance(error, errors.UniqueViolation):
            fault = _clash(*named, reason)
            self.stops[fault.account] = fault
        elif named is not None and "column metadata" in (error.diag.context or ""):
            self._set_aside(batch, named[0], reason)
        else:
            self._condemn(batch, named[0] if named else None, reason)
        return self._size() > before

    def _set_aside(self, batch: Batch, named: Placed, reason: str) -> None:
        """Replace unreadable metadata, of the named entry and of all others at once."""
        place = _place(named)
        for partition, entries in batch.items():
            for entry_id, _, event in entries:
                here = (partition, entry_id)
                if event is None or not event.metadata or here in self.unreadable:
                    continue
                if here == place or not _readable(event.metadata):
                    event.metadata = SET_ASIDE
                    self.unreadable[here] = reason

    def _condemn(self, batch: Batch, named: Placed | None, reason: str) -> None:
        if named is not None:
            self.poison.setdefault(_place(named), reason)
        for partition, entries in batch.items():
            for entry_id, _, event in entries:
                if event is not None and not storable(event):
                    self.poison.setdefault((partition, entry_id), reason)

    def _size(self) -> int:
        return len(self.poison) + len(self.unreadable) + len(self.stops)


def _place(placed: Placed) -> Place:
    return placed[0], placed[1][0]


def _readable(metadata: bytes) -> bool:
    """Whether PostgreSQL will most likely take it as JSON; what it still refuses is named one by one."""
    try:
        json.dumps(json.loads(metadata), ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return b"\\u0000" not in metadata


def _clash(placed: Placed, part: int, reason: str) -> Fault:
    partition, (entry_id, _, _) = placed
    event = event_of(placed)
    one = moved(event)[part]
    return Fault("conflict", one.account, partition, entry_id, event, one.seq - 1, one.seq, reason)
