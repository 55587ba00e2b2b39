"""What is used of budgets: moved by exactly the entries that are stored, once, whatever comes again."""

from __future__ import annotations

import random
import uuid
from typing import Any

import pytest

from gateway.core.accounts.call_facts import CallFacts, mark_as_correction, write_facts
from gateway.core.accounts.flush_batch import Batch
from gateway.core.accounts.outbox import EventFlag, EventKind, EventNote, WindowKey
from gateway.core.model import INTEGER_MAX
from persistence.ledger.writer import LedgerWriter
from tests.connections import connected
from tests.persistence.scenario import Account, batch_of, broken, insert_budget, rows_of, settle_in, stop
from tests.search import histories

START = 1_789_776_000_000
NOBODY = "e3b0c44298fc1c149afbf4c8"
ADA, BOB = "a" * 24, "b" * 24
FACTS = CallFacts(model="m", status=200, counts=(7, 0, 0, 0, 0, 0, 0, 0, 0, 0), total=7, session="s-1",
    tags={"feature": "search"},
)  # fmt: skip


def budget_of(url: str, account: Account, unit: str = "money", each: str | None = None) -> int:
    with connected(url, autocommit=True) as connection:
        return insert_budget(connection, account.organization_id, unit=unit, each=each)


def opened(url: str) -> Account:
    [account] = settle_in(url, None)
    account.reset()
    return account


def used(url: str, *budgets: int) -> list[Any]:
    rows = rows_of(url, "SELECT budget_id, used FROM budget_use ORDER BY budget_id, start, value")
    return [use for budget, use in rows if not budgets or budget in budgets]


def moves(*budgets: int, value: str = "", start_ms: int = START, money: int = 5) -> dict[str, Any]:
    windows = tuple(WindowKey(each, start_ms, value) for each in budgets)
    return {"budgets": windows, "money": money, "raw_tokens": 7, "requests": 1}


async def test_each_unit_moves_by_its_own_number(migrated: str, writer: LedgerWriter) -> None:
    account = opened(migrated)
    units = [budget_of(migrated, account, unit) for unit in ("money", "tokens", "requests")]
    for _ in range(3):
        account.consume(7, **moves(*units))
    await writer.write(batch_of(account))
    assert used(migrated) == [15, 21, 3]
    account.consume(7, **moves(units[0], money=10**9))
    await writer.write(batch_of(account))
    assert used(migrated) == [10**9 + 15, 21, 3]


async def test_each_window_has_its_row(migrated: str, writer: LedgerWriter) -> None:
    account = opened(migrated)
    budget = budget_of(migrated, account)
    account.consume(7, **moves(budget))
    account.consume(7, **moves(budget, start_ms=START + 86_400_000))
    account.consume(7, **moves(budget, start_ms=0))
    await writer.write(batch_of(account))
    assert rows_of(
        migrated, "SELECT (extract(epoch FROM start) * 1000)::bigint, value, name, used FROM budget_use"
        " ORDER BY start",
    ) == [(start, "", "", 5) for start in (0, START, START + 86_400_000)]  # fmt: skip


async def test_accounts_of_each_say_whose_they_are(migrated: str, writer: LedgerWriter) -> None:
    account = opened(migrated)
    said = {"user": "ada", "attribution": "\t12\t", "metadata": write_facts(FACTS)}
    for each in ("user", "key", "project", "session", "tenant", "tag:feature"):
        account.consume(7, **moves(budget_of(migrated, account, each=each), value=ADA), **said)
    by_user = budget_of(migrated, account, each="user")
    account.consume(7, **moves(by_user, value=BOB), user="bob")
    account.consume(7, **moves(by_user, value="other"), user="carol")
    account.consume(7, **moves(by_user, value=NOBODY))
    account.consume(7, **moves(by_user, value=BOB), user="bob")
    await writer.write(batch_of(account))
    assert rows_of(migrated, "SELECT value, name, used FROM budget_use ORDER BY budget_id, value") == [
        (ADA, "ada", 5), (ADA, "5", 5), (ADA, "12", 5), (ADA, "s-1", 5), (ADA, str(account.tenant_id), 5),
        (ADA, "search", 5),
        (BOB, "bob", 10), (NOBODY, "", 5), ("other", "", 5),
    ]  # fmt: skip


