"""Expired holds and the late queue, as reclaimer and poster use them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import cast

from gateway.core.accounts.facts import corrected
from gateway.core.accounts.holds import Charged, Ending, ExpiredHold, LateSettlement, Verb
from gateway.core.billing.tiers import are_money
from gateway.core.model import Caller
from gateway.core.wait import Wait, in_task
from gateway.counters.keeper.client import APPLIED, UNVERIFIED, Client, each
from gateway.counters.keeper.one_question import are_any_there
from gateway.counters.late.budget_windows import windows
from gateway.counters.late.late_lane import LateLane
from gateway.counters.layouts import packing, states
from gateway.counters.layouts.frame import TOMBSTONE_MS
from gateway.counters.leases.lease import IF_OVER, NONE, lease
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.settlement_log.acknowledged import acknowledged
from gateway.counters.settlement_log.settlement_record import release_of
from gateway.errors import CountersRefused, CountersUnavailable, NewerLayout

CORRECTED = "settled after its hold was reclaimed"
# What a ledger's row does not tell of a call that is taken back: its units, and how many tokens there were
# where its plan weighs them.
RECLAIMED = b'{"estimated":true,"reclaimed":true,"units":%d}'
RECLAIMED_WEIGHED = b'{"estimated":true,"reclaimed":true,"units":%d,"tokens":%d}'
# Holds of a partition that one look goes through, and less than a page more, for those that can be read.
LOOK_MAX = 2_000
_FIRST = b"-inf"
# No name of ours is of other bytes than UTF-8: it is asked for as it is, found to be none, and removed.
STRANGE = "surrogateescape"


class Keeping:
    """What reclaiming and late posting ask and write, over the keeper's connection."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lane = LateLane(client)
        self._looked_under = b""
        self._begun: dict[int, tuple[bytes, bool]] = {}

    async def expired(self, count: int) -> Sequence[ExpiredHold]:
        """Up to `count` holds past their deadline by Redis' own clock of each partition.

        One that cannot be read is left where it is, and the others behind it are found all the same.
        """
        until = b"%d" % await self._client.now_ms()
        asked = list(self._client.partitions)
        begin = {one: self._begun.get(one, (_FIRST, False))[0] for one in asked}
        due: list[Reply] = [None] * len(asked)
        if await are_any_there(self._client, [keys.deadlines(one) for one in asked]):
            due = await self._client.ask_each(_due(one, begin[one], until, count) for one in asked)
        found: list[ExpiredHold] = []
        for partition, first in zip(asked, due, strict=True):
            found += await self._look_through(partition, first, until, count)
        return found

    async def _look_through(
        self, partition: int, first: Reply, until: bytes, count: int
    ) -> list[ExpiredHold]:
        """What can be read of one partition, by pages. Each begins with the deadline that ended the last one,
        without what that one had of it: what others remove meanwhile shifts nothing.
        """
        found, left, ties = list[ExpiredHold](), set[str](), frozenset[str]()
        page, asked, looked, behind = _deadlines(first), count, 0, _FIRST
        while page:
            names = [name for name, _ in page if name not in ties]
            read, unread = await self._read(partition, names)
            found, left, looked = found + read, left | unread, looked + len(names)
            if len(page) < asked or len(found) >= count:
                break
            last = page[-1][1]
            if looked >= LOOK_MAX:
                behind = last
                break
            ties = frozenset(name for name, deadline in page if deadline == last)
            asked = count + len(ties)
            page = _deadlines(await self._client.ask(*_due(partition, last, until, asked)))
        if self._is_whole(partition, behind):
            self._client.left_alone.keep("hold", left, f"{partition} ")
        return found

    def _is_whole(self, partition: int, behind: bytes) -> bool:
        """Whether that look began at the first; notes where the next one begins, if more is `behind`.

        Two looks in a row go through the same, since a hold is taken back that two found.
        """
        since, again = self._begun.pop(partition, (_FIRST, False))
        if since == behind == _FIRST:
            return True
        if not again:
            self._begun[partition] = since, True
        elif behind != _FIRST:  # more of one deadline than a look goes through is passed by
            self._begun[partition] = behind if behind != since else b"(" + behind, False
        return False

    async def _read(self, partition: int, names: Sequence[str]) -> tuple[list[ExpiredHold], set[str]]:
        """Holds that are there, and the names of those that cannot be read. Deadlines of none are removed."""
        found, unread, gone = list[ExpiredHold](), set[str](), list[bytes]()
        asked = (keys.hold(partition, one).encode(errors=STRANGE) for one in names)
        stored = await each([self._client.send(b"GET", one) for one in asked])
        for name, packed in zip(names, stored, strict=True):
            if isinstance(packed, CountersRefused):
                raise packed
            if not isinstance(packed, bytes):
                gone.append(name.encode(errors=STRANGE))
                continue
            unread.add(told := f"{partition} {name}")
            with self._client.left_alone.reading("hold", told):
                found.append(_expired(name, packed))
                unread.discard(told)
        if gone:
            await self._client.ask(b"ZREM", keys.deadlines(partition).encode(), *gone)
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
        except NewerLayout as error:
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

        False where an account is not known, the counters refuse this one alone, or nobody can read which
        budgets its organization has. CountersUnavailable
        where some could not be asked; the others are dealt with. So too behind a restart: entries that
        are there again may have been dealt with by another keeper, since the ledger was asked.
        """
        if self._client.run_id != self._looked_under:
            raise CountersUnavailable("Redis was restarted since these settlements were looked at")
        charges = [one for one in endings if one.verb is not Verb.DROP]
        defined, unread = await windows(self._client, [one.late.settlement for one in charges])
        charged = dict.fromkeys([one for one in charges if _waits(one, unread)], False)
        charges = [one for one in charges if one not in charged]
        waits = [self._charge(one, defined) for one in charges]
        gone = self._drop([one.late for one in endings if one.verb is Verb.DROP])
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


def _expired(request_id: str, packed: bytes) -> ExpiredHold:
    """A hold as it is stored."""
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


def _due(partition: int, since: bytes, until: bytes, count: int) -> tuple[bytes, ...]:
    """The command for so many deadlines that are over, in their order, from one on."""
    limits = b"BYSCORE", b"LIMIT", b"0", b"%d" % count, b"WITHSCORES"
    return b"ZRANGE", keys.deadlines(partition).encode(), since, until, *limits


def _waits(ending: Ending, unread: Collection[int]) -> bool:
    """Whether it counts in budgets that nobody can read."""
    late = ending.late.settlement
    return bool(late.budgets) and late.caller.organization_id in unread


def _deadlines(answer: Reply) -> list[tuple[str, bytes]]:
    """Names with their deadlines, as they are answered."""
    flat = cast("list[bytes]", answer) if isinstance(answer, list) else []
    return [
        (name.decode(errors=STRANGE), deadline) for name, deadline in zip(flat[::2], flat[1::2], strict=True)
    ]
