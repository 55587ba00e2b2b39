"""Entries of the outbox that are no continuation of what PostgreSQL has stored.

Data that is exchanged for older data under a running process is written to until that is noticed: its
accounts go on from where they stood once, over movements that were stored since. So does a server that was
cut off, or left, while another one went on: what waits there may be older than what was stored of that one.
So whatever waits in a stream that never had the newest entry stored is no continuation, or is stored already.
But for accounts that are stopped: what came before waits still, and what went on follows that.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from gateway.core.accounts.ledger import MalformedEvent, decode, places_before
from gateway.core.accounts.outbox import control_id


@dataclass(slots=True)
class Strays:
    """What waits of one partition whose stream never had entry `after`: `entries`, the `ids` by which they
    are remembered, and whose they are. Those of `stopped` accounts are none.
    """

    partition: int
    after: bytes
    stopped: Collection[str] = ()
    entries: list[bytes] = field(default_factory=list)
    ids: list[bytes] = field(default_factory=list)
    tenants: set[int] = field(default_factory=set)
    organizations: set[int] = field(default_factory=set)

    def add(self, entry_id: bytes, packed: bytes) -> None:
        """Take up an entry; one that nobody can read is nobody's."""
        try:
            event = decode(packed)
        except MalformedEvent:
            self.entries.append(entry_id)
            return
        accounts = [place.account for place in places_before(event)] or [f"tenant:{event.tenant_id}"]
        if all(account in self.stopped for account in accounts):
            return
        self.entries.append(entry_id)
        self.tenants.add(event.tenant_id)
        self.organizations.add(event.organization_id)
        if known := control_id(event):
            self.ids.append(known.encode())
