"""The windows of budgets as they are now, for settlements that come late: nobody has those of their time."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from gateway.core.accounts.budgets import account_of, accounts_of, defined
from gateway.core.model import Settlement
from gateway.counters.admission.stored import decode_terms
from gateway.counters.keeper.client import Client
from gateway.counters.redis import keys
from gateway.counters.redis.calls import AnotherType
from gateway.errors import CountersUnavailable


async def windows(
    client: Client, late: Collection[Settlement]
) -> tuple[Mapping[str, bytes], Collection[int]]:
    """What the windows of budget accounts are now, by the part of their names before the colon; and the
    organizations of which nobody can read that.

    CountersUnavailable where one is not known, and may only not be there yet.
    """
    owners = {one.caller.organization_id for one in late if one.budgets}
    if not owners:
        return {}, ()
    now_ms, found, unread = await client.now_ms(), dict[str, bytes](), set[int]()
    for organization_id in owners:
        name = keys.organization_terms(organization_id)
        unread.add(organization_id)
        try:
            raw = await client.ask(b"GET", name.encode())
        except AnotherType as error:
            client.left_alone.note("account", name, str(error))
            continue
        with client.left_alone.reading("account", name):
            for alike in accounts_of(decode_terms(raw).budgets if isinstance(raw, bytes) else ()):
                found[account_of(organization_id, alike[0]).partition(":")[0]] = defined(alike, now_ms)
            unread.discard(organization_id)
    readable = [one for one in late if one.caller.organization_id not in unread]
    known = all(name.partition(":")[0] in found for one in readable for name in one.budgets)
    verified = keys.verified(client.wire.part.anchor).encode()
    if not known and await client.ask(b"GET", verified) != client.run_id:
        raise CountersUnavailable("which budgets there are is not known yet")
    return found, unread
