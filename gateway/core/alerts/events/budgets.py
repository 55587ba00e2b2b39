"""Events of budgets."""

from gateway.core.alerts.events.event import Data, Event
from gateway.core.alerts.words import spoken

_FIELDS = (
    "budget_id budget:text organization_id organization:text each:text? account:text? unit:text"
    " currency:text? mode:text used:amount amount:amount remaining:amount percent:number threshold:number?"
    " interval:text? window:text length:text? time_zone:text window_start:time? resets_at:time?"
)
_MADE = "persistence/keeper/news.py"
_ONCE = (
    "an account and window; again of an amount that was raised, and of a rolling window that was freer since"
)


def _refused(data: Data) -> str:
    return " Its calls are refused." if data.get("mode") == "enforce" else ""


def _exhausted_at(data: Data) -> str:
    return spoken(data.get("exhausted_at"), data.get("time_zone"))


EVENTS = (
    Event(
        name="budget.threshold",
        title="{percent} % of a budget are used: {budget}",
        sentence="Of the budget {budget}, {so_much} are used, {percent} % or more.{again}",
        fields=_FIELDS,
        when="a part of a budget's amount that its `thresholds` name is used",
        once=f"a threshold, {_ONCE.removeprefix('an ')}",
        produced_by=_MADE,
    ),
    Event(
        name="budget.exceeded",
        title="A budget is used up: {budget}",
        sentence="Of the budget {budget}, {so_much} are used.{refused}{again}",
        fields=_FIELDS,
        when="the whole amount is used",
        once=_ONCE,
        produced_by=_MADE,
        words={"refused": _refused},
    ),
    Event(
        name="budget.forecast",
        title="A budget will not last: {budget}",
        sentence="At this pace the budget {budget} is used up on {exhausted_at}: {so_much} are used.{again}",
        fields=f"{_FIELDS} exhausted_at:time exhausted_local:time",
        when="at its pace a budget is [used up](../webhooks.md#seen-coming) before it resets",
        once="an account and window; of a rolling one, its length",
        produced_by=_MADE,
        words={"exhausted_at": _exhausted_at},
    ),
    Event(
        name="budget.reset",
        title="A budget has reset: {budget}",
        sentence="In the interval that has ended, {so_much} of the budget {budget} were used.{again}",
        fields=(
            "budget_id budget:text organization_id organization:text unit:text currency:text? used:amount"
            " amount:amount interval:text time_zone:text window_start:time resets_at:time"
        ),
        when="an interval of a budget has [ended](../webhooks.md#resets) that enforces, without `each`",
        once="an interval",
        produced_by=_MADE,
    ),
)
