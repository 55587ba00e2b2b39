"""The schedule drafts months that are over where the customer is, waits, finalizes; advance fees at once."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.background.timed.invoicing import Invoicing
from gateway.core.accounts.intervals import last_months
from gateway.core.billing.document import NO_LETTERHEAD, Letterhead
from gateway.core.billing.invoice_schedule import (
    CONFLICT,
    INCOMPLETE,
    NOT_AGREED,
    TOOK_TOO_LONG,
    SkipReason,
)
from persistence import engine
from persistence.font_coverage import FontCoverage
from persistence.schedule import Schedule
from persistence.store import Store
from tests.connections import connected
from tests.letterhead import LETTERHEAD
from tests.persistence.april import April, april, at, invoiced, plan
from tests.persistence.billing.test_due import act, customer
from tests.persistence.scenario import broken, rows_of
from tests.search import steps
from tests.tree import ROOT
from tests.waiting import eventually

__all__ = ["april"]

DONE_AT_LAST = 400
DRAFTS = "SELECT id FROM invoice WHERE status = 'draft'"


class Agreeing:
    """Accounts that agree, but for those that do not."""

    def __init__(self, *torn: int) -> None:
        self.torn = torn

    async def close_all(self, organization_ids: Sequence[int]) -> Mapping[int, SkipReason]:
        return {
            each: SkipReason(NOT_AGREED, "They differ.") for each in organization_ids if each in self.torn
        }


class Killed(BaseException):
    """The keeper is no more."""


@asynccontextmanager
async def keeper(
    april: April, *torn: int, letterhead: Letterhead = LETTERHEAD, glyphs: FontCoverage | None = None
) -> AsyncIterator[tuple[Invoicing, AsyncEngine]]:
    """One that has all organizations in one partition: so they are a batch."""
    pool = engine.create(april.url)
    store = Store(pool, lambda _: 7, lambda: april.now, letterhead=letterhead, glyphs=glyphs)
    due = Schedule(pool, store, 24, lambda: april.now)
    yield Invoicing(due, Agreeing(*torn), lambda *_, **__: None, finalize=True, at_once=4), pool
    await pool.dispose()


async def turn(april: April, *torn: int, keepers: int = 1, letterhead: Letterhead = LETTERHEAD) -> None:
    async def one() -> None:
        async with keeper(april, *torn, letterhead=letterhead) as (made, _):
            await made.turn()

    await asyncio.gather(*(one() for _ in range(keepers)))


def invoices(april: April) -> list[tuple[object, ...]]:
    return rows_of(april.url, "SELECT status, source, total_amount FROM invoice ORDER BY id")


def left(april: April) -> dict[object, object]:
    rows = rows_of(april.url, "SELECT id, invoicing_left_reason FROM organization WHERE deleted_at IS NULL")
    return {id_: reason for id_, reason in rows if reason is not None}


async def subscribed(april: April, **terms: Any) -> dict[str, int]:
    starter = await plan(april, "Starter", "29.00", 2_000_000)
    return await customer(april, starter, date(2026, 4, 1), None, **terms)


async def several(april: April, count: int) -> list[int]:
    """Organizations with the same subscription, in May."""
    starter = await plan(april, "Starter", "29.00", 2_000_000)
    made = [(await customer(april, starter, date(2026, 4, 1), None))["organization"] for _ in range(count)]
    await april.on(at(5, 1, 1))
    for organization in made:
        await april.charge(organization)
    return made


async def test_a_month_is_drafted_when_it_is_over_and_final_after_its_grace(april: April) -> None:
    ids = await subscribed(april)
    await april.on(at(5, 1, 1))
    await april.charge(ids["organization"])
    await turn(april)
    assert [row[0] for row in invoices(april)] == ["draft"]
    await april.on(at(5, 1, 23))
    await turn(april)
    assert [row[0] for row in invoices(april)] == ["draft"]
    await april.on(at(5, 2, 1))
    await turn(april, keepers=2)
    await turn(april)
    assert invoices(april) == [("finalized", None, Decimal(29))]
    assert left(april) == {}
    assert await broken(april.url) == []
    done = rows_of(april.url, "SELECT action FROM audit_log WHERE resource = 'invoices' ORDER BY id")
    assert done == [("create",), ("finalize",)]


async def test_a_month_is_over_when_it_is_where_the_customer_is(april: April) -> None:
    ids = await subscribed(april)
    await april.do("organizations", "change", ids["organization"], time_zone="America/Los_Angeles")
    await april.on(at(5, 1, 1))
    await april.charge(ids["organization"])
    await turn(april)
    assert invoices(april) == []
    await april.on(at(5, 1, 8))
    await turn(april)
    assert [row[0] for row in invoices(april)] == ["draft"]


async def test_month_is_over_by_the_zones_that_come_with_the_program(april: April) -> None:
    """By the law of 2026 Winnipeg's December begins at 05:00 of UTC; an older PostgreSQL says 06:00."""
    starter = await plan(april, "Starter", "29.00", 2_000_000)
    ids = await customer(april, starter, date(2026, 11, 1), None)
    await april.do("organizations", "change", ids["organization"], time_zone="America/Winnipeg")
    await april.on(at(12, 1, 1))
    await april.charge(ids["organization"])
    await april.on(at(12, 1, 4))
    await turn(april)
    assert invoices(april) == []
    await april.on(at(12, 1, 5))
    await turn(april)
    assert [row[0] for row in invoices(april)] == ["draft"]


