"""Which model the calls of a session go as, where steps of budgets have another one for them; in Redis, for an hour.

A session is a tenant's, by the model that its calls ask for. Its key names the model that its last call got. A
sorted set of the tenant's sessions, by when they are forgotten, bounds their number: further ones are not kept, so
each of their calls is judged by itself. Without the data of Redis all sessions are new. A worker reads a session again after `FRESH_S`, and
renews it that often, so it may live so much longer.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Final

import msgspec

from gateway.core.accounts.steps import SESSION_KEPT_S, SESSIONS_MAX, SessionModel
from gateway.core.billing.price_book import folded
from gateway.core.model import Caller
from gateway.core.wait import begin
from gateway.counters.redis import keys
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import encode
from gateway.errors import CountersUnavailable

FRESH_S: Final = 60.0
KNOWN_MAX: Final = 10_000  # sessions that a worker remembers
DIGEST_BYTES: Final = 16
_read = msgspec.json.Decoder(SessionModel).decode
_write = msgspec.json.Encoder().encode


class ModelSessions:
    """The sessions of all tenants, as a worker reads and keeps them; `unix_seconds` returns the time of day."""

    def __init__(
        self, wires: RedisConnections, unix_seconds: Callable[[], float], sessions_max: int = SESSIONS_MAX
    ) -> None:
        self._wires, self._unix_seconds, self._sessions_max = wires, unix_seconds, sessions_max
        # By key: what is known of a session, and since when. The first one known is forgotten first.
        self._known: dict[str, tuple[SessionModel | None, float]] = {}

    async def find(self, caller: Caller, session: str, model: str) -> SessionModel | None:
        """Return what calls of a session that ask for a model go as; None if it is new, or Redis is away."""
        name, now = _key(caller, session, model), self._unix_seconds()
        known = self._known.get(name)
        if known is not None and now - known[1] < FRESH_S:
            return known[0]
        try:
            reply = await self._wires.of(caller.partition).send(encode(b"GET", name.encode()))
        except CountersUnavailable:
            return None
        kept = _read(reply) if isinstance(reply, bytes) else None
        self._note(name, kept, 0.0)  # it is renewed with the next call
        return kept

    def knows(self, caller: Caller, session: str, model: str) -> bool:
        """Return whether this worker remembers a session."""
        return _key(caller, session, model) in self._known

    def keep(self, caller: Caller, session: str, model: str, goes_as: SessionModel) -> None:
        """Store what a call of a session that asked for a model went as, for an hour from now on."""
        name, now = _key(caller, session, model), self._unix_seconds()
        known = self._known.get(name)
        if known is not None and known[0] == goes_as and now - known[1] < FRESH_S:
            return
        self._note(name, goes_as, now)
        begin(self._keep(caller, name, goes_as, is_new=known is None or known[0] is None))

    async def _keep(self, caller: Caller, name: str, goes_as: SessionModel, *, is_new: bool) -> None:
        wire, now = self._wires.of(caller.partition), self._unix_seconds()
        listed = keys.model_sessions(caller.partition, caller.tenant_id).encode()
        member, kept_s = bytes.fromhex(name.rpartition(":")[2]), int(SESSION_KEPT_S + FRESH_S)
        try:
            if is_new:
                wire.send(encode(b"ZREMRANGEBYSCORE", listed, b"-inf", b"%d" % now))
                count = await wire.send(encode(b"ZCARD", listed))
                if isinstance(count, int) and count >= self._sessions_max:
                    self._known.pop(name, None)
                    return
            wire.send(encode(b"ZADD", listed, b"%d" % (now + kept_s), member))
            wire.send(encode(b"EXPIRE", listed, b"%d" % kept_s))
            await wire.send(encode(b"SET", name.encode(), _write(goes_as), b"EX", b"%d" % kept_s))
        except CountersUnavailable:
            self._known.pop(name, None)

    def _note(self, name: str, kept: SessionModel | None, now: float) -> None:
        self._known.pop(name, None)
        if len(self._known) >= KNOWN_MAX:
            del self._known[next(iter(self._known))]
        self._known[name] = kept, now


def _key(caller: Caller, session: str, model: str) -> str:
    named = b"\0".join(
        [session.encode("utf-8", "surrogatepass"), folded(model).encode("utf-8", "surrogatepass")]
    )
    digest = sha256(b"%d\0%b" % (caller.tenant_id, named)).digest()[:DIGEST_BYTES]
    return keys.model_session(caller.partition, digest.hex())
