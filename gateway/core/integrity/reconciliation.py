"""Comparison of accounts in Redis and in the ledger at one seq, while traffic runs.

Pure: the caller reads the data in the right order. Redis is read before the ledger and again after it, so an
account that only moved meanwhile is never reported.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

from gateway.core.accounts.budget_balances import LiveWindow, StoredUse, carried_to, end_limit
from gateway.core.accounts.budgets import (
    MONEY,
    OTHERS,
    TOKENS,
    Budget,
    PersonalOverride,
    account_of,
    accounts_of,
    define_windows,
    have_own,
    is_forgotten_unused,
    owner_in,
)
from gateway.core.accounts.definitions import OrganizationTerms
from gateway.core.accounts.groups import GroupTerms, members_of
from gateway.core.accounts.outbox import (
    AccountPosition,
    EventKind,
    MalformedEvent,
    WindowKey,
    decode,
    end_limit_of,
    money_moved,
    sign_of,
)
from gateway.core.accounts.runs import ENDED_CALLS, Run, counts_calls, value_of
from gateway.core.accounts.windows import CALENDAR, CalendarWindow, EndLimit
from gateway.core.integrity.recovery import AccountHead
from gateway.core.model import INTEGER_MAX

# The most seconds for comparing all accounts.
RUN_S_MAX = 600.0


class DifferenceKind(StrEnum):
    """How an account differs between Redis and PostgreSQL.

    LAG is no fault: movements that are not stored yet. FULL is none either: both sides agree that a budget
    window counts no further. CONTRADICTION means that rows of PostgreSQL contradict each other. UNASKED:
    there was no time to check rows.
    """

    LAG = "lag"
    GAP = "gap"
    EXCESS = "excess"
    DRIFT = "drift"
    FULL = "full"
    CONTRADICTION = "contradiction"
    UNASKED = "unasked"
    MORE = "more"


NO_FAULTS = frozenset({DifferenceKind.LAG, DifferenceKind.FULL, DifferenceKind.UNASKED})


@dataclass(frozen=True, slots=True)
class Owner:
    """An organization and its tenants, whose accounts are compared together."""

    organization_id: int
    tenant_ids: tuple[int, ...]

    @property
    def accounts(self) -> list[str]:
        """The names of the accounts of the organization and its tenants."""
        ids = [f"tenant:{tenant_id}" for tenant_id in self.tenant_ids]
        return [*ids, f"credits:{self.organization_id}", f"spend:{self.organization_id}"]


@dataclass(frozen=True, slots=True)
class LedgerAccount:
    """An account as PostgreSQL has it.

    `head` is its stored position. `at_seq` is the balance in the row with the seq that Redis had; `found` is
    False without that row. `rows` is the number of stored movements, `listed` of those known to be missing.
    `last_row` is the balance of the last row, and `summed` the sum of all movements including known drifts.
    Balances are None if unlimited. `stopped` is the reason why its movements wait, empty if they do not.
    """

    account: str
    head: AccountHead
    found: bool
    at_seq: int | None
    rows: int
    listed: int
    last_row: int | None
    summed: int | None
    stopped: str = ""


class PartitionMark(NamedTuple):
    """The newest stored entry of a partition, its epoch, and whether PostgreSQL is older than it was."""

    entry_id: bytes = b""
    epoch: int = 0
    is_older: bool = False


NO_MARK = PartitionMark()


@dataclass(frozen=True, slots=True)
class Rollback:
    """An account that lost its movements from `stored_seq` up to the position `place`."""

    place: AccountPosition
    stored_seq: int
    partition: int
    owner: Owner


@dataclass(frozen=True, slots=True)
class Item:
    """One account that differs: `difference` is Redis's balance less the ledger's.

    For a gap it is the number of missing movements. `seq` is where both were compared. `correction` is the
    movement of Redis that makes both right.
    """

    account: str
    kind: DifferenceKind
    difference: int
    seq: int
    detail: str
    correction: int = 0


@dataclass(frozen=True, slots=True)
class ReconciliationSummary:
    """The result of a comparison. Drifts are sums of absolute differences, without spend and budgets."""

    checked: int
    pending: int
    items: tuple[Item, ...]

    @property
    def drift_tokens(self) -> int:
        """The sum of the differences in tokens, over all tenants' accounts."""
        return self._sum("tenant:")

    @property
    def drift_credits(self) -> int:
        """The sum of the differences in credits, over the accounts of all organizations."""
        return self._sum("credits:")

    @property
    def faults(self) -> tuple[Item, ...]:
        """The differences that are faults: all but delays, full windows and rows not checked."""
        return tuple(item for item in self.items if item.kind not in NO_FAULTS)

    def joined(self, more: ReconciliationSummary) -> ReconciliationSummary:
        """Return the sum of this summary and of `more`."""
        checked, pending = self.checked + more.checked, self.pending + more.pending
        return ReconciliationSummary(checked, pending, self.items + more.items)

    def _sum(self, prefix: str) -> int:
        return sum(
            abs(item.difference)
            for item in self.items
            if item.account.startswith(prefix) and item.kind in {DifferenceKind.DRIFT, DifferenceKind.EXCESS}
        )