def test_queries_name_no_time_zone_but_utc() -> None:
    """PostgreSQL has zones of another edition, so it gets the moments that are computed here."""
    named = dict[str, list[str]]()
    for path in (ROOT / "persistence").rglob("*"):
        if path.suffix in {".py", ".sql"} and "migrations" not in path.parts:
            zones = re.findall(r"AT TIME ZONE\s+(?!'UTC')\S+", path.read_text("utf-8"), re.IGNORECASE)
            named |= {path.name: zones} if zones else {}
    assert named == {}


# By the law of 2026, when November is over in a zone, and in UTC.
@pytest.mark.parametrize(
    ("zone", "over"),
    [
        ("America/Winnipeg", "2026-12-01T05:00:00+00:00"),
        ("America/Vancouver", "2026-12-01T07:00:00+00:00"),
        ("Africa/Casablanca", "2026-12-01T00:00:00+00:00"),
        ("Pacific/Kiritimati", "2026-12-01T00:00:00+00:00"),
        ("Mars/Olympus_Mons", "2026-12-01T00:00:00+00:00"),
    ],
)
def test_last_month_is_over_in_the_zone_and_in_utc(zone: str, over: str) -> None:
    since = datetime.fromisoformat(over)
    for now, until in ((since - timedelta(seconds=1), date(2026, 11, 1)), (since, date(2026, 12, 1))):
        (month,) = last_months([zone], now)
        assert (month.until, month.over <= now) == (until, True)
    assert month.over == since


async def test_a_fee_in_advance_is_billed_on_its_day_once(april: April) -> None:
    await subscribed(april, billing="advance", billing_interval="annual")
    await april.on(at(4, 1, 0))
    await turn(april, keepers=2)
    await turn(april)
    assert invoices(april) == [("finalized", "subscription_segment", Decimal(290))]


async def ahead(april: April, count: int) -> list[int]:
    """Organizations that pay in advance: a year and a month in turns."""
    starter = await plan(april, "Starter", "29.00", 2_000_000)
    every = ("annual", "monthly")
    begun = (starter, date(2026, 4, 1), None)
    made = [
        await customer(april, *begun, billing="advance", billing_interval=every[number % 2])
        for number in range(count)
    ]
    return [each["organization"] for each in made]


