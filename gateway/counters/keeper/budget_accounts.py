"""Compares and rewrites accounts of budgets for the keeper."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from gateway.core.accounts.budgets import FLAG_MONEY, FLAG_TOKENS, ends_of
from gateway.core.accounts.definitions import OrganizationTerms
from gateway.core.accounts.outbox import ANYBODYS, read_owner
from gateway.core.accounts.runs import TTL_S_MAX, Run, account_of, packed_run
from gateway.core.integrity.reconciliation import BudgetAccountUse, Live
from gateway.core.model import INTEGER_MAX
from gateway.core.text import batched
from gateway.core.times import DAY_MS
from gateway.counters.admission.stored import decode_terms
from gateway.counters.keeper.client import APPLIED, TOGETHER_MAX, entries_behind, entries_in
from gateway.counters.keeper.control_writes import ControlClient
from gateway.counters.keeper.rebuild import load_call
from gateway.counters.layouts import packing, states
from gateway.counters.layouts.packing import RUN_KEPT_MS, live_windows
from gateway.counters.redis import keys

READ_ENTRIES = 1_000
# The most waiting entries of one partition that are read.
WAITING_MAX = 100_000
# Accounts written by one script call, which blocks Redis for some milliseconds.
RESTORED_MAX = 500
# How long the account of one owner is stored after its last window.
KEPT_MS = DAY_MS

# By account and budget: the money, tokens and requests held by calls in flight.
Held = Mapping[tuple[str, int], Sequence[int]]
BudgetHolds = tuple[Held, Counter[str]]


class BudgetAccounts(ControlClient):
    """Reads accounts of budgets and their waiting entries, and rewrites accounts."""

    async def live_budgets(self, partition: int, names: Sequence[str]) -> tuple[Live, frozenset[str]]:
        """Return stored budget accounts by name and budget, and the names of those of another version."""
        keys_of = [keys.budget_account(partition, name) for name in names]
        return self._live(partition, names, await self.states(keys_of))

    async def terms_of(self, organization_id: int) -> OrganizationTerms:
        """Return the stored terms of an organization; none of them if they are missing or unreadable."""
        name, terms = keys.organization_terms(organization_id), OrganizationTerms()
        raw = await self.ask(b"GET", name.encode())
        if isinstance(raw, bytes):
            with self.left_alone.reading("account", name):
                terms = decode_terms(raw)
        return terms

    async def somebodys_budgets(self, partition: int, name: str) -> list[str]:
        """Return the names of all accounts that have the same budgets as `name`, one for each owner."""
        prefix = name.partition(":")[0]
        return [f"{prefix}:{member}" for member in await self.members(keys.each_accounts(partition, name))]

    async def waiting(self, partition: int, mark: bytes, most: int = WAITING_MAX) -> list[bytes] | None:
        """Return a partition's outbox entries after the id `mark`; None if there are more than `most`."""
        return await self._entries([(keys.outbox(partition), mark)], most)

    async def ids_waiting(self, partition: int, organization_id: int) -> set[bytes]:
        """Return the ids of outbox entries that are, or may be, of an organization."""
        ids, page, owners = set[bytes](), [(b"", b"")], {organization_id, ANYBODYS, 0}
        while page and len(ids) < WAITING_MAX:
            behind = entries_behind(keys.outbox(partition), page[-1][0], READ_ENTRIES)
            page = entries_in(await self.ask(*behind))
            ids |= {id_ for id_, packed in page if read_owner(packed) in owners}
        return ids

    async def unreadable_budgets(self, partition: int, names: Iterable[str]) -> dict[str, bytes]:
        """Return those budget accounts that this version cannot read, by name."""
        by_key = {keys.budget_account(partition, name): name for name in names}
        return {by_key[key]: raw for key, raw in (await self.unreadable_states(by_key)).items()}

    async def waiting_apart(self, partition: int, organizations: Iterable[int]) -> list[bytes] | None:
        """Return these organizations' parked (set aside) entries; None for more than `WAITING_MAX`."""
        streams = [(keys.parked_entries(partition, organization), b"") for organization in organizations]
        return await self._entries(streams, WAITING_MAX)

    async def _entries(self, streams: Iterable[tuple[str, bytes]], most: int) -> list[bytes] | None:
        entries: list[bytes] = []
        for stream, after in streams:
            page = [(after, b"")]
            while page:
                page = entries_in(await self.ask(*entries_behind(stream, page[-1][0], READ_ENTRIES)))
                entries += (packed for _, packed in page)
                if len(entries) > most:
                    return None
        return entries

    async def look(
        self, partition: int, mark: bytes, names: Sequence[str]
    ) -> tuple[Live, list[bytes]] | None:
        """Return budget accounts, and the outbox entries after the id `mark`, both as of one moment.

        None if entries came meanwhile, there are too many, or an account is of another version.
        """
        stream = keys.outbox(partition)
        behind = entries_behind(stream, mark, READ_ENTRIES)
        wanted = [keys.budget_account(partition, name).encode() for name in names]
        first, raw, last = await self.ask_each((behind, (b"MGET", *wanted), behind))
        entries, again = entries_in(first), entries_in(last)
        states_ = (
            [state if isinstance(state, bytes) else None for state in raw] if isinstance(raw, list) else []
        )
        whole = len(entries) < READ_ENTRIES and [name for name, _ in entries] == [name for name, _ in again]
        live, others = self._live(partition, names, states_)
        return (live, [packed for _, packed in entries]) if whole and not others else None

    async def restore_budgets(
        self,
        partition: int,
        marker: bytes,
        accounts: Iterable[BudgetAccountUse],
        now_ms: int,
        holds: BudgetHolds,
        *,
        before: Mapping[str, bytes] | None = None,
    ) -> bool:
        """Write accounts with their use and the amounts of existing holds; False if the marker changed.

        With `before`, the present states by name, each replaces only that state.
        """
        held, calls = holds
        for some in batched(accounts, RESTORED_MAX):
            written, members = list[tuple[str, bytes]](), defaultdict[str, list[bytes]](list)
            for account in some:
                somebody = account.name.partition(":")[2]
                expires = _expiry(account.defined, account.moved_ms or now_ms) if somebody else 0
                packed = _packed(account, held, now_ms, expires, calls[account.name] if somebody else 0)
                written.append((keys.budget_account(partition, account.name), packed))
                if somebody:
                    index = keys.each_accounts(partition, account.name)
                    members[index] += b"%d" % abs(expires), somebody.encode()
            # The index first: a keeper that dies after it writes the account again, which is then in the
            # index.
            await self.ask_together((b"ZADD", index.encode(), *its) for index, its in members.items())
            if before is not None:
                present = {keys.budget_account(partition, name): raw for name, raw in before.items()}
                await self.replace_states(partition, marker, present, written)
                continue
            call = load_call(self.run_id_of(partition), partition, written, marker)
            if packing.code_of(await self.run("load", call)) != APPLIED:
                return False
        return True

    async def replace_states(
        self, partition: int, marker: bytes, before: Mapping[str, bytes], written: Iterable[tuple[str, bytes]]
    ) -> list[str]:
        """Write states in place of those `before`, by key; return the keys that still had that state."""
        outbox, compares = keys.outbox(partition), packing.LOAD.pack(b"", packing.REBUILD, 0, 0, 0)
        # The script compares its first key with the last argument before it writes the second one.
        calls = {
            name: ((name, name, outbox), (compares, packing.as_written(name, packed, marker), before[name]))
            for name, packed in written
            if name in before
        }
        answers = await self.run_all("load", calls.values(), TOGETHER_MAX)
        return [
            name for name, answer in zip(calls, answers, strict=True) if packing.code_of(answer) == APPLIED
        ]

    async def keep_budgets(self, partition: int, names: Sequence[str]) -> list[str]:
        """Remove the expiry that an older version gave to accounts; return the names of missing ones."""
        named = [keys.budget_account(partition, name) for name in names]
        gone, ending = list[str](), list[tuple[bytes, bytes]]()
        for name, key, packed in zip(names, named, await self.states(named), strict=True):
            if packed is None:
                gone.append(name)
                continue
            with self.left_alone.reading("account", key):
                header = states.BUDGET.read(states.BUDGET.today(packed)[: states.BUDGET.size])
                if header["expires"] > 0:
                    ending.append((b"PERSIST", key.encode()))
        await self.ask_together(ending)
        return gone

    async def take_up_budgets(
        self, partition: int, accounts: Iterable[BudgetAccountUse], now_ms: int
    ) -> None:
        """Write missing accounts with their stored use, unless a call creates them meanwhile."""
        commands, marker = list[tuple[bytes, ...]](), await self.marker(partition)
        for account in accounts:
            expires, value = _expiry(account.defined, account.moved_ms), account.name.partition(":")[2]
            index = keys.each_accounts(partition, account.name)
            name = keys.budget_account(partition, account.name)
            packed = packing.as_written(name, _packed(account, {}, now_ms, expires, 0), marker)
            commands += (
                (b"ZADD", index.encode(), b"NX", b"%d" % abs(expires), value.encode()),
                (b"SET", name.encode(), packed, b"NX"),
            )
        await self.ask_together(commands)

    async def restore_runs(self, partition: int, runs: Sequence[Run]) -> None:
        """Restore missing runs, and overwrite those that have ended."""
        for run in runs:
            name, until = run.account.name, b"%d" % (run.expires_ms + RUN_KEPT_MS)
            again = () if run.ended_ms else (b"NX",)
            key, index = keys.run(partition, name).encode(), keys.runs(partition, run.tenant_id).encode()
            await self.ask(b"SET", key, packed_run(run), b"PXAT", until, *again)
            await self.ask(b"ZADD", index, until, name.partition(":")[2].encode())
            if run.parent_id:
                above = account_of(run.organization_id, run.tenant_id, run.parent_id)
                children = keys.children(partition, above).encode()
                await self.ask(b"ZADD", children, until, run.id.encode())
                await self.ask(b"EXPIRE", children, b"%d" % (TTL_S_MAX + RUN_KEPT_MS // 1000))

    def _live(
        self, partition: int, names: Sequence[str], raw: Sequence[bytes | None]
    ) -> tuple[Live, frozenset[str]]:
        live, others = {}, set(names)
        for name, packed in zip(names, raw, strict=True):
            with self.left_alone.reading("account", keys.budget_account(partition, name)):
                if packed:
                    live[name] = live_windows(packed)
                others.discard(name)
        return live, frozenset(others)

    async def held_of_budgets(self, partition: int) -> BudgetHolds:
        """Return the amounts that holds have reserved on each account, and the number of calls of each."""
        ids = await self.members(keys.deadlines(partition))
        held: dict[tuple[str, int], list[int]] = {}
        calls = Counter[str]()
        stored = await self.states([keys.hold(partition, id_) for id_ in ids])
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
                    sums = held.setdefault((name, budget), [0, 0, 0])
                    for at, more in enumerate((hold.money, hold.budget_tokens, 1)):
                        sums[at] += more
        return held, calls


def _held(held: Held, name: str, window: states.WindowState) -> int:
    """Return the amount that calls in flight hold on a window of the account `name`, in the window's unit."""
    money, tokens, requests = held.get((name, window.budget_id), (0, 0, 0))
    if window.flags & FLAG_MONEY:
        return money
    return min(tokens if window.flags & FLAG_TOKENS else requests, INTEGER_MAX)


def _packed(account: BudgetAccountUse, held: Held, now_ms: int, expires: int, calls: int) -> bytes:
    """Return a budget account's packed state, with the amounts `held` by its `calls` in flight."""
    windows = states.defined_windows(account.defined)
    uses: dict[int, dict[int, int]] = {window.budget_id: {} for window in windows}
    for key, used in zip(account.windows, account.used, strict=True):
        uses[key.budget_id][key.start_ms] = used
    for window in windows:
        window.put_uses(uses[window.budget_id], now_ms)
        window.held = _held(held, account.name, window) if held else 0
        if window.carry is not None and window.budget_id in account.carried:
            amount, counted, at_end = account.carried[window.budget_id]
            window.carry.carried, window.carry.told, window.carry.begun = amount, counted, True
            window.carry.end = at_end or window.carry.end
    return states.pack_windows(windows, expires, calls)


def _expiry(defined: bytes, moved_ms: int) -> int:
    """Return when an owner's budget account expires, in ms; `moved_ms` is the time of its last movement.

    The time is negative if the account is kept, but then no longer counts towards its budget's maximum of
    accounts. The rule is that of `lua/lib/budget_accounts.lua`.
    """
    ends = ends_of(defined)
    unused_at = (moved_ms // DAY_MS + states.EACH_UNUSED_DAYS + 1) * DAY_MS
    if ends.never:
        return -unused_at
    last_ms = max(ends.last_ms, moved_ms + ends.counts_ms if ends.counts_ms else 0)
    return max(last_ms + KEPT_MS, unused_at if ends.ends_unused else 0)