# The result until rows were checked.
UNASKED = ReconciliationSummary(
    0,
    0,
    (
        Item(
            "rows",
            DifferenceKind.UNASKED,
            0,
            0,
            "there was no time to ask whether rows contradict each other",
        ),
    ),
)


def compare(before: AccountHead | None, ledger: LedgerAccount, after: AccountHead | None) -> Item | None:
    """Return how an account differs between Redis and the ledger, or None if both agree.

    `before` and `after` are its positions in Redis before and after the ledger was read; None if Redis
    lacks it.
    """
    head = ledger.head
    if before is None or after is None:
        if head.seq == 0:
            return None
        return Item(
            ledger.account,
            DifferenceKind.EXCESS,
            -(head.balance or 0),
            head.seq,
            "the counters do not have it",
        )
    if ledger.stopped:
        detail = f"quarantined: {ledger.stopped}"
        return Item(ledger.account, DifferenceKind.GAP, max(0, before.seq - head.seq), head.seq, detail)
    if ledger.rows + ledger.listed < head.seq:
        missing = head.seq - ledger.rows - ledger.listed
        return Item(
            ledger.account,
            DifferenceKind.GAP,
            missing,
            head.seq,
            f"{missing} of {head.seq} movements are missing",
        )
    if after.seq < head.seq:
        detail = f"the ledger is at movement {head.seq}, the counters at {after.seq}"
        return Item(
            ledger.account, DifferenceKind.EXCESS, _less(after.balance, head.balance), after.seq, detail
        )
    inner = _inner_drift(ledger)
    if before.seq > head.seq:
        if inner is not None:
            return inner
        detail = f"{before.seq - head.seq} movements are not stored yet"
        return Item(ledger.account, DifferenceKind.LAG, _less(before.balance, head.balance), head.seq, detail)
    # A change in Redis before a later row was written shows in that row.
    shown = before.seq < head.seq and ledger.last_row != ledger.summed
    if ledger.found and before.balance != ledger.at_seq and not shown:
        difference = _less(before.balance, ledger.at_seq) + _less(ledger.last_row, ledger.summed)
        detail = f"movement {before.seq} left {_say(ledger.at_seq)}, the counters have {_say(before.balance)}"
        return Item(ledger.account, DifferenceKind.DRIFT, difference, before.seq, detail, -difference)
    return inner


def unreadable(ledger: LedgerAccount) -> Item:
    """Return the difference to report for an account unreadable in Redis, whose calls are refused."""
    detail = "the counters have what nobody can read, and refuse its calls"
    return Item(ledger.account, DifferenceKind.EXCESS, -(ledger.head.balance or 0), ledger.head.seq, detail)


def reconcile(items: Iterable[Item | None]) -> ReconciliationSummary:
    """Return the summary of a comparison: `items` has the difference of each account, or None."""
    every = list(items)
    found = tuple(item for item in every if item is not None)
    return ReconciliationSummary(len(every), sum(item.kind == DifferenceKind.LAG for item in found), found)