async def test_fees_in_advance_of_a_batch_are_what_each_alone_would_be(april: April) -> None:
    made = await ahead(april, 4)
    await april.on(at(4, 2))
    await april.do("invoices", "create", organization_id=made[0], source="subscription_segment")
    alone = await april.do("invoices", "create", organization_id=made[2], source="subscription_segment")
    await april.do("invoices", "finalize", alone["id"])
    await turn(april, keepers=2)
    await turn(april)
    said = (
        "SELECT status, source, period_start, period_end, total_amount, document - 'buyer', covers,"
        " due_date FROM invoice WHERE organization_id = %s"
    )
    year, month, same, other_month = (rows_of(april.url, said, [each]) for each in made)
    assert (year, month) == (same, other_month)
    assert [(each[3], each[4]) for each in (*year, *month)] == [
        (date(2027, 4, 1), Decimal(290)),
        (date(2026, 5, 1), Decimal(29)),
    ]
    assert (left(april), await broken(april.url)) == ({}, [])
    done = "SELECT action, count(*) FROM audit_log WHERE resource = 'invoices' GROUP BY 1 ORDER BY 1"
    assert rows_of(april.url, done) == [("create", 4), ("finalize", 4)]


async def test_fees_in_advance_of_many_ask_as_much_as_those_of_two(april: April) -> None:
    counts = []
    await april.on(at(4, 2))
    await rate(april, "0.745", date(2026, 4, 1))
    # A year and a month each.
    for count in (2, 10):
        for each in await ahead(april, count):
            await taxed(april, {"organization": each})
        async with keeper(april, letterhead=ABROAD) as (invoicing, pool):
            asked = _asked(pool)
            assert await invoicing.turn() == (count, 0)
            counts.append(asked[0])
    # Those of a batch by the same statements: one more organization is none more.
    assert counts[1] < counts[0] + 8


def _asked(pool: AsyncEngine) -> list[int]:
    """How many statements there were from now on."""
    asked = [0]

    def one(*_: object) -> None:
        asked[0] += 1

    event.listen(pool.sync_engine, "before_cursor_execute", one)
    return asked


async def test_a_month_that_gives_back_more_than_it_bills_is_issued_as_well(april: April) -> None:
    ids = await subscribed(april)
    await april.on(at(5, 1, 6))
    await invoiced(april, ids, date(2026, 4, 1), date(2026, 6, 1))
    await april.on(at(5, 12))
    await april.do("organization-subscriptions", "cancel", ids["subscription"], when="now")
    for day in (1, 2, 3):
        await april.on(at(7, day, 1))
        await turn(april)
    back = -(Decimal(29) * 20 / 31).quantize(Decimal("0.01"))
    assert invoices(april) == [("finalized", None, Decimal(58)), ("finalized", None, back)]
    assert rows_of(april.url, "SELECT kind FROM invoice ORDER BY id") == [("invoice",), ("credit_note",)]
    assert rows_of(april.url, "SELECT invoicing_left FROM organization") == [(None,)]


async def test_what_gives_back_more_than_it_bills_is_a_note_that_names_the_invoice(april: April) -> None:
    starter = await plan(april, "Starter", "29.00", 2_000_000)
    ids = await customer(april, starter, date(2026, 6, 1), None)
    await april.on(at(6, 1, 6))
    june = await invoiced(april, ids, date(2026, 6, 1), date(2026, 7, 1))
    await april.on(at(6, 11))
    await act(april, ids, "cancel", when="now")
    await april.on(at(8, 2, 1))
    await turn(april)
    noted = (
        "SELECT total_amount, payment_status, document->'corrects' FROM invoice WHERE kind = 'credit_note'"
    )
    [(total, status, corrects)] = rows_of(april.url, noted)
    # Ten of thirty days were supplied.
    assert (total, status) == (Decimal("-19.33"), None)
    assert [each["number"] for each in corrects] == [june["number"]]  # type: ignore[attr-defined]  # JSON


