"""Steps in a replay: which model a call would have been sent as, and what that had saved."""

from __future__ import annotations

from dataclasses import replace

from gateway.core.accounts.budgets import Budget
from gateway.core.accounts.replay.calls import StoredCall
from gateway.core.accounts.replay.fold import BudgetFold, Replayed
from gateway.core.accounts.steps import Step
from gateway.core.times import DAY_MS, HOUR_MS

FROM = 1_790_000_000_000
# What a call costs by each model's price; others have none.
COSTS = {"cheap": 10, "cheaper": 5, "Dear": 100}
HALF = Step(0.5, (("dear*", "cheap"),))
BUDGET = Budget(1, "money", "money", 300, "total", steps=(HALF,))


def call(
    hours: float, model: str = "dear-1", session: str = "", cost: int = 100, user: str = ""
) -> StoredCall:
    return StoredCall(FROM + round(hours * HOUR_MS), cost, 7, 1, user=user, model=model, session=session)


def replayed(budgets: list[Budget], *calls: StoredCall, **maxima: int) -> Replayed:
    folded = BudgetFold(budgets, FROM, FROM + 9 * DAY_MS, lambda _, model: COSTS.get(model), **maxima)
    for each in calls:
        folded.add(each)
    return folded.result()


def test_calls_are_substituted_from_a_part_of_the_amount_on() -> None:
    found = replayed([BUDGET], *[call(hour) for hour in range(5)])
    assert (found.refused, found.substituted, found.saved) == (0, 3, 270)
    [item] = found.items
    # As asked 500 had been used; 100, 100 and thrice 10 were.
    assert (item.substituted, item.saved, sum(day.used for day in item.by_day), item.least_amount) == (
        3,
        270,
        230,
        500,
    )


def test_a_call_that_does_not_fit_reaches_each_step_and_is_refused_where_none_fits() -> None:
    late = replace(BUDGET, amount=105, steps=(Step(1.0, HALF.models),))
    found = replayed([late], call(0, cost=100), call(1), call(2, "other"))
    assert (found.refused, found.substituted) == (2, 0)
    assert replayed([replace(late, amount=110)], call(0), call(1)).substituted == 1


def test_the_cheapest_priced_substitute_of_all_budgets_is_taken() -> None:
    other = Budget(2, "calls", "requests", 9, "total", steps=(Step(0.0, (("dear-1", "cheaper"),)),))
    free = Budget(3, "free", "requests", 9, "total", steps=(Step(0.0, (("dear-1", "unknown"),)),))
    found = replayed([replace(BUDGET, steps=(Step(0.0, HALF.models),)), other, free], call(0))
    assert [item.substituted for item in found.items] == [0, 1, 0]
    assert found.saved == 95


def test_a_running_session_keeps_its_model_for_an_hour_unless_a_step_switches() -> None:
    calls = [
        call(0, session="a"),
        call(0.1),
        call(0.5, session="a"),
        call(0.6, session="b"),
        call(1.4, session="a"),
    ]
    # The session keeps the model while it fits: of 300, 100 + 100 + 100 are used; then nothing else does.
    assert replayed([BUDGET], *calls[:3]).substituted == 0
    assert replayed([replace(BUDGET, amount=1_000, steps=(Step(0.2, HALF.models),))], *calls).substituted == 1
    late = [*calls, call(2.5, session="a")]
    assert replayed([replace(BUDGET, amount=1_000, steps=(Step(0.2, HALF.models),))], *late).substituted == 2
    switching = Step(0.2, HALF.models, switches=True)
    assert replayed([replace(BUDGET, amount=1_000, steps=(switching,))], *calls).substituted == 3


def test_a_session_keeps_its_model_in_any_case_of_names_and_a_trace_keeps_none() -> None:
    budget = replace(BUDGET, amount=1_000, steps=(Step(0.2, HALF.models),))
    for session, substituted in (("a", 0), ("0af7651916cd43dd8448eb211c80319c", 1)):
        calls = [call(hours, model, session) for hours, model in ((0, "dear-1"), (0.1, "x"), (0.2, "DEAR-1"))]
        assert replayed([budget], *calls).substituted == substituted


def test_budgets_that_only_count_have_no_steps() -> None:
    found = replayed([replace(BUDGET, enforce=False)], *[call(hour) for hour in range(5)])
    assert (found.refused, found.substituted) == (0, 0)


def test_owners_that_only_substitutes_met_use_a_budget_and_count_in_no_figure_of_its_owners() -> None:
    first = Budget(1, "all", "requests", 99, "total", steps=(Step(0.0, HALF.models),))
    each = Budget(2, "each", "money", 30, "total", model="cheap", each="user")
    calls = [call(at, user=f"u{at}") for at in range(5)]
    asked = call(6, "cheap", user="ada", cost=40)
    item = replayed([first, each], *calls, asked, owners_max=6).items[1]
    assert (item.suggestions, item.least_amount, item.refused) == ({"50": 40, "90": 40, "99": 40}, 40, 1)
    assert sum(day.used for day in item.by_day) == 50
    # One that an asked call meets later is an owner from then on, by what it asked for.
    later = replayed([first, each], *calls, call(6, "cheap", user="u0", cost=25)).items[1]
    assert (later.refused, later.least_amount) == (1, 25)
    # A substitute that no budget has room for leaves nothing behind.
    full = replace(each, amount=5)
    item = replayed([first, full], *calls, asked, owners_max=1).items[1]
    assert (item.substituted, item.least_amount) == (0, 40)
