"""The windows of budgets as they are now, for settlements that come late: nobody has those of their time."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from gateway.core.accounts.budgets import account_of, accounts_of, defined
from gateway.core.model import Settlement
from gateway.counters.admission.stored import decode_terms
from gateway.counters.keeper.client import Client
from gateway.counters.redis import keys
from gateway.errors import CountersUnavailable


async def windows(client: Client, late: Collection[Settlement]) -> Mapping[str, bytes]:
    """What the windows of budget accounts are now, by the part of their names before the colon.

    CountersUnavailable where one is not known, and may only not be there yet.
    """
    owners = {one.caller.organization_id for one in late if one.budgets}
    if not owners:
        return {}
    now_ms, found = await client.now_ms(), dict[str, bytes]()
    for organization_id in owners:
        raw = await client.ask(b"GET", keys.organization_terms(organization_id).encode())
        for alike in accounts_of(decode_terms(raw).budgets if isinstance(raw, bytes) else ()):
            found[account_of(organization_id, alike[0]).partition(":")[0]] = defined(alike, now_ms)
    known = all(name.partition(":")[0] in found for one in late for name in one.budgets)
    verified = keys.verified(client.wire.part.anchor).encode()
    if not known and await client.ask(b"GET", verified) != client.run_id:
        raise CountersUnavailable("which budgets there are is not known yet")
    return found