def _inner_drift(ledger: LedgerAccount) -> Item | None:
    """Return how an account contradicts itself in PostgreSQL, or None.

    The balance in its last row must equal the sum of its movements, and the balance of the account.
    """
    if ledger.last_row != ledger.summed:
        detail = f"its movements come to {_say(ledger.summed)}, its last row says {_say(ledger.last_row)}"
        difference = _less(ledger.last_row, ledger.summed)
        return Item(ledger.account, DifferenceKind.DRIFT, difference, ledger.head.seq, detail, -difference)
    if ledger.head.balance != ledger.last_row:
        detail = f"its last row says {_say(ledger.last_row)}, its account {_say(ledger.head.balance)}"
        return Item(
            ledger.account,
            DifferenceKind.DRIFT,
            _less(ledger.last_row, ledger.head.balance),
            ledger.head.seq,
            detail,
        )
    return None


def _less(balance: int | None, other: int | None) -> int:
    return (balance or 0) - (other or 0)


def _say(balance: int | None) -> str:
    return "unlimited" if balance is None else str(balance)


# The expected state of budget accounts: stored use of their windows, and use in waiting entries. Pure.
#
# A waiting entry has moved Redis, and not yet PostgreSQL: with it both must agree. Tokens and requests count
# up to `INTEGER_MAX` in both, because numbers in the scripts are exact up to it: a full window remains full.
# Money has no such end, unless a program without wide windows counted it.

# The prefix of a budget account's name in an item.
BUDGET = "budget:"
# Most accounts of `each` of one organization that are compared at a time.
ACCOUNTS_MAX = 1_000

Uses = Mapping[WindowKey, int]
# By account and budget.
Live = Mapping[str, Mapping[int, LiveWindow]]


class CarriedUse(NamedTuple):
    """What a window carries, and the limit at its interval's end as its last call knew it, None if none was told."""

    amount: int
    at_end: EndLimit | None = None


Carries = Mapping[WindowKey, CarriedUse]


class WaitingUses(NamedTuple):
    """The use of budget windows, and what they carry, in the units of their budgets."""

    used: Uses = MappingProxyType({})
    carried: Carries = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class StoredBudgets:
    """PostgreSQL's use of budget windows up to the entry `mark`, in the units of their budgets.

    `moved` is the time (ms) of each window's last movement. `aside` are stored entries that are not counted
    yet. `carried` is what windows carry that do: with them are the last ones before the present ones.
    """

    mark: bytes
    used: Uses
    aside: Sequence[bytes] = ()
    moved: Mapping[WindowKey, int] = field(default_factory=dict)
    carried: Carries = field(default_factory=dict)


class PresentCarry(NamedTuple):
    """What the present window of a budget carries; `told` if it was used in this interval.

    `at_end` is the limit at its interval's end, None for that of the present definition.
    """

    amount: int
    told: bool
    at_end: EndLimit | None


@dataclass(frozen=True, slots=True)
class BudgetAccountUse:
    """The expected state of one budget account: its packed windows, and the use of each in that order.

    `moved_ms` is the time of the last movement, 0 if unknown. Budgets in `since` have windows not by the
    calendar: several keys are of one window, whose uses from that time on count. `carried` is by budget.
    """

    name: str
    defined: bytes
    windows: tuple[WindowKey, ...]
    used: tuple[int, ...]
    moved_ms: int = 0
    since: Mapping[int, int] = field(default_factory=dict)
    carried: Mapping[int, PresentCarry] = field(default_factory=dict)


def windows_at(budgets: Iterable[Budget], now_ms: int) -> list[WindowKey]:
    """Return the earliest windows of budgets whose use counts at a time (Unix ms)."""
    return [WindowKey(budget.id, budget.form.since(now_ms)) for budget in budgets]


def carrying(budgets: Iterable[Budget]) -> frozenset[int]:
    """Return the ids of the budgets that carry over: they go by their last windows, however old."""
    return frozenset(budget.id for budget in budgets if budget.carry is not None)


