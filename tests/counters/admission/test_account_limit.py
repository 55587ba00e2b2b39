"""Calls that meet budgets whose places are all taken are counted, and told once a minute."""

from __future__ import annotations

from typing import Any

from gateway.core.accounts.budgets import OTHERS
from gateway.counters.admission.account_limit import TELL_INTERVAL_S, AccountLimit
from tests.lua.windows import NAME, OTHER_NAME, account, window


def test_account_limit_logs_full_budgets_once_a_minute() -> None:
    now, said = [0.0], list[dict[str, Any]]()
    crowded = AccountLimit(lambda: now[0], lambda _, **facts: said.append(facts))
    plain, hers = account(window(1, 9)), account(window(2, 9), name=OTHER_NAME, value="ann")
    shared = account(window(3, 9), window(4, 9), name=NAME, value=OTHERS)
    for now[0] in (0.0, 1.0, TELL_INTERVAL_S - 0.001, TELL_INTERVAL_S):
        crowded.met(7, (plain, hers, shared))
    assert crowded.calls == 4
    assert [(one["organization_id"], one["budget_ids"], one["calls_until_now"]) for one in said] == [
        (7, [3], 1), (7, [3], 4),
    ]  # fmt: skip
