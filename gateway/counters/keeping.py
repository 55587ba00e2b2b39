"""Expired holds and the late lane, as reclaimer and poster use them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from math import inf
from typing import cast

import msgspec

from gateway.core.holds import Charge, Charged, ExpiredHold, LateSettlement, correction_id
from gateway.core.ledger import MalformedEvent, decode
from gateway.core.model import PARTITIONS, Caller, Settlement
from gateway.counters import keys, packing, states
from gateway.counters.acknowledged import of_argument, of_settle
from gateway.counters.control import APPLIED, Control
from gateway.counters.lease import IF_OVER, NONE, lease
from gateway.counters.quota import TOMBSTONE_MS
from gateway.counters.settlement_record import service_of
from gateway.errors import CountersUnavailable

WAITING_MAX = 1_000
CORRECTED = "settled after its hold was reclaimed"


class Keeping(Control):
    """The keeper's connection, with what reclaiming and late posting need besides."""

    async def expired(self, count: int) -> Sequence[ExpiredHold]:
        """Up to `count` holds past their deadline by Redis' own clock, over all partitions."""
        time = await self.ask(b"TIME")
        assert isinstance(time, list)
        seconds, micros = (int(cast("bytes", part)) for part in time)
        now_ms = seconds * 1000 + micros // 1000
        found: list[ExpiredHold] = []
        due = await self.ask_each(
            (
                *(b"ZRANGE", keys.deadlines(partition).encode(), b"-inf", b"%d" % now_ms),
                *(b"BYSCORE", b"LIMIT", b"0", b"%d" % count),
            )
            for partition in range(PARTITIONS)
        )
        for partition, names in enumerate(due):
            for name in names if isinstance(names, list) else ():
                hold = await self._hold(partition, cast("bytes", name).decode())
                if hold is not None:
                    found.append(hold)
        return found

    async def reclaim(self, hold: ExpiredHold, charge: Charge) -> bool:
        """Charge so much for a call, give the rest of its hold back, leave a tombstone.

        A lease is only given back, if nobody renewed it meanwhile.
        """
        if hold.lease:
            call = lease(self.run_id, hold.caller, hold.request_id, IF_OVER)
            return packing.code_of(cast("bytes", await self.run("lease", call))) == NONE
        settlement = Settlement(
            caller=hold.caller,
            request_id=hold.request_id,
            user=hold.user,
            service=hold.service,
            charge=True,
            tokens=charge.tokens,
            credits=charge.credits,
            units=charge.units,
            metadata=b'{"estimated":true,"reclaimed":true}',
        )
        return await self._settle(settlement, packing.MODE_RECLAIM)

    async def late(self, count: int) -> Sequence[LateSettlement]:
        """Late settlements before which nothing of their organization waits in the outbox.

        Of a request that was dealt with already, none before that is in PostgreSQL: then the
        ledger knows what to do with another one.
        """
        found: list[LateSettlement] = []
        lanes = await self.ask_each(
            (b"XRANGE", keys.late(partition).encode(), b"-", b"+", b"COUNT", b"%d" % count)
            for partition in range(PARTITIONS)
        )
        for partition, entries in enumerate(lanes):
            if not isinstance(entries, list) or not entries:
                continue
            lane = [_late(partition, _entry_id(one), cast("list[object]", one)[1]) for one in entries]
            moving = await self._moving(partition, lane)
            oldest, all_seen_until = await self._waiting(partition)
            for late in lane:
                entry_id = late.entry_id
                if _ms(entry_id) >= all_seen_until:
                    break
                if late.request_id in moving:
                    continue
                # Two streams number the entries of one millisecond each by itself.
                if oldest.get(late.caller.organization_id, all_seen_until) > _ms(entry_id):
                    moving.add(late.request_id)  # another entry of the same call waits for this one's row
                    found.append(late)
        return found

    async def _moving(self, partition: int, lane: Sequence[LateSettlement]) -> set[str]:
        """Requests that were posted or corrected, and are not in PostgreSQL yet."""
        requests = [one.request_id for one in lane]
        names = [name.encode() for one in requests for name in (one, correction_id(one))]
        known = await self.ask(b"HMGET", keys.control(partition).encode(), *names)
        assert isinstance(known, list)
        return {one for one, *ids in zip(requests, known[::2], known[1::2], strict=True) if any(ids)}

    async def _waiting(self, partition: int) -> tuple[dict[int, float], float]:
        """Each organization's oldest entry in the outbox (ms), and the ms before which all were seen."""
        entries = await self.ask(
            b"XRANGE", keys.outbox(partition).encode(), b"-", b"+", b"COUNT", b"%d" % WAITING_MAX
        )
        oldest: dict[int, float] = {}
        if not isinstance(entries, list):
            return oldest, inf
        for entry in entries:
            with suppress(MalformedEvent):  # dead, and in nobody's way
                event = decode(cast("list[list[bytes]]", entry)[1][1])
                oldest.setdefault(event.organization_id, _ms(_entry_id(entry)))
        return oldest, _ms(_entry_id(entries[-1])) if len(entries) == WAITING_MAX else inf

    async def post(self, late: LateSettlement) -> bool:
        """Charge one without a hold, once by its entry; False where its account is not known."""
        used = Charged(tokens=late.tokens, credits=late.credits, units=late.units)
        return await self._settle(_settlement(late, used, late.metadata), packing.MODE_POST, late.entry_id)

    async def correct(self, late: LateSettlement, more: Charged) -> bool:
        """Move what was really used beyond what a reclaim charged; tokens and units may be less.

        Once by the entry; False where its account is not known.
        """
        own = msgspec.json.decode(late.metadata) if late.metadata else {}
        metadata = {**own, "corrects": late.request_id, "reason": CORRECTED}
        settlement = _settlement(late, more, msgspec.json.encode(metadata))
        return await self._settle(settlement, packing.MODE_CORRECT, late.entry_id)

    async def drop(self, late: LateSettlement) -> None:
        """Remove one that is dealt with."""
        await self.ask(b"XDEL", keys.late(late.partition).encode(), late.entry_id)

    async def _settle(self, settlement: Settlement, mode: int, late: bytes | None = None) -> bool:
        call = packing.settle(self.run_id, TOMBSTONE_MS, settlement, mode, late)
        answer = cast("bytes", await self.run("settle", call))
        code = packing.code_of(answer)
        if code == 0:
            raise CountersUnavailable
        if mode != packing.MODE_RECLAIM:  # what is reclaimed is known to nobody else: a loss of it is one
            caller = settlement.caller
            self.moved += of_settle(caller.partition, caller.tenant_id, caller.organization_id, answer)
        return code == APPLIED

    async def _hold(self, partition: int, request_id: str) -> ExpiredHold | None:
        packed = await self.ask(b"GET", keys.hold(partition, request_id).encode())
        if not isinstance(packed, bytes):
            await self.ask(b"ZREM", keys.deadlines(partition).encode(), request_id.encode())
            return None
        state, user, tiers = states.unpack_hold(packed)
        caller = Caller(state.organization_id, state.tenant_id, state.key_id, partition)
        service = service_of(state.service_id, state.flags, tiers)
        # What tokens set the price of costs what was seen; any other price is known beforehand.
        held = 0 if state.flags & states.HOLD_USES else state.credits
        credits_ = held if state.seen < 0 else state.seen
        return ExpiredHold(
            request_id,
            caller,
            user,
            service,
            state.observed,
            credits_,
            state.units,
            state.created,
            state.tokens,
            bool(state.flags & states.HOLD_LEASE),
            held,
        )