async def test_what_comes_again_moves_nothing_twice(migrated: str, writer: LedgerWriter) -> None:
    account = opened(migrated)
    budget = budget_of(migrated, account)
    account.consume(7, **moves(budget))
    account.consume(None, **moves(budget))  # a call that moves no account
    late = account.consume(None, note=int(EventNote.LATE), **moves(budget))
    more = mark_as_correction(write_facts(FACTS), late.source, "reclaimed")
    account.emit(EventKind.ADJUST, EventFlag(0), source=str(uuid.uuid4()), metadata=more, **moves(budget))
    reset = str(uuid.uuid4())
    account.emit(EventKind.BUDGET, EventFlag(0), tenant_id=0, source=reset, **moves(budget, money=2))
    batch = batch_of(account)
    report = await writer.write(batch)
    assert used(migrated) == [18]
    assert rows_of(migrated, "SELECT reset FROM budget_use") == [(2,)]
    assert reset in report.control_ids[account.partition]
    for again in (batch, {account.partition: batch[account.partition][3:]}):
        report = await writer.write(again)
        assert len(report.acknowledged[account.partition]) == len(again[account.partition])
        assert used(migrated) == [18]
    account.consume(None, **moves(budget))
    await writer.write(
        {account.partition: [*batch[account.partition], *batch_of(account)[account.partition]]}
    )
    assert used(migrated) == [23]


async def test_budgets_nobody_knows_are_left_out(migrated: str, writer: LedgerWriter) -> None:
    account, other = settle_in(migrated, None, None)
    account.reset()
    budget, foreign = budget_of(migrated, account), budget_of(migrated, other)
    account.consume(7, **moves(budget, foreign, foreign + 1, 2**53 - 1))
    account.consume(
        7, budgets=(WindowKey(2**70, START), WindowKey(budget, 2**60), WindowKey(budget, -1)), money=5
    )
    report = await writer.write(batch_of(account))
    assert (report.dead_letters, used(migrated)) == (0, [5])


async def test_a_deleted_budget_is_still_counted(migrated: str, writer: LedgerWriter) -> None:
    account = opened(migrated)
    budget = budget_of(migrated, account)
    with connected(migrated, autocommit=True) as connection:
        connection.execute("UPDATE budget SET deleted_at = now()")
    account.consume(7, **moves(budget))
    await writer.write(batch_of(account))
    assert used(migrated) == [5]


async def test_what_waits_moves_when_it_is_stored(migrated: str, writer: LedgerWriter) -> None:
    account = opened(migrated)
    budget = budget_of(migrated, account)
    await writer.write(batch_of(account))
    stop(migrated, account.partition, account.organization_id, account.tenant_id)
    account.consume(7, **moves(budget))
    account.consume(None, **moves(budget))
    batch: Batch = batch_of(account)
    await writer.write(batch)
    assert used(migrated) == [5]  # of the call that moves no account
    with connected(migrated, autocommit=True) as connection:
        connection.execute("UPDATE quarantine SET released_at = now()")
    await writer.write({account.partition: batch[account.partition][:1]})
    await writer.write(batch)
    assert used(migrated) == [10]


async def test_a_call_that_was_taken_back_costs_what_budgets_were_charged(
    migrated: str, writer: LedgerWriter
) -> None:
    account = opened(migrated)
    budget = budget_of(migrated, account)
    taken_back = b'{"estimated":true,"reclaimed":true}'
    reclaimed = {"note": int(EventNote.RECLAIMED), "metadata": taken_back}
    account.consume(7, **reclaimed, **moves(budget))
    account.consume(None, credits_=3, **reclaimed, **moves(budget))
    account.consume(7, **reclaimed)
    await writer.write(batch_of(account))
    assert rows_of(migrated, "SELECT tokens, cost, currency, estimated, reason FROM call ORDER BY id") == [
        (7, 5, "USD", True, "reclaimed"), (7, 5, "USD", True, "reclaimed"),
        (7, None, None, True, "reclaimed"),
    ]  # fmt: skip
    assert used(migrated) == [10]


async def test_windows_are_compared_with_the_calls_they_are_of(migrated: str, writer: LedgerWriter) -> None:
    account = opened(migrated)
    budget, tokens = budget_of(migrated, account), budget_of(migrated, account, "tokens", "user")
    with connected(migrated, autocommit=True) as connection:
        connection.execute("UPDATE budget SET updated_at = to_timestamp(%s)", (START / 1000 - 61,))
    for _ in range(2):
        told = CallFacts(total=7, cost=5, currency="USD")
        account.consume(7, **moves(budget, tokens), metadata=write_facts(told))
    foreign = CallFacts(total=7, cost=9, currency="EUR")
    account.consume(7, **moves(budget, tokens, money=0), metadata=write_facts(foreign))
    account.emit(
        EventKind.BUDGET, EventFlag(0), tenant_id=0, source=str(uuid.uuid4()), **moves(budget, money=10)
    )
    await writer.write(batch_of(account))
    assert used(migrated) == [0, 21]
    assert await broken(migrated) == []
    with connected(migrated, autocommit=True) as connection:
        connection.execute("UPDATE budget_use SET used = used + 1")
    found = [(each.invariant, each.account) for each in await broken(migrated)]
    assert sorted(found) == [("budgets", f"budget:{budget}"), ("budgets", f"budget:{tokens}")]