async def test_a_batch_says_what_each_invoice_alone_would(april: April) -> None:
    """Of two organizations alike, one is invoiced by the schedule and one by a person."""
    first, second = await several(april, 2)
    await april.on(at(5, 2, 1))
    period = {"period_start": date(2026, 4, 1), "period_end": date(2026, 5, 1)}
    made = await april.do("invoices", "create", organization_id=second, **period)
    await april.do("invoices", "finalize", made["id"])
    await turn(april)
    said = (
        "SELECT kind, status, currency, period_start, period_end, due_date, payment_status, total_amount,"
        " document - 'buyer', covers->>'since', finalized_at FROM invoice"
        " WHERE organization_id = %s"
    )
    assert rows_of(april.url, said, [first]) == rows_of(april.url, said, [second])
    lines = (
        "SELECT position, l.kind, description, quantity, unit_price, amount, exact, service, tax_rate"
        " FROM invoice_line AS l JOIN invoice AS i ON i.id = l.invoice_id"
        " WHERE organization_id = %s ORDER BY 1"
    )
    assert rows_of(april.url, lines, [first]) == rows_of(april.url, lines, [second])


async def test_a_keeper_that_dies_anywhere_leaves_nothing_twice_and_no_number_out(april: April) -> None:
    made = await several(april, 3)
    await april.on(at(5, 2, 1))
    for statements in steps(range(1, DONE_AT_LAST)):
        try:
            async with keeper(april) as (invoicing, pool):
                with _dies_after(pool, statements):
                    await invoicing.turn()
        except (Killed, BaseExceptionGroup):
            assert await broken(april.url) == []
        else:
            break
    else:
        pytest.fail("it never came to its end")
    found = rows_of(april.url, "SELECT organization_id, number, total_amount FROM invoice ORDER BY number")
    assert sorted(str(row[0]) for row in found) == sorted(map(str, made))
    assert [row[1] for row in found] == [f"2026-{number:06d}" for number in (1, 2, 3)]
    assert {row[2] for row in found} == {Decimal(29)}
    unbilled = "SELECT count(*) FROM charge WHERE invoice_id IS NULL AND period_start < '2026-05-01'"
    assert rows_of(april.url, unbilled) == [(0,)]


async def test_keepers_side_by_side_make_each_invoice_once(april: April) -> None:
    made = await several(april, 6)
    await april.on(at(5, 2, 1))
    await turn(april, keepers=3)
    numbers = rows_of(april.url, "SELECT organization_id, number FROM invoice ORDER BY number")
    assert sorted(str(row[0]) for row in numbers) == sorted(map(str, made))
    assert [row[1] for row in numbers] == [f"2026-{number:06d}" for number in range(1, 7)]


async def test_who_is_left_holds_up_nobody_and_is_said_by_reason(april: April) -> None:
    torn, taken, fine = await several(april, 3)
    overlaps = {"period_start": date(2026, 4, 10), "period_end": date(2026, 4, 20)}
    await april.do("invoices", "create", organization_id=taken, **overlaps)
    await april.on(at(5, 2, 1))
    await turn(april, torn)
    assert left(april) == {torn: NOT_AGREED, taken: CONFLICT}
    final = rows_of(april.url, "SELECT organization_id FROM invoice WHERE status = 'finalized'")
    assert final == [(fine,)]
    [(why,)] = rows_of(april.url, "SELECT invoicing_left FROM organization WHERE id = %s", [taken])
    assert "2026-04-10 to 2026-04-20" in str(why)
    await turn(april)
    assert left(april) == {taken: CONFLICT}
    # A person makes it: nothing is due, so nothing is left.
    await april.do("invoices", "delete", rows_of(april.url, DRAFTS)[0][0])
    month = {"period_start": date(2026, 4, 1), "period_end": date(2026, 5, 1)}
    made = await april.do("invoices", "create", organization_id=taken, **month)
    await april.do("invoices", "finalize", made["id"])
    await turn(april)
    assert left(april) == {}


ABROAD = replace(LETTERHEAD, accounting_currency="GBP", requires_rate=True)
SAID = "SELECT document->'accounting_tax' FROM invoice WHERE status = 'finalized' ORDER BY id"


async def rate(april: April, rate: str, day: date) -> None:
    await april.do(
        "accounting-rates", "create", currency="USD", accounting_currency="GBP", rate=Decimal(rate),
        published_on=min(day, april.now.date()), source="HMRC", effective_from=day,
        effective_to=day.replace(day=28),
    )  # fmt: skip


