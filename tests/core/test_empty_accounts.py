"""The table of accounts that are out of money: who is left alone until when, and what others hear of it."""

from __future__ import annotations

from gateway.core.empty_accounts import AGAIN, ENTRIES_MAX, OPENED, EmptyAccounts, EmptyReport


async def test_an_empty_account_is_left_alone_until_a_single_question() -> None:
    table = EmptyAccounts()
    assert await table.leaves_alone("a", 0.0) == (False, False)
    assert table.note("a", "up", 402, 100.0)
    assert await table.leaves_alone("a", 159.9) == (True, False)
    assert await table.leaves_alone("a", 160.0) == (False, True)
    assert await table.leaves_alone("a", 160.0) == (True, False)
    assert await table.leaves_alone("a", 220.0) == (False, True)


async def test_an_account_that_another_worker_asks_is_left_alone_as_long() -> None:
    async def claim(_: str) -> float:
        return 20.0

    table = EmptyAccounts(claim=claim)
    table.note("a", "up", 402, 100.0)
    assert await table.leaves_alone("a", 160.0) == (True, False)
    assert await table.leaves_alone("a", 179.0) == (True, False)
    assert table.entries["a"].until == 180.0


async def test_an_account_that_opens_during_a_claim_is_not_left_alone() -> None:
    async def claim(account: str) -> float:
        table.answered(account, 170.0)
        return 20.0

    table = EmptyAccounts(claim=claim)
    table.note("a", "up", 402, 100.0)
    assert await table.leaves_alone("a", 160.0) == (False, False)


def test_a_note_is_news_once_until_the_account_answered() -> None:
    changes: list[int] = []
    table = EmptyAccounts(lambda: changes.append(1))
    assert table.note("a", "up", 402, 100.0)
    assert not table.note("a", "up", 402, 130.0)
    assert len(changes) == 1
    assert not table.note("a", "up", 402, 160.0)
    assert (table.entries["a"].since, table.entries["a"].until, len(changes)) == (100.0, 220.0, 2)
    assert table.reports == {"a": EmptyReport("up", 402)}
    table.answered("a", 161.0)
    assert (table.entries, table.reports) == ({}, {"a": OPENED})
    assert table.note("a", "up", 402, 200.0)


def test_an_answer_to_an_earlier_call_opens_no_account() -> None:
    table = EmptyAccounts()
    table.note("a", "up", 402, 100.0)
    table.answered("a", 99.0)
    table.answered("b", 200.0)
    assert [*table.entries] == ["a"]


async def test_an_answer_about_another_error_lets_the_next_call_ask() -> None:
    table = EmptyAccounts()
    table.note("a", "up", 402, 100.0)
    assert await table.leaves_alone("a", 160.0) == (False, True)
    table.ask_again("a", 161.0)
    assert table.reports == {"a": AGAIN}
    assert await table.leaves_alone("a", 161.0) == (False, True)
    table.ask_again("b", 161.0)
    assert [*table.entries] == ["a"]


def test_accounts_beyond_the_maximum_are_not_noted() -> None:
    table = EmptyAccounts()
    for number in range(ENTRIES_MAX):
        assert table.note(str(number), "up", 402, 100.0)
    assert not table.note("more", "up", 402, 100.0)
    assert len(table.entries) == len(table.reports) == ENTRIES_MAX