async def test_a_sum_beyond_its_column_stops_no_flush(migrated: str, writer: LedgerWriter) -> None:
    account = opened(migrated)
    budget = budget_of(migrated, account)
    for money in (2**62, 2**62, 2**62, 5):
        account.consume(7, **moves(budget, money=money))
    report = await writer.write(batch_of(account))
    assert report.rows["call"] == 4
    account.consume(7, **moves(budget))
    await writer.write(batch_of(account))
    assert used(migrated) == [3 * 2**62 + 5 + 5]
    for _ in range(2):
        reset = {"tenant_id": 0, "source": str(uuid.uuid4()), **moves(budget, money=0)}
        account.emit(EventKind.BUDGET, EventFlag(0), amount=5 * 10**9, **reset)
        await writer.write(batch_of(account))
    assert rows_of(migrated, "SELECT used, reset FROM budget_use") == [(3 * 2**62 + 5 + 5 - 10**19, 10**19)]


async def test_a_window_counts_as_far_as_the_counters_do(migrated: str, writer: LedgerWriter) -> None:
    account = opened(migrated)
    budget = budget_of(migrated, account, "tokens")
    with connected(migrated, autocommit=True) as connection:
        connection.execute("UPDATE budget SET updated_at = to_timestamp(%s)", (START / 1000 - 61,))
    for tokens in (INTEGER_MAX - 3, 7):
        account.consume(7, **moves(budget) | {"raw_tokens": tokens})
        await writer.write(batch_of(account))
    assert used(migrated) == [INTEGER_MAX]
    assert await broken(migrated) == []  # it says nothing more of its calls
    reset = {"tenant_id": 0, "source": str(uuid.uuid4()), **moves(budget) | {"raw_tokens": INTEGER_MAX}}
    account.emit(EventKind.BUDGET, EventFlag(0), **reset)
    await writer.write(batch_of(account))
    account.consume(7, **moves(budget))
    await writer.write(batch_of(account))
    assert used(migrated) == [7]
    assert await broken(migrated) == []


class Window:
    """A window as the counters have it: of tokens it counts as far as a double does, and a reset takes all.

    Much money is said in whole units and billionths.
    """

    def __init__(self, account: Account, budget: int, unit: str = "tokens") -> None:
        self.account, self.budget, self.unit = account, budget, unit
        self.used = self.taken = 0

    def call(self, amount: int, *, moves_account: bool = True) -> None:
        self.used += amount
        if self.unit == "tokens":
            self.used = min(self.used, INTEGER_MAX)
        self.account.consume(7 if moves_account else None, **self._moves(amount))

    def reset(self) -> None:
        whole, rest = divmod(self.used, 10**9) if self.used > INTEGER_MAX else (0, self.used)
        told = {"tenant_id": 0, "source": str(uuid.uuid4()), **self._moves(rest)}
        self.account.emit(EventKind.BUDGET, EventFlag(0), amount=whole, **told)
        self.used, self.taken = 0, self.taken + self.used

    def _moves(self, amount: int) -> dict[str, Any]:
        return moves(self.budget) | {"money" if self.unit == "money" else "raw_tokens": amount}


async def test_what_is_behind_a_reset_counts_in_one_flush_too(migrated: str, writer: LedgerWriter) -> None:
    account = opened(migrated)
    window = Window(account, budget_of(migrated, account, "tokens"))
    beside = budget_of(migrated, account, "tokens")
    window.call(INTEGER_MAX - 3)
    account.consume(7, **moves(window.budget, beside))  # fills the one window, and not the other
    window.used = INTEGER_MAX
    window.reset()
    account.consume(7, **moves(window.budget, beside) | {"raw_tokens": 4500})
    await writer.write(batch_of(account))
    assert used(migrated, window.budget, beside) == [4500, 4507]


@pytest.mark.parametrize("seed", range(histories(1)))
async def test_windows_go_with_the_counters_in_whatever_pieces_they_are_stored(
    migrated: str, writer: LedgerWriter, seed: int
) -> None:
    chance = random.Random(seed)
    account = opened(migrated)
    units = ("tokens", "money", "money")
    windows = [Window(account, budget_of(migrated, account, unit), unit) for unit in units]
    for _ in range(60):
        window = chance.choice(windows)
        if chance.random() < 0.3:
            window.reset()
        else:
            window.call(chance.choice([1, 10**9, INTEGER_MAX // 2]), moves_account=chance.random() < 0.7)
        if chance.random() < 0.1:
            await writer.write(batch_of(account))
    await writer.write(batch_of(account))
    stored = rows_of(migrated, "SELECT budget_id, used, reset FROM budget_use ORDER BY budget_id")
    assert stored == [(each.budget, each.used, each.taken) for each in windows if each.used or each.taken]