async def taxed(april: April, ids: dict[str, int]) -> None:
    await april.do(
        "tax-rates", "create", organization_id=ids["organization"], rate=Decimal("0.2"),
        effective_from=date(2026, 4, 1),
    )  # fmt: skip


async def test_a_month_in_another_currency_is_left_until_its_rate_is_stated(april: April) -> None:
    ids = await subscribed(april)
    await taxed(april, ids)
    await april.on(at(5, 2, 1))
    await april.charge(ids["organization"])
    await turn(april, letterhead=ABROAD)
    assert left(april) == {ids["organization"]: INCOMPLETE}
    await rate(april, "0.745", date(2026, 5, 1))
    await turn(april, letterhead=ABROAD)
    assert left(april) == {}
    # A fifth of 29.00.
    said = {"currency": "GBP", "rate": "0.745", "published_on": "2026-05-01", "source": "HMRC"}
    assert rows_of(april.url, SAID) == [(said | {"amount": "4.32"},)]


async def cancelled(april: April, letterhead: Letterhead) -> dict[str, int]:
    """Return the ids of a customer who cancels a month that is billed; leave the day of its credit note."""
    ids = await subscribed(april)
    await taxed(april, ids)
    await april.on(at(5, 1, 6))
    async with keeper(april, letterhead=letterhead) as (_, pool):
        april.store = Store(pool, lambda _: 7, lambda: april.now, letterhead=letterhead)
        await invoiced(april, ids, date(2026, 4, 1), date(2026, 6, 1))
        await april.on(at(5, 12))
        await act(april, ids, "cancel", when="now")
    await april.on(at(7, 2, 1))
    return ids


async def test_a_month_that_gives_back_has_the_rate_of_its_invoice(april: April) -> None:
    await rate(april, "0.5", date(2026, 5, 1))
    await cancelled(april, ABROAD)  # whose own day has no rate
    await turn(april, letterhead=ABROAD)
    assert left(april) == {}
    back = "SELECT kind, -(total_amount - total_amount / 1.2) * 0.5 FROM invoice ORDER BY id DESC LIMIT 1"
    [(kind, half)] = rows_of(april.url, back)
    first, second = (each for (each,) in rows_of(april.url, SAID))
    assert kind == "credit_note"
    assert (first["rate"], second["rate"]) == ("0.5", "0.5")  # type: ignore[index]  # JSON
    tax = Decimal(second["amount"])  # type: ignore[index]  # JSON
    assert abs(tax + Decimal(str(half))) < Decimal("0.011")


async def test_a_month_that_gives_back_without_a_rate_of_its_invoice_waits_for_its_own(april: April) -> None:
    ids = await cancelled(april, LETTERHEAD)
    await turn(april, letterhead=ABROAD)
    assert left(april) == {ids["organization"]: INCOMPLETE}
    await rate(april, "0.9", date(2026, 7, 1))
    await turn(april, letterhead=ABROAD)
    assert left(april) == {}
    first, second = (each for (each,) in rows_of(april.url, SAID))
    assert (first, second["rate"]) == (None, "0.9")  # type: ignore[index]  # JSON


async def test_without_a_seller_all_are_drafts_that_say_so(april: April) -> None:
    made = await several(april, 2)
    await april.on(at(5, 2, 1))
    await turn(april, letterhead=NO_LETTERHEAD)
    assert left(april) == dict.fromkeys(made, INCOMPLETE)
    assert [row[0] for row in invoices(april)] == ["draft", "draft"]
    assert await broken(april.url) == []
    await turn(april)
    assert (left(april), [row[0] for row in invoices(april)]) == ({}, ["finalized"] * 2)


