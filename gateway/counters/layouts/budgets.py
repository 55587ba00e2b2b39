"""What calls say of budgets, and are answered: keys behind the others, arguments behind the others. Pure.

An account for each has the index of these behind it wherever it may be made or forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from gateway.core.accounts.budget_figures import LiveWindow
from gateway.core.accounts.budgets import OTHERS
from gateway.core.model import BudgetAccount, BudgetWindow, Decision, HoldRequest, Settlement
from gateway.counters.layouts.table import ADMITTED, BUDGETS, NEED, PAID
from gateway.counters.layouts.windows import unpack_windows
from gateway.counters.redis import keys

need_packed = NEED.pack
paid_packed = PAID.pack
_ADMITTED_SIZE = ADMITTED.size
_budgets = BUDGETS.struct.unpack_from


def account_keys(partition: int, names: Sequence[str], *, indexed: bool) -> Iterator[str]:
    """The keys of accounts; behind those for each their index, where one may be made or forgotten."""
    for name in names:
        yield keys.budget_account(partition, name)
        if indexed and ":" in name:
            yield keys.each_accounts(partition, name)


def live_windows(packed: bytes) -> dict[int, LiveWindow]:
    """The windows of an account as they are stored, by budget."""
    return {
        one.budget_id: LiveWindow(one.budget_id, one.used, one.held, one.start)
        for one in unpack_windows(packed)
    }


def need(request: HoldRequest) -> tuple[bytes, ...]:
    """What windows shall hold of a call, and the definition of each account; nothing where there is none."""
    if not request.budgets:
        return ()
    packed = need_packed(
        request.money, request.money_most, request.money_least,
        request.raw_tokens, request.raw_most, request.raw_least,
    )  # fmt: skip
    return packed, *(one.defined for one in request.budgets)


def paid(settlement: Settlement, requests: int = 1) -> tuple[bytes, ...]:
    """What windows count of a call, and the names of its accounts; nothing where there is none."""
    if not settlement.budgets:
        return ()
    packed = paid_packed(settlement.money, settlement.raw_tokens, requests if settlement.charge else 0)
    return (packed + " ".join(settlement.budgets).encode(),)


def read_paid(packed: bytes) -> tuple[tuple[str, ...], int, int]:
    """The names of accounts, money and tokens; nothing where there is none."""
    if not packed:
        return (), 0, 0
    money, raw_tokens, _ = PAID.struct.unpack_from(packed)
    return tuple(packed[PAID.size :].decode().split(" ")), int(money), int(raw_tokens)


def tell(decision: Decision, answer: bytes) -> None:
    """Note what an admitted call holds of its budgets, which ends an answer."""
    money, raw_tokens, budget_id, limit, used, reset, unit = _budgets(answer, _ADMITTED_SIZE)
    decision.money_held, decision.raw_held = money, raw_tokens
    if budget_id:
        decision.budget = BudgetWindow(budget_id, limit, used, reset, unit)


def replaced(accounts: tuple[BudgetAccount, ...], full: int) -> tuple[BudgetAccount, ...]:
    """The accounts with those of all others in place of somebody's that cannot be made (a bit each)."""
    return tuple(
        replace(one, name=f"{one.name.partition(':')[0]}:{OTHERS}") if full >> place & 1 else one
        for place, one in enumerate(accounts)
    )
