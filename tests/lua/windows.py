"""Short words for tests of budgets: a window as it is defined, and an account of some."""

from __future__ import annotations

from gateway.core.accounts.budgets import (
    DEFINED_WINDOW,
    FLAG_CUT,
    FLAG_ENFORCE,
    FLAG_MONEY,
    FLAG_REQUESTS,
    FLAG_TOKENS,
    packed_limit,
)
from gateway.core.model import BudgetAccount
from gateway.counters.layouts.states import EACH_ACCOUNTS_MAX
from gateway.counters.redis import keys
from tests.builders import World

NAME, OTHER_NAME = "0123456789abcdef", "fedcba9876543210"
EVER = (0, 0, 0)
UNITS = {"money": FLAG_MONEY, "tokens": FLAG_TOKENS, "requests": FLAG_REQUESTS}


def fill_places(world: World, *, until: int, name: str = NAME) -> None:
    """Take as many places for accounts for each as there may be, which are forgotten then."""
    fill = "for at = 1, ARGV[1] do redis.call('ZADD', KEYS[1], ARGV[2], string.format('%024x', at)) end"
    world.client.eval(fill, 1, keys.each_accounts(world.p, name), str(EACH_ACCOUNTS_MAX), str(until))


def window(
    budget_id: int, limit: int, unit: str = "money", *,
    at: tuple[int, int, int] = EVER, enforce: bool = True, cut: bool = False,
) -> bytes:  # fmt: skip
    """One window; `at` is when it begins and ends, and when the one after it does."""
    said, flags = packed_limit(limit, UNITS[unit] | FLAG_ENFORCE * enforce | FLAG_CUT * cut)
    return DEFINED_WINDOW.pack(budget_id, said, *at, flags)


def account(*windows: bytes, name: str = NAME, value: str = "") -> BudgetAccount:
    """An account of these windows; for each, where it is of a value."""
    return BudgetAccount(f"{name}:{value}" if value else name, b"".join(windows), enforced=True)