async def test_letters_of_a_batch_are_looked_for_at_once_and_leave_none_but_their_own(april: April) -> None:
    names = {"Ωμέγα": "", "東京": "東京", "Жук": "", "Acme": ""}
    made = dict(zip(await several(april, len(names)), names, strict=True))
    for organization, name in made.items():
        await april.do("organizations", "change", organization, name=f"{name} {organization}")
    await april.on(at(5, 2, 1))
    asked: list[str] = []

    def missing(text: str) -> str:
        asked.append(text)
        return "東京"

    async with keeper(april, glyphs=FontCoverage(missing)) as (invoicing, _):
        await invoicing.turn()
        await invoicing.turn()
    [without] = [organization for organization, name in made.items() if name == "東京"]
    assert left(april) == {without: INCOMPLETE}
    final = rows_of(april.url, "SELECT organization_id FROM invoice WHERE status = 'finalized' ORDER BY id")
    assert {organization for (organization,) in final} == made.keys() - {without}
    assert asked == ["Ωμέγα 東京 Жук"]


async def test_letters_of_a_batch_of_many_days_are_looked_for_at_once(april: April) -> None:
    """Fees up to one day are drafted together: here each is up to another one."""
    names = ["Ωμέγα", "Жук", "Мир", "Δέλτα", "Σίγμα", "Лес"]
    starter, made = await plan(april, "Starter", "29.00", 2_000_000), list[int]()
    for day, name in enumerate(names, 1):
        ids = await customer(april, starter, date(2026, 4, day), None, billing="advance")
        await april.do("organizations", "change", ids["organization"], name=name)
        made.append(ids["organization"])
    await april.on(at(4, len(names), 1))
    asked: list[str] = []
    async with keeper(april, glyphs=FontCoverage(lambda text: asked.append(text) or "")) as (invoicing, _):
        assert await invoicing.turn() == (len(names), 0)
    assert len(asked) == 1
    assert set(asked[0].split()) == set(names)
    final = "SELECT organization_id FROM invoice WHERE status = 'finalized' ORDER BY id"
    assert sorted(each for (each,) in rows_of(april.url, final)) == made


async def test_one_whose_letters_are_never_known_is_left_and_others_are_made(april: April) -> None:
    made = await several(april, 2)
    await april.do("organizations", "change", made[0], name="Ωμέγα")
    await april.on(at(5, 2, 1))

    class Forgetful(FontCoverage):
        async def look(self, texts: Iterable[str]) -> None:
            """What is found is not kept."""

    async with keeper(april, glyphs=Forgetful(str)) as (invoicing, _):
        assert await invoicing.turn() == (1, 1)
    assert list(left(april)) == made[:1]


async def test_one_whose_statement_takes_too_long_is_left_and_others_are_made(april: April) -> None:
    slow, fine = await several(april, 2)
    await april.on(at(5, 2, 1))
    april.rows(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF current_setting('statement_timeout') <> '0' THEN"
        " PERFORM pg_cancel_backend(pg_backend_pid()), pg_sleep(60); END IF; RETURN NEW; END $$"
    )
    april.rows(
        "CREATE TRIGGER slow BEFORE UPDATE ON invoice FOR EACH ROW"
        f" WHEN (NEW.status = 'finalized' AND NEW.organization_id = {slow:d}) EXECUTE FUNCTION slow()"
    )
    await turn(april)
    assert left(april) == {slow: TOOK_TOO_LONG}
    final = "SELECT organization_id FROM invoice WHERE status = 'finalized'"
    assert rows_of(april.url, final) == [(fine,)]


async def test_one_that_a_person_invoices_now_is_waited_for(april: April) -> None:
    busy, free = await several(april, 2)
    await april.on(at(5, 2, 1))
    with connected(april.url) as person:
        person.execute("SELECT pg_advisory_xact_lock(7803, hashint8(%s))", [busy])
        turning = asyncio.create_task(turn(april))
        final = "SELECT organization_id FROM invoice WHERE status = 'finalized'"
        await eventually(lambda: rows_of(april.url, final) == [(free,)])
        person.rollback()
    await turning
    assert [row[0] for row in invoices(april)] == ["finalized"] * 2


@contextmanager
def _dies_after(pool: AsyncEngine, statements: int) -> Iterator[None]:
    asked = 0

    def one(*_: object) -> None:
        nonlocal asked
        asked += 1
        if asked > statements:
            raise Killed

    for name in ("before_cursor_execute", "commit"):
        event.listen(pool.sync_engine, name, one)
    yield