def waiting_in(packed: Iterable[bytes], budgets: Iterable[Budget]) -> WaitingUses:
    """Return the use of budget windows in packed entries, and what they carry; skip unreadable entries."""
    units = {budget.id: budget.unit for budget in budgets}
    used, carried = dict[WindowKey, int](), dict[WindowKey, CarriedUse]()
    for entry in packed:
        try:
            event = decode(entry)
        except MalformedEvent:
            continue
        for window in event.budgets:
            unit = units.get(window.budget_id)
            if unit is None:
                continue
            moved = {MONEY: money_moved(event), TOKENS: event.raw_tokens}.get(unit, event.requests)
            if event.kind == EventKind.CARRY:
                at_end = end_limit_of(event, is_money=unit == MONEY)
                carried[window] = CarriedUse(sign_of(event) * moved, at_end)
            else:
                used[window] = used.get(window, 0) + sign_of(event) * moved
    return WaitingUses(used, carried)


def as_they_should_be(
    organization_id: int, budgets: Sequence[Budget], known: KnownUse, there: Iterable[str] = ()
) -> Iterator[BudgetAccountUse]:
    """Yield the expected state of an organization's budget accounts: of all with use, and all in `there`.

    `there` are the names of accounts in Redis.
    """
    live = [name.partition(":") for name in there]
    for alike in accounts_of(budgets):
        packed = define_windows(alike, known.now_ms)
        name = account_of(organization_id, alike[0])
        prefix, _, somebody = name.partition(":")
        values = [""]
        if somebody:
            values = [*known.active_owners(alike), *(value for like, _, value in live if like == prefix)]
        for value in dict.fromkeys(values):
            has_own_windows = value == OTHERS or have_own(alike, value)
            windows = define_windows(alike, known.now_ms, value) if has_own_windows else packed
            yield known.use_of(alike, value, f"{prefix}:{value}" if somebody else name, windows)


def collect_use(
    budgets: Iterable[Budget], stored: StoredBudgets, waiting: WaitingUses, now_ms: int
) -> KnownUse:
    """Return the use of budgets, of any organizations, in PostgreSQL and in entries not stored yet.

    A window with waiting entries has moved now.
    """
    owners = dict[int, dict[str, list[WindowKey]]]()
    for key in [*stored.used, *(key for key in waiting.used if key not in stored.used)]:
        owners.setdefault(key.budget_id, {}).setdefault(key.value, []).append(key)
    return KnownUse(stored, waiting, owners, dict(key[:2] for key in windows_at(budgets, now_ms)), now_ms)


