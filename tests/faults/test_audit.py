"""The audit finds what it is there to find: each broken promise by itself, and none where there is none."""

from __future__ import annotations

import pytest

from tests.faults.audit import Expected, Figures, _compare, used
from tests.faults.matrix import ROWS
from tests.faults.report import Played, as_markdown
from tests.faults.scene import Row
from tests.faults.truth import ServedCall

Charged = dict[str, tuple[str, int, int, bool]]


def told(
    request_id: str = "a", kind: str = "tokens", amount: int = 10, *, complete: bool = True
) -> ServedCall:
    tokens, units = (amount, 0) if kind == "tokens" else (0, amount)
    return ServedCall(request_id, kind, tokens, units, over=True, complete=complete, cut=not complete)


def compared(charged: Charged, *upstream: ServedCall, received: str = "", lost: bool = False) -> Figures:
    figures = Figures()
    _compare(figures, charged, {one.request_id: one for one in upstream}, set(received), Expected(lost=lost))
    return figures


def test_what_was_used_is_charged_and_nothing_is_said() -> None:
    figures = compared({"a": ("tokens", 10, 1, False)}, told(), received="a")
    assert (figures.lost, figures.doubled, figures.broken) == (0, 0, [])


def test_credits_cost_what_a_use_costs() -> None:
    assert used(told(kind="credits", amount=2)) == 6
    assert used(told(kind="units", amount=2)) == 2


def test_a_complete_answer_without_a_charge_is_lost() -> None:
    figures = compared({}, told(), received="a")
    assert (figures.lost, figures.lost_calls, figures.lost_ids) == (10, 1, ["a"])
    assert figures.broken == ["a was received completely and not charged"]
    assert compared({}, told(), received="a", lost=True).broken == []


@pytest.mark.parametrize(("amount", "lost", "doubled"), [(9, 1, 0), (11, 0, 1), (20, 0, 10)])
def test_a_wrong_amount_is_lost_or_doubled(amount: int, lost: int, doubled: int) -> None:
    figures = compared({"a": ("tokens", amount, 1, False)}, told(), received="a")
    assert (figures.lost, figures.doubled) == (lost, doubled)
    assert figures.broken == [f"a used 10 and was charged {amount}"]


def test_an_estimate_of_an_answer_nobody_has_may_differ() -> None:
    assert compared({"a": ("tokens", 4, 1, True)}, told()).broken == []
    assert compared({"a": ("tokens", 4, 1, False)}, told(complete=False)).broken == []
    assert compared({"a": ("tokens", 4, 1, True)}, told(), received="a").broken != []


def test_a_second_row_and_another_account_are_said() -> None:
    assert compared({"a": ("tokens", 10, 2, False)}, told(), received="a").broken == [
        "a (tokens) has 2 rows of tokens"
    ]
    assert len(compared({"a": ("units", 10, 1, False)}, told(), received="a").broken) == 1


def test_a_charge_for_what_the_upstream_never_had_is_doubled() -> None:
    figures = compared({"b": ("tokens", 7, 1, False)}, told(), received="a")
    assert figures.doubled == 7
    assert "b was charged 7 and never asked of the upstream" in figures.broken


def test_an_answer_the_upstream_never_gave_is_said() -> None:
    assert "x was answered and never asked of the upstream" in compared({}, received="x").broken


def test_what_nobody_received_is_counted_apart() -> None:
    figures = compared({}, told("a"), told("b", complete=False))
    assert (figures.unheard, figures.unheard_calls, figures.lost) == (10, 1, 0)


def test_the_table_shows_a_row_that_does_not_hold() -> None:
    row = ROWS["gateway_crashes"]
    held = Played.of(row, 3, 1.0, Figures(complete=1234))
    broken = Played.of(Row("x", "Something else", row.play, False, False, 1.0, 1, 1), 4, 1.0,
                       Figures(lost=5, broken=["it was lost"]))  # fmt: skip
    failed = Played.of(row, 5, 1.0, None, "FaultError: not at rest")
    text = as_markdown([held, broken, failed], {"on": "a machine"})
    assert [one.holds for one in (held, broken, failed)] == [True, False, False]
    assert "1,234" in text
    assert "- it was lost" in text
    assert "FaultError: not at rest" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
