"""Bringing what was written into the counters, as far as they answer at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from gateway.admin.ports import INLINE_PUSHES_MAX, AdminPorts
from gateway.core.accounts.administration import Intent
from gateway.errors import Conflict, StoreUnavailable

_log = logging.getLogger("tollkeeper.admin")
# Pushes under way; the loop itself holds tasks only weakly.
_pushing: set[asyncio.Task[Sequence[str]]] = set()


async def push(ports: AdminPorts, intents: Sequence[Intent]) -> bool:
    """Push control writes; False if something of them is applied later.

    A push that takes too long goes on by itself: nobody waits for it, or for its end. `Conflict` says what
    the counters refused.
    """
    accounts = list(dict.fromkeys(intent.account for intent in intents))
    pushing = asyncio.create_task(_push(ports, accounts[:INLINE_PUSHES_MAX]))
    _pushing.add(pushing)
    pushing.add_done_callback(_pushed)
    done, _ = await asyncio.wait({pushing}, timeout=ports.push_timeout_s)
    error = pushing.exception() if done else None
    if not done or error is not None:
        # The intent is committed: whatever fails here is done later.
        _log.warning("control writes wait", exc_info=error, extra={"accounts": accounts[:8]})
        return False
    if accounts:
        try:
            refusal = await ports.store.refusal([intent.id for intent in intents])
        except StoreUnavailable:  # what became of it nobody can say now; it is committed
            return False
        if refusal is not None:
            raise Conflict(refusal)
    return not pushing.result() and len(accounts) <= INLINE_PUSHES_MAX


async def _push(ports: AdminPorts, accounts: Sequence[str]) -> Sequence[str]:
    return await ports.pusher.push(accounts)


def _pushed(pushing: asyncio.Task[Sequence[str]]) -> None:
    _pushing.discard(pushing)
    if not pushing.cancelled():
        pushing.exception()  # said where it was waited for, else by the pusher's own next round