@dataclass(frozen=True, slots=True)
class KnownUse:
    """The use of budgets at a time, and since when it counts, by budget.

    `owners` are the used windows by budget and owner. `running` are windows by the calendar, by budget and known starts:
    when each began, and a time in its interval by the present edition of the time zones.
    """

    stored: StoredBudgets
    waiting: WaitingUses
    owners: Mapping[int, Mapping[str, Sequence[WindowKey]]]
    since: Mapping[int, int]
    now_ms: int
    running: dict[tuple[int, tuple[int, ...]], tuple[int, int]] = field(default_factory=dict)

    def active_owners(self, budgets: Iterable[Budget]) -> list[str]:
        """Return the owners whose use of a budget counts now, and all of one that carries over."""
        return [
            owner
            for budget in budgets
            for owner, keys in self.owners.get(budget.id, {}).items()
            if budget.carry is not None
            or not {key.start_ms for key in keys}.isdisjoint(self._counting(budget, keys)[0])
        ]

    def use_of(self, budgets: Sequence[Budget], owner: str, name: str, defined: bytes) -> BudgetAccountUse:
        """Return the expected state of an owner's account in these budgets, by its name and definition."""
        rolling = {budget.id: self.since[budget.id] for budget in budgets if budget.window != CALENDAR}
        own, amounts, carried = list[WindowKey](), list[int](), dict[int, PresentCarry]()
        times = dict[int, int]()
        for budget in budgets:
            keys = self.owners.get(budget.id, {}).get(owner, ())
            uses = {
                key.start_ms: self.stored.used.get(key, 0) + self.waiting.used.get(key, 0) for key in keys
            }
            starts, times[budget.id] = self._counting(budget, keys)
            own += [WindowKey(budget.id, start, owner) for start in starts]
            amounts += [_counted(budget.unit, uses.get(start, 0)) for start in starts]
            if budget.carry_of(owner) is not None and uses:
                key = WindowKey(budget.id, max(uses), owner)
                counted = self.waiting.carried.get(key, self.stored.carried.get(key))
                carried[budget.id] = _carry_now(budget, self.now_ms, owner, uses, counted)
        if any(at_ms != self.now_ms for at_ms in times.values()):
            defined = b"".join([define_windows([budget], times[budget.id], owner) for budget in budgets])
        return BudgetAccountUse(
            name, defined, tuple(own), tuple(amounts), max(map(self._moved_ms, own), default=0), rolling,
            carried,
        )  # fmt: skip

    def _counting(self, budget: Budget, keys: Iterable[WindowKey]) -> tuple[Sequence[int], int]:
        """Return the starts by which uses count now, one by the calendar, and the time at which to define their window."""
        since, form = self.since[budget.id], budget.form
        recent = tuple(sorted(key.start_ms for key in keys if key.start_ms >= since))
        if not isinstance(form, CalendarWindow):
            return recent, self.now_ms
        if (budget.id, recent) not in self.running:
            start, present = (form.start_of(self.now_ms, dict.fromkeys(some, 0)) for some in (recent, ()))
            self.running[budget.id, recent] = (
                start,
                self.now_ms if start == present else start + form.apart_ms,
            )
        start, at_ms = self.running[budget.id, recent]
        return (start,), at_ms

    def _moved_ms(self, window: WindowKey) -> int:
        return self.now_ms if window in self.waiting.used else self.stored.moved.get(window, 0)


def _carry_now(
    budget: Budget, now_ms: int, value: str, uses: Mapping[int, int], carried_use: CarriedUse | None
) -> PresentCarry:
    """Return what a budget's window carries now: as it was told in this interval, else by its last interval."""
    amount, at_end = carried_use or CarriedUse(0)
    if carried_use is not None and max(uses) == budget.form.start_of(now_ms, uses):
        return PresentCarry(amount, told=True, at_end=at_end)
    known = StoredUse(uses, None if carried_use is None else amount, at_end)
    end = end_limit(budget, now_ms, value, at_end, None) if budget.overridden_groups else None
    return PresentCarry(carried_to(budget, now_ms, known, value, None), told=False, at_end=end)


def run_as_it_should_be(run: Run, stored: Uses, waiting: Uses) -> BudgetAccountUse:
    """Return the expected state of a run's account in Redis; after the run's end it admits no calls.

    `stored` is the use in PostgreSQL, `waiting` that in entries not stored yet, by window.
    """
    name, value = run.account.name, value_of(run.id)
    windows = tuple(WindowKey(budget.id, run.created_ms, value) for budget in run.budgets)
    calls, amount = (
        _counted(budget.unit, stored.get(window, 0) + waiting.get(window, 0))
        for budget, window in zip(run.budgets, windows, strict=True)
    )
    return BudgetAccountUse(
        name, run.defined, windows, (calls + ENDED_CALLS if run.ended_ms else calls, amount)
    )


def differing(
    accounts: Iterable[BudgetAccountUse], live: Live, *, less_only: bool = False
) -> list[BudgetAccountUse]:
    """Return the accounts whose use in Redis (`live`) is not the expected one.

    With `less_only`, return only those with less use in Redis.
    """
    return [
        account
        for account in accounts
        if any(has < used if less_only else has != used for _, has, used in _compare_windows(account, live))
        or _lacks_carry(account, live, less_only=less_only)
    ]