def _settlement(late: LateSettlement, used: Charged, metadata: bytes) -> Settlement:
    """Charge a late call with this much."""
    return Settlement(
        caller=late.caller,
        request_id=late.request_id,
        user=late.user,
        service=late.service,
        charge=True,
        tokens=used.tokens,
        credits=used.credits,
        units=used.units,
        attribution=late.attribution,
        metadata=metadata,
    )


def _entry_id(entry: object) -> bytes:
    return cast("bytes", cast("list[object]", entry)[0])


def _ms(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[0])


def _late(partition: int, entry_id: bytes, raw: object) -> LateSettlement:
    flat = cast("list[bytes]", raw)
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    (
        _, _, tokens, credits_, units, service_id, tenant_id, organization_id, key_id, flags, _, request,
    ) = packing.SETTLE.unpack(fields[b"a"])  # fmt: skip
    return LateSettlement(
        partition=partition,
        entry_id=entry_id,
        request_id=request.decode(),
        caller=Caller(int(organization_id), int(tenant_id), int(key_id), partition),
        user=fields[b"u"].decode(),
        service=service_of(int(service_id), flags, fields.get(b"t", b"")),
        tokens=int(tokens),
        credits=int(credits_),
        units=int(units),
        attribution=fields[b"c"].decode(),
        metadata=fields[b"m"],
        charged=int(fields[b"charged"]),
        acknowledged=of_argument(
            partition, int(tenant_id), int(organization_id), fields.get(b"acknowledged", b"")
        ),
    )
