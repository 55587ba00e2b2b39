"""What is due is billed to the cent over HTTP as well: tests of what is due, each command a request.

The clock of the store is moved. Movements are what the scripts would emit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pytest

from gateway.errors import Conflict, Unprocessable
from persistence.store import Store
from tests.admin.conftest import Api, api_of
from tests.persistence.april import April, at, opened
from tests.persistence.billing import test_due as due
from tests.persistence.billing import test_postpaid as postpaid
from tests.persistence.billing import test_terms as terms

# What was billed once, and what is due: a row of figures each.
FIGURES = (
    (due.test_tokens_beyond_a_plan_are_billed_however_its_cycle_ends, ("cancelled",)),
    (due.test_tokens_beyond_a_plan_are_billed_however_its_cycle_ends, ("to a plan that blocks",)),
    (due.test_tokens_are_billed_where_the_term_ends_inside_a_cycle, ()),
    (due.test_a_month_billed_ahead_and_made_void_after_its_days_came_back, (20, "153.67")),
    (due.test_days_of_an_invoice_that_was_given_back_are_given_back_once, ("note",)),
    (due.test_a_year_in_twelve_invoices_and_a_month_in_three, ()),
    (due.test_a_year_billed_ahead_leaves_its_use_to_the_months, ()),
    (due.test_a_year_is_billed_ahead_alone_and_its_use_by_month, ()),
    (due.test_a_top_up_is_billed_at_once_and_the_month_without_it, ()),
    (due.test_an_organization_is_kept_until_all_is_billed, ()),
    (due.test_credits_dated_before_what_was_invoiced_are_on_the_next, ()),
    (due.test_what_was_before_the_first_invoice_is_on_it, ()),
    (postpaid.test_what_is_used_beyond_the_balance_is_billed_and_filled_by_its_payment, ()),
    (terms.test_a_big_plans_tokens_are_not_had_for_the_price_of_a_day, ()),
    (due.test_thousandths_of_every_day_come_to_cents, ()),
)


METHODS = {"change": "PATCH", "delete": "DELETE"}


class Moved(April):
    """An April of which every command is a request to the Admin API."""

    api: Api

    async def do(
        self, resource: str, verb: str, row_id: int | None = None, **values: object
    ) -> dict[str, Any]:
        method, where = METHODS.get(verb, "POST"), f"{resource}/{row_id}"
        if resource == "organization-subscriptions" and verb == "change":
            method = "POST"
        if method == "POST":
            where = resource if verb == "create" else f"{where}/{verb}"
        answer = await self.api.call(method, where, {name: _plain(value) for name, value in values.items()})
        if answer.status == 409:
            raise Conflict(answer.json["detail"])
        if answer.status == 422:
            raise Unprocessable(errors=tuple((one["field"], one["detail"]) for one in answer.json["errors"]))
        assert answer.status in {200, 201, 204}, answer.raw
        return {name: READ.get(name, _same)(value) for name, value in (answer.json or {}).items()}


READ: dict[str, Callable[[Any], Any]] = {
    "total_amount": Decimal, "subtotal": Decimal, "period_start": date.fromisoformat,
    "period_end": date.fromisoformat,
}  # fmt: skip


def _same(value: Any) -> Any:
    return value


def _plain(value: object) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Decimal):
        return f"{value:f}"
    return value.isoformat() if isinstance(value, (date, datetime)) else value


@pytest.fixture
async def moved(admin_database: str, keeper_database: str) -> AsyncIterator[Moved]:
    class MovedStore(Store):
        def __init__(self, *given: Any, **said: Any) -> None:
            super().__init__(*given, lambda: made.now, **said)

    async with (
        opened(admin_database, at(3, 25), Moved, keeper_url=keeper_database) as made,
        api_of(admin_database, keeper_database, store=MovedStore) as made.api,
    ):

        async def push(_: Sequence[str]) -> Sequence[str]:
            """What waits is moved by `follow`."""
            return []

        made.api.counters.push = push  # type: ignore[method-assign]  # of this one alone
        yield made


@pytest.mark.parametrize(
    ("test", "given"), FIGURES, ids=[f"{test.__name__[5:]} {given}" for test, given in FIGURES]
)
async def test_over_http(moved: Moved, test: Any, given: tuple[object, ...]) -> None:
    await test(moved, *given)