def differences(
    accounts: Iterable[BudgetAccountUse], live: Live, may_lack: Collection[int] = ()
) -> Iterator[Item]:
    """Yield budget windows whose use in Redis (`live`) differs from the expected one, and full windows.

    Accounts of the budgets `may_lack` may be missing in Redis.
    """
    for account in accounts:
        for window, has, used in _compare_windows(account, live):
            name = f"{BUDGET}{window.budget_id}" + (f":{window.value}" if window.value else "")
            if has == used:
                if has == INTEGER_MAX:
                    yield Item(name, DifferenceKind.FULL, 0, 0, f"it counts to {INTEGER_MAX}, and no further")
            elif account.name in live or window.budget_id not in may_lack:
                yield Item(
                    name,
                    DifferenceKind.DRIFT,
                    has - used,
                    0,
                    f"its rows come to {used}, the counters have {has}",
                )


def terms_differing(
    budgets: Iterable[Budget], groups: GroupTerms, stored: OrganizationTerms, now_ms: int
) -> Iterator[Item]:
    """Yield the budgets whose overrides, or whose groups' members, are others in Redis (`stored`) than they must be."""
    there = {budget.id: budget for budget in stored.budgets}
    members, present = members_of(groups), members_of(stored.groups)
    for budget in budgets:
        has = there.get(budget.id, replace(budget, overrides={}, group_id=0))
        overrides, has_overrides = (_overrides_at(each, now_ms) for each in (budget, has))
        groups_of = {budget.group_id, has.group_id, *budget.overridden_groups} - {0}
        more, less = (
            sum(len(one.get(group, _NOBODY) - other.get(group, _NOBODY)) for group in groups_of)
            for one, other in ((present, members), (members, present))
        )
        details = ["its group is another one"] if has.group_id != budget.group_id else []
        details += ["its overrides are others"] if has_overrides != overrides else []
        details += [f"its groups have {more} members more and {less} fewer"] if more or less else []
        if details:
            detail = f"in the counters {', '.join(details)}"
            yield Item(f"{BUDGET}{budget.id}", DifferenceKind.DRIFT, more - less, 0, detail)


_NOBODY: frozenset[object] = frozenset()


def _overrides_at(budget: Budget, now_ms: int) -> Mapping[str, PersonalOverride]:
    return {owner: own for owner, own in budget.overrides.items() if own.is_in_force(now_ms)}


def _compare_windows(account: BudgetAccountUse, live: Live) -> Iterator[tuple[WindowKey, int, int]]:
    """Yield each window of an account with its use in Redis and its expected use.

    The use is 0 for a window that Redis lacks or has only an earlier one of. A window is skipped if Redis
    has the next one already.
    """
    balances = live.get(account.name, {})
    for window, used in zip(account.windows, account.used, strict=True):
        there = balances.get(window.budget_id)
        if window.budget_id in account.since:
            yield window, there.uses.get(window.start_ms, 0) if there is not None else 0, used
        elif there is None or there.start_ms < window.start_ms:
            yield window, 0, used
        elif there.start_ms == window.start_ms:
            # An earlier version stops counting there: much money, and the calls of a run that has ended.
            most = ENDED_CALLS if counts_calls(window.budget_id) else INTEGER_MAX
            yield window, there.used, INTEGER_MAX if there.used == INTEGER_MAX and used >= most else used
    for budget_id, since in account.since.items():
        if budget_id not in balances:
            continue
        for start_ms, has in balances[budget_id].uses.items():
            window = WindowKey(budget_id, start_ms, owner_in(account.name))
            if start_ms >= since and has and window not in account.windows:
                yield window, has, 0


def _lacks_carry(account: BudgetAccountUse, live: Live, *, less_only: bool) -> bool:
    """Return whether Redis lacks what an account carries, or has another amount than was told of this interval."""
    balances = live.get(account.name, {})
    for budget_id, (amount, counted, _) in account.carried.items():
        there = balances.get(budget_id)
        if there is None or there.carried is None or (counted and not less_only and there.carried != amount):
            return True
    return False


def _counted(unit: str, amount: int) -> int:
    """Return the use of a window as it counts: never below 0, and money of any size."""
    return max(0, amount if unit == MONEY else min(amount, INTEGER_MAX))


def forgettable(budgets: Iterable[Budget]) -> frozenset[int]:
    """Return the ids of those budgets whose accounts Redis deletes once they are unused."""
    return frozenset(budget.id for budget in budgets if is_forgotten_unused(budget))
