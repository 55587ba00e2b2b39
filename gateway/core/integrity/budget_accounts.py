"""Accounts of budgets as they have to be: what is stored of their windows, and what waits to be. Pure.

An entry that waits moved the counters and not yet PostgreSQL: with it, both say the same. Both count up to
`INTEGER_MAX`, since numbers in the scripts are exact up to there: a window that is full stays so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from gateway.core.accounts.budget_figures import LiveWindow
from gateway.core.accounts.budgets import (
    MONEY,
    SESSION,
    TOKENS,
    Budget,
    account_of,
    accounts_of,
    bounds,
    defined,
)
from gateway.core.accounts.ledger import Budgeted, MalformedEvent, decode, sign_of
from gateway.core.integrity.reconciliation import Item, Kind
from gateway.core.model import INTEGER_MAX

# How an item names a budget's account.
BUDGET = "budget:"
# Of one organization, so many accounts of each that are compared at a time.
ACCOUNTS_MAX = 1_000

Uses = Mapping[Budgeted, int]
# By account and budget.
Live = Mapping[str, Mapping[int, LiveWindow]]


@dataclass(frozen=True, slots=True)
class StoredBudgets:
    """What PostgreSQL has of windows: what is `used`, in their budgets' units, up to entry `mark`.
    `aside` are entries that it keeps and has not counted.
    """

    mark: bytes
    used: Uses
    aside: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class BudgetAccountUse:
    """One account: its windows as they are defined, and what is used of each, in their order."""

    name: str
    defined: bytes
    windows: tuple[Budgeted, ...]
    used: tuple[int, ...]


def windows_at(budgets: Iterable[Budget], now_ms: int) -> list[Budgeted]:
    """The windows of budgets that run at a moment, whoever's."""
    return [
        Budgeted(one.id, bounds(one.interval, one.time_zone, one.anchor_day, now_ms)[0]) for one in budgets
    ]


def waiting_in(packed: Iterable[bytes], budgets: Iterable[Budget]) -> dict[Budgeted, int]:
    """What entries use of windows, in each budget's unit; what nobody can read says nothing."""
    units = {one.id: one.unit for one in budgets}
    found: dict[Budgeted, int] = {}
    for one in packed:
        try:
            event = decode(one)
        except MalformedEvent:
            continue
        for window in event.budgets:
            unit = units.get(window.budget_id)
            if unit is not None:
                by = {MONEY: event.money, TOKENS: event.raw_tokens}.get(unit, event.requests)
                found[window] = found.get(window, 0) + sign_of(event) * by
    return found


def as_they_should_be(  # noqa: PLR0917  # whose, what is known of it, and when
    organization_id: int,
    budgets: Sequence[Budget],
    stored: Uses,
    waiting: Uses,
    now_ms: int,
    there: Iterable[str] = (),
) -> Iterator[BudgetAccountUse]:
    """The accounts of an organization's budgets: those of all callers, of whom anything is used, and those
    that are `there`.
    """
    known = [*stored, *(one for one in waiting if one not in stored)]
    live = [name.partition(":") for name in there]
    for alike in accounts_of(budgets):
        windows, packed = windows_at(alike, now_ms), defined(alike, now_ms)
        running = {one[:2] for one in windows}
        name = account_of(organization_id, alike[0])
        prefix, _, somebody = name.partition(":")
        values = [""]
        if somebody:
            values = [one.value for one in known if one[:2] in running]
            values += [value for like, _, value in live if like == prefix]
        for value in dict.fromkeys(values):
            own = tuple(one._replace(value=value) for one in windows)
            used = tuple(min(max(0, stored.get(one, 0) + waiting.get(one, 0)), INTEGER_MAX) for one in own)
            yield BudgetAccountUse(f"{prefix}:{value}" if somebody else name, packed, own, used)


def differing(
    accounts: Iterable[BudgetAccountUse], live: Live, *, less_only: bool = False
) -> list[BudgetAccountUse]:
    """Accounts that the counters have otherwise, or only those they have less of."""
    return [
        account
        for account in accounts
        if any(has < used if less_only else has != used for _, has, used in _compared(account, live))
    ]


def differences(
    accounts: Iterable[BudgetAccountUse], live: Live, may_lack: Collection[int] = ()
) -> Iterator[Item]:
    """Windows that are full, and those that the counters have otherwise.

    Accounts of the budgets `may_lack` they may have none of.
    """
    for account in accounts:
        for window, has, used in _compared(account, live):
            name = f"{BUDGET}{window.budget_id}" + (f":{window.value}" if window.value else "")
            if has == used:
                if used == INTEGER_MAX:
                    yield Item(name, Kind.FULL, 0, 0, f"it counts to {INTEGER_MAX}, and no further")
            elif account.name in live or window.budget_id not in may_lack:
                yield Item(
                    name, Kind.DRIFT, has - used, 0, f"its rows come to {used}, the counters have {has}"
                )


def _compared(account: BudgetAccountUse, live: Live) -> Iterator[tuple[Budgeted, int, int]]:
    """Each window with what the counters have of it, and what they should.

    A window that is not there, or has not rolled on yet, has nothing used; one that is further is left out.
    """
    found = live.get(account.name, {})
    for window, used in zip(account.windows, account.used, strict=True):
        there = found.get(window.budget_id)
        if there is None or there.start_ms < window.start_ms:
            yield window, 0, used
        elif there.start_ms == window.start_ms:
            yield window, there.used, used


def forgettable(budgets: Iterable[Budget]) -> frozenset[int]:
    """Budgets whose accounts the counters forget by themselves once nobody calls: those of sessions."""
    return frozenset(one.id for one in budgets if one.each == SESSION)
