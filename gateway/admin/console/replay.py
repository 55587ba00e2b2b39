"""What a budget in a form would have done lately: a replay of stored calls in sentences, and as a picture.

The picture has a column a day: what the budget's interval had used by the end of that day, against its amount.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import partial
from typing import Any, Final

from aiohttp import web

from gateway.admin.console.formatting import HEIGHT, amount, day, number
from gateway.admin.console.home import ConsoleShell, Posted, SignedInPerson
from gateway.admin.console.records import SCREEN, Records
from gateway.admin.http.guard import REQUEST_ID, in_thread
from gateway.admin.replay import check_replay, render_replay, while_connected
from gateway.core.accounts.administration import OWNER, Row
from gateway.core.accounts.intervals import HOUR, INTERVALS, window_bounds
from gateway.core.times import TimeZone, ms_of
from gateway.errors import Overloaded, TooManyRequests, Unprocessable

OWNERS_SHOWN: Final = 10
OF_BUDGET: Final = "budgets.0."
UNNAMED: Final = "this budget"
# What a replay assumes, in words; behind some is a day.
_ASSUMED = {
    "groups_now": "Members of groups are those of now.",
    "substitutes_accept": "Each substitute accepts each call, and uses as many tokens for it.",
    "steps_as_sent": "Calls that a step sent as another model, and whose own has no price, count as they were sent.",
    "traces_by_form": "Sessions that have the form of a trace's id are traces, whose calls keep no model.",
    "tags_since": "Calls have tags since {}.",
    "calls_since": "Calls are kept since {}.",
}


@dataclass(frozen=True, slots=True)
class DayColumn:
    """A day of the picture, of height 100: its use from `y` down, and whether calls were refused on it."""

    y: float
    height: float
    refused: int
    title: str


@dataclass(frozen=True, slots=True)
class ReplayPicture:
    """The days of a replay, and the place of the line of the amount; None where days are not compared with it."""

    columns: tuple[DayColumn, ...]
    line: float | None
    first: str
    last: str


async def budget_replay(
    desk: ConsoleShell, request: web.Request, signed: SignedInPerson, posted: Posted
) -> web.StreamResponse:
    """`POST /budgets/replay`: what the budget of an incomplete form would have done with the calls of 30 days."""
    try:
        budget = {"name": UNNAMED, **await Records(desk, SCREEN).typed(posted)}
        body = {"budgets": [budget], **({OWNER: budget[OWNER]} if OWNER in budget else {})}
        asked: Any = await check_replay(desk.ports.store, signed.actor, body, request[REQUEST_ID])
    except Unprocessable as error:
        wrong = [(name.removeprefix(OF_BUDGET), fault) for name, fault in error.errors]
        return desk.answer(request, signed, "replay.html", wrong=wrong)
    try:
        replayed = await while_connected(request, desk.ports.replay(asked, signed.actor.organization_id))
    except (Overloaded, TooManyRequests, Unprocessable) as error:
        return desk.answer(request, signed, "replay.html", wrong=[("", error.message)])
    answer: Any = await in_thread(render_replay, replayed)
    [item] = answer["items"]
    owner = await desk.whole.ports.store.get("organizations", int(str(asked[OWNER])))
    whole = {**asked["budgets"][0], "currency": owner["currency"]}
    return desk.answer(
        request, signed, "replay.html", wrong=(), replayed=answer, item=item, budget=whole, picture=picture(whole, item),
        amount=partial(amount, whole),
        assumed=list(map(in_words, answer["assumes"])), owners_shown=OWNERS_SHOWN,
    )  # fmt: skip


def in_words(assumed: str) -> str:
    name, _, since = assumed.partition(":")
    return _ASSUMED[name].format(day(date.fromisoformat(since)) if since else "")


def picture(budget: Row, item: Row) -> ReplayPicture:
    """Return the picture of a replayed budget."""
    days: Any = item["by_day"]
    has_line = budget.get("each") is None and _grows(budget)
    limit = Decimal(str(budget["amount"]))
    used = [*_used_by_the_end(budget, days)]
    top = max([*used, limit if has_line else Decimal(0)]) or Decimal(1)
    columns = []
    for row, sum_ in zip(days, used, strict=True):
        height = round(HEIGHT * float(sum_ / top), 3)
        refused = f", {number(row['refused'])} refused" if row["refused"] else ""
        title = f"{day(date.fromisoformat(row['day']))}: {sum_:f} used{refused}"
        columns.append(DayColumn(round(HEIGHT - height, 3), height, row["refused"], title))
    first, last = (day(date.fromisoformat(days[at]["day"])) for at in (0, -1))
    line = round(HEIGHT - HEIGHT * float(limit / top), 3) if has_line else None
    return ReplayPicture(tuple(columns), line, first, last)


def _grows(budget: Row) -> bool:
    """Return whether the use of a budget's interval grows from day to day: it is one of whole days."""
    return budget.get("interval") in INTERVALS and budget["interval"] != HOUR


def _used_by_the_end(budget: Row, days: Any) -> Iterator[Decimal]:
    """Yield the use of the interval by the end of each day; the day's own where no interval is of days."""
    begun, used, zone = -1, Decimal(0), TimeZone(str(budget["time_zone"]))
    for row in days:
        if _grows(budget):
            noon = datetime.combine(date.fromisoformat(row["day"]), time(12), zone).astimezone(UTC)
            start = window_bounds(
                str(budget["interval"]), str(budget["time_zone"]), int(str(budget["anchor_day"])), ms_of(noon)
            )[0]
            used = used if start == begun else Decimal(0)
            begun = start
        else:
            used = Decimal(0)
        used += Decimal(str(row["used"]))
        yield used
