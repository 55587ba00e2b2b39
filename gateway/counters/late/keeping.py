"""Expired holds and the late queue, as reclaimer and poster use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from gateway.core.accounts.facts import corrected
from gateway.core.accounts.holds import Charged, Ending, ExpiredHold, LateSettlement, Verb
from gateway.core.billing.tiers import are_money
from gateway.core.model import Caller
from gateway.core.wait import Wait, in_task
from gateway.counters.keeper.client import APPLIED, UNVERIFIED, Client, says_newer
from gateway.counters.late.budget_windows import windows
from gateway.counters.late.late_lane import LateLane
from gateway.counters.layouts import packing, states
from gateway.counters.layouts.frame import TOMBSTONE_MS
from gateway.counters.leases.lease import IF_OVER, NONE, lease
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.settlement_log.acknowledged import acknowledged
from gateway.counters.settlement_log.settlement_record import release_of
from gateway.errors import CountersRefused, CountersUnavailable

CORRECTED = "settled after its hold was reclaimed"
# What a ledger's row does not tell of a call that is taken back: its units, and how many tokens there were
# where its plan weighs them.
RECLAIMED = b'{"estimated":true,"reclaimed":true,"units":%d}'
RECLAIMED_WEIGHED = b'{"estimated":true,"reclaimed":true,"units":%d,"tokens":%d}'
# Holds of a partition that are looked through for those that can be read.
LOOK_MAX = 100_000


class Keeping:
    """What reclaiming and late posting ask and write, over the keeper's connection."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lane = LateLane(client)
        self._looked_under = b""

    async def expired(self, count: int) -> Sequence[ExpiredHold]:
        """Up to `count` holds past their deadline by Redis' own clock of each partition.

        One that cannot be read is left where it is, and the others behind it are found all the same.
        """
        now_ms = await self._client.now_ms()
        due = await self._client.ask_all(b"ZRANGE", keys.deadlines, *_due(now_ms, 0, count))
        found: list[ExpiredHold] = []
        for partition, first in due.items():
            page, looked, left = first, 0, set[str]()
            while isinstance(page, list):
                names = [cast("bytes", one).decode() for one in page]
                read, unread = await self._read(partition, names)
                found, left, looked = found + read, left | unread, looked + len(names)
                if not unread or len(names) < count or looked >= LOOK_MAX:
                    break
                next_page = b"ZRANGE", keys.deadlines(partition).encode(), *_due(now_ms, looked, count)
                page = await self._client.ask(*next_page)
            self._client.left_alone.keep("hold", left, f"{partition} ")
        return found

    async def _read(self, partition: int, names: Sequence[str]) -> tuple[list[ExpiredHold], set[str]]:
        """Holds that are there, and the names of those that cannot be read."""
        found: list[ExpiredHold] = []
        unread = set[str]()
        for name in names:
            told, read = f"{partition} {name}", False
            with self._client.left_alone.reading("hold", told):
                hold = await self._hold(partition, name)
                found += [hold] if hold is not None else []
                read = True
            unread |= set() if read else {told}
        return found, unread

    async def reclaim(self, hold: ExpiredHold, charge: Charged) -> bool:
        """Charge so much for a call, give the rest of its hold back, leave a tombstone.

        A lease is only given back, if nobody renewed it meanwhile.
        """
        if hold.lease:
            call = lease(self._client.run_id, hold.release.caller, hold.release.request_id, IF_OVER)
            return packing.code_of(await self._client.run("lease", call)) == NONE
        units = hold.said_units if charge.requests else 0
        said = RECLAIMED % units if charge.weighed is None else RECLAIMED_WEIGHED % (units, charge.tokens)
        settlement = replace(
            hold.release, charge=True, metadata=said,
            tokens=charge.tokens, credits=charge.credits, units=charge.units, weighed=charge.weighed,
            money=charge.money, raw_tokens=charge.raw_tokens,
        )  # fmt: skip
        call = packing.settle(
            self._client.run_id, TOMBSTONE_MS, settlement, packing.MODE_RECLAIM, requests=charge.requests
        )
        try:
            code = packing.code_of(await self._client.run("settle", call))
        except CountersRefused as error:
            if not says_newer(error):
                raise
            name = f"{hold.release.caller.partition} {hold.release.request_id}"
            self._client.left_alone.note("hold", name, error.message)
            return False
        if code == UNVERIFIED:
            raise CountersUnavailable
        return code == APPLIED  # known to nobody else: a loss of it is one

    async def late(self, count: int) -> Sequence[LateSettlement]:
        """Late settlements that can be decided: what came before them is on its way no more."""
        self._looked_under = self._client.run_id
        return await self._lane.decidable(count)

    async def end(self, endings: Sequence[Ending]) -> list[bool]:
        """Deal with late settlements in one write, each once by its entry; which were dealt with.

        False where an account is not known, or the counters refuse this one alone. CountersUnavailable
        where some could not be asked; the others are dealt with. So too behind a restart: entries that
        are there again may have been dealt with by another keeper, since the ledger was asked.
        """
        if self._client.run_id != self._looked_under:
            raise CountersUnavailable("Redis was restarted since these settlements were looked at")
        charges = [one for one in endings if one.verb is not Verb.DROP]
        defined = await windows(self._client, [one.late.settlement for one in charges])
        waits = [self._charge(one, defined) for one in charges]
        gone = self._drop([one.late for one in endings if one.verb is Verb.DROP])
        charged: dict[Ending, bool] = {}
        unavailable = None
        for one, wait in zip(charges, waits, strict=True):
            try:
                charged[one] = self._applied(one.late.settlement.caller, cast("bytes", await in_task(wait)))
            except CountersRefused:
                charged[one] = False
            except CountersUnavailable as error:
                unavailable = error
        for removed in gone:
            await in_task(removed)
        if unavailable is not None:
            raise unavailable
        return [charged.get(one, True) for one in endings]

    def _charge(self, ending: Ending, definitions: Mapping[str, bytes]) -> Wait[Reply]:
        """Send a post, which needs no hold, or what was used beyond what a reclaim charged.

        Budgets that are no more are left out.
        """
        late, used, mode = ending.late.settlement, ending.used, packing.MODE_POST
        if ending.verb is Verb.CORRECT:
            said = corrected(late.metadata, late.request_id, CORRECTED)
            late, mode = replace(late, metadata=said), packing.MODE_CORRECT
        charge = replace(
            late, tokens=used.tokens, credits=used.credits, units=used.units,
            over=used.over, weighed=used.weighed, money=used.money, raw_tokens=used.raw_tokens,
            budgets=tuple(one for one in late.budgets if one.partition(":")[0] in definitions),
        )  # fmt: skip
        call = packing.settle(
            self._client.run_id, TOMBSTONE_MS, charge, mode, ending.late.entry_id, requests=used.requests,
            definitions=tuple(definitions[one.partition(":")[0]] for one in charge.budgets),
        )  # fmt: skip
        return self._client.send_script("settle", call)

    def _drop(self, late: Sequence[LateSettlement]) -> list[Wait[Reply]]:
        """Send the removal of entries that are charged already: one command a queue."""
        by_lane: dict[int, list[bytes]] = {}
        for one in late:
            by_lane.setdefault(one.settlement.caller.partition, []).append(one.entry_id)
        return [
            self._client.send(b"XDEL", keys.late(partition).encode(), *ids)
            for partition, ids in by_lane.items()
        ]

    def _applied(self, caller: Caller, answer: bytes) -> bool:
        """Whether a charge of a late call was applied; then it is evidence, should Redis forget it."""
        code = packing.code_of(answer)
        if code == UNVERIFIED:
            raise CountersUnavailable
        self._client.moved += acknowledged(caller, answer)
        return code == APPLIED

    async def _hold(self, partition: int, request_id: str) -> ExpiredHold | None:
        packed = await self._client.ask(b"GET", keys.hold(partition, request_id).encode())
        if not isinstance(packed, bytes):
            await self._client.ask(b"ZREM", keys.deadlines(partition).encode(), request_id.encode())
            return None
        state, _, tiers = states.unpack_hold(packed)
        # What tokens set the price of costs what was seen; any other price is known beforehand.
        uses, held, units = state.flags & states.HOLD_USES, state.credits, state.units
        if uses:
            held, credits_, units = 0, 0, units if state.seen < 0 else state.seen
        else:
            credits_ = held if state.seen < 0 else state.seen
        lease = bool(state.flags & states.HOLD_LEASE)
        release = release_of(request_id, packed)
        return ExpiredHold(
            release, state.observed, credits_, units, state.tokens, lease, held,
            state.weighed if state.weighed >= 0 else None,
            max(state.key_tpm, state.user_tpm, state.tenant_tpm, state.organization_tpm), state.units,
            state.money, state.raw_tokens, state.money_seen, 1 if are_money(tiers) else state.units,
        )  # fmt: skip


def _due(now_ms: int, start: int, count: int) -> tuple[bytes, ...]:
    """What ZRANGE is asked with for deadlines that are over, so many from a place on."""
    return b"-inf", b"%d" % now_ms, b"BYSCORE", b"LIMIT", b"%d" % start, b"%d" % count
