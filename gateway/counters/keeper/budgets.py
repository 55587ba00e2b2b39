"""Accounts of budgets as the keeper compares them and writes them again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from gateway.core.accounts.budgets import DEFINED_WINDOW, FLAG_MONEY, FLAG_TOKENS
from gateway.core.integrity.budget_accounts import BudgetAccountUse, Live
from gateway.core.model import INTEGER_MAX
from gateway.core.moments import DAY_MS
from gateway.counters.keeper.client import entries_behind, entry_of
from gateway.counters.keeper.control import Control
from gateway.counters.layouts import states
from gateway.counters.layouts.budgets import live_windows
from gateway.counters.layouts.windows import WindowState, pack_windows
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply

READ_ENTRIES = 1_000
# Waiting entries of one partition that are looked at.
WAITING_MAX = 100_000
# An account of somebody is kept so long behind its last window, or its rebuild where that never ends.
KEPT_MS, KEPT_ENDLESS_MS = DAY_MS, 31 * DAY_MS

# By account and budget: money, tokens and requests that calls in flight hold.
Held = Mapping[tuple[str, int], Sequence[int]]


class BudgetAccounts(Control):
    """Looks at accounts of budgets and what waits for them, and writes them."""

    async def live_budgets(self, partition: int, names: Sequence[str]) -> tuple[Live, frozenset[str]]:
        """Accounts as they are stored, by name and budget; and the names of those of another version."""
        keys_of = [keys.budget_account(partition, name) for name in names]
        return self._live(partition, names, await self.states(keys_of))

    async def somebodys_budgets(self, partition: int, name: str) -> list[str]:
        """The accounts for each that are like one."""
        prefix = name.partition(":")[0]
        return [f"{prefix}:{one}" for one in await self.members(keys.each_accounts(partition, name))]

    async def waiting(self, partition: int, mark: bytes, most: int = WAITING_MAX) -> list[bytes] | None:
        """Entries of a partition behind the newest stored one; None where more are than are looked at."""
        return await self._entries([(keys.outbox(partition), mark)], most)

    async def waiting_apart(self, partition: int, organizations: Iterable[int]) -> list[bytes] | None:
        """Entries of these that are set aside, likewise."""
        streams = [(keys.parked_entries(partition, one), b"") for one in organizations]
        return await self._entries(streams, WAITING_MAX)

    async def _entries(self, streams: Iterable[tuple[str, bytes]], most: int) -> list[bytes] | None:
        found: list[bytes] = []
        for stream, after in streams:
            page = [(after, b"")]
            while page:
                page = entries_in(await self.ask(*entries_behind(stream, page[-1][0], READ_ENTRIES)))
                found += (packed for _, packed in page)
                if len(found) > most:
                    return None
        return found

    async def look(
        self, partition: int, mark: bytes, names: Sequence[str]
    ) -> tuple[Live, list[bytes]] | None:
        """Accounts, and the entries behind `mark`, at one moment; None where it was not one, or has more."""
        stream = keys.outbox(partition)
        behind = entries_behind(stream, mark, READ_ENTRIES)
        wanted = [keys.budget_account(partition, name).encode() for name in names]
        first, raw, last = await self.ask_each((behind, (b"MGET", *wanted), behind))
        entries, again = entries_in(first), entries_in(last)
        states_ = [one if isinstance(one, bytes) else None for one in raw] if isinstance(raw, list) else []
        whole = len(entries) < READ_ENTRIES and [one for one, _ in entries] == [one for one, _ in again]
        live, others = self._live(partition, names, states_)
        return (live, [packed for _, packed in entries]) if whole and not others else None

    async def restore_budgets(
        self, partition: int, marker: bytes, accounts: Iterable[BudgetAccountUse], now_ms: int
    ) -> bool:
        """Write accounts as they have to be, with what the holds that are there hold; False where the marker
        moved on.
        """
        held, calls = await self._held_of_budgets(partition)
        for account in accounts:
            defined = DEFINED_WINDOW.struct.iter_unpack(account.defined)
            windows = [
                replace(WindowState(*map(int, fields)), used=used, held=_held(held, account.name, fields))
                for fields, used in zip(defined, account.used, strict=True)
            ]
            name = keys.budget_account(partition, account.name)
            expires = _expiry(windows, now_ms) if ":" in account.name else 0
            packed = pack_windows(windows, expires, calls[account.name] if expires else 0)
            if not await self.rebuild(partition, name, packed, marker):
                return False
            if expires:
                value = account.name.partition(":")[2].encode()
                await self.ask(
                    b"ZADD", keys.each_accounts(partition, account.name).encode(), b"%d" % expires, value
                )
        return True

    def _live(
        self, partition: int, names: Sequence[str], raw: Sequence[bytes | None]
    ) -> tuple[Live, frozenset[str]]:
        found, others = {}, set(names)
        for name, packed in zip(names, raw, strict=True):
            with self.left_alone.reading("account", keys.budget_account(partition, name)):
                if packed:
                    found[name] = live_windows(packed)
                others.discard(name)
        return found, frozenset(others)

    async def _held_of_budgets(self, partition: int) -> tuple[Held, Counter[str]]:
        ids = await self.members(keys.deadlines(partition))
        found: dict[tuple[str, int], list[int]] = {}
        calls = Counter[str]()
        stored = await self.states([keys.hold(partition, one) for one in ids])
        for request_id, packed in zip(ids, stored, strict=True):
            taken: list[tuple[str, tuple[int, ...]]] = []
            with self.left_alone.reading("hold", f"{partition} {request_id}"):
                if packed is None:
                    continue
                hold, _, _ = states.unpack_hold(packed)
                if hold.flags & states.HOLD_RECLAIMED:
                    continue
                taken = states.held_budgets(packed)
            for name, budgets in taken:
                calls[name] += 1
                for budget in budgets:
                    sums = found.setdefault((name, budget), [0, 0, 0])
                    for at, more in enumerate((hold.money, hold.raw_tokens, 1)):
                        sums[at] += more
        return found, calls


def entries_in(answer: Reply) -> list[tuple[bytes, bytes]]:
    """What XRANGE answers."""
    return list(map(entry_of, answer)) if isinstance(answer, list) else []


def _held(held: Held, name: str, fields: Sequence[float]) -> int:
    """What calls in flight hold of a window, in its unit."""
    money, tokens, requests = held.get((name, int(fields[0])), (0, 0, 0))
    flags = int(fields[-1])
    amount = money if flags & FLAG_MONEY else tokens if flags & FLAG_TOKENS else requests
    return min(amount, INTEGER_MAX)


def _expiry(windows: Collection[WindowState], now_ms: int) -> int:
    if all(one.next for one in windows):
        return max(one.next for one in windows) + KEPT_MS
    return now_ms + KEPT_ENDLESS_MS
