"""A price is set wrong: 100 a call, and not 1. It is amended, and all that counts the calls is right then."""

from __future__ import annotations

import csv
import io
import time
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock
from decimal import Decimal
from typing import Any

import pytest

from tests import plain_http
from tests.journey.budgets import Spender
from tests.journey.test_events import agrees, event, send, unbilled
from tests.stage import Stage
from tests.waiting import wait_until


def shown(stage: Stage, path: str) -> Any:
    status, found = stage.admin("GET", path)
    assert status == 200, found
    return found


def focus(stage: Stage, organization_id: int) -> Decimal:
    """What the FOCUS export has billed an organization."""
    today = datetime.now(UTC).date()
    span = f"from={today - timedelta(days=1)}T00:00:00Z&to={today + timedelta(days=1)}T00:00:00Z"
    answer = plain_http.get(
        f"{stage.admin_url}/admin/v1/usage/focus.csv?organization_id={organization_id}&{span}",
        headers={"authorization": f"Bearer {stage.admin_token}"},
    )
    rows = csv.DictReader(io.StringIO(answer.text))
    return sum((Decimal(row["BilledCost"]) for row in rows), Decimal(0))


def test_ten_calls_in_a_plan_cost_what_they_would_have(stage: Stage) -> None:
    spender = Spender(stage)
    name = f"wrong-{time.monotonic_ns()}"
    since = "2026-01-01T00:00:00Z"
    wrong = stage.make("prices", model=name, currency="USD", request="100", effective_from=since)
    month = spender.budget(100_000, interval="month")
    each = spender.budget(100_000, interval="total", each="user")
    spender.known(month, each)
    for _ in range(10):  # the first ones are refused until the price is known
        spender.until(200, user="ada", body={"model": name})
    assert {row["cost"] for row in spender.journal(10)} == {"100.00"}
    spender.comes_to(month, 1000)
    spender.comes_to(each, 1000)
    made = stage.amend(wrong, "typed wrong", request="1")
    assert (made["amends_id"], made["request"]) == (wrong["id"], "1")
    status, refused = stage.admin("POST", f"/prices/{wrong['id']}/amend", {"request": "2", "reason": "again"})
    assert (status, refused["detail"]) == (
        409, f"This price was amended already, by price {made['id']}: amend that one."
    )  # fmt: skip
    # A call costs 1.00, once, wherever it is counted.
    spender.comes_to(month, 10)
    spender.comes_to(each, 10)
    wait_until(lambda: {row["cost"] for row in spender.journal(10)} == {"1.00"})
    usage = shown(stage, f"/usage?organization_id={spender.organization}&interval=none")["items"]
    assert sum(Decimal(row["cost"]) for row in usage) == 10
    assert focus(stage, spender.organization) == 10
    rated = shown(stage, f"/reratings?price_id={made['id']}")["items"]
    assert [(row["cost_before"], row["cost_after"], row["charged"]) for row in rated] == [
        ("100", "1", "0")
    ] * 10
    # The next call has the new price from its beginning.
    spender.until(200, user="ada", body={"model": name})
    assert spender.spent(11) == 11
    spender.comes_to(month, 11)
    assert agrees(stage)


def test_a_draft_follows_and_a_final_invoice_gets_a_credit_note(stage: Stage) -> None:
    """Five calls at cost are of the month before, and billed; five are of today, and on a draft."""
    name = f"billed-{time.monotonic_ns()}"
    since = "2026-01-01T00:00:00Z"
    wrong = stage.make("prices", model=name, currency="USD", request="100", effective_from=since)
    [own] = [
        each["id"]
        for each in shown(stage, "/business-models?limit=100")["items"]
        if each["meter"] == "pay_per_use"
    ]
    stage.make(
        "services", name=name, key=name, credits=0, service_type="Pay-As-You-Go", business_model_id=own,
        pricing={"at_cost": {"markup": "1"}},
    )  # fmt: skip
    owner = stage.make("organizations", name=name, tax_rate="0.20", country="DE")["id"]
    tenant = stage.make("tenants", name=name, organization_id=owner)["id"]
    first = datetime.now(UTC).date().replace(day=1)
    before = (first - timedelta(days=1)).replace(day=1)
    ago = datetime.now(UTC) - datetime.combine(before, clock(12), UTC)
    data = {"service": name, "model": name, "usage": {"input": 1}}
    sent = [event(f"tenant:{tenant}", data, when) for when in [ago] * 5 + [timedelta()] * 5]
    assert send(stage, *sent)["accepted"] == 10
    wait_until(lambda: Decimal(unbilled(stage, owner).get("usage", "0")) == 1000)

    def invoice(start: date, end: date) -> Any:
        period = {"period_start": start.isoformat(), "period_end": end.isoformat()}
        return stage.make("invoices", organization_id=owner, **period)

    def documents() -> list[Any]:
        found: list[Any] = shown(stage, f"/invoices?organization_id={owner}&limit=100")["items"]
        return sorted(found, key=lambda one: int(one["id"]))

    final = invoice(before, first)
    assert stage.admin("POST", f"/invoices/{final['id']}/finalize")[0] == 200
    draft = invoice(first, (first + timedelta(days=31)).replace(day=1))
    # With 20 % of tax.
    assert [one["total_amount"] for one in documents()] == ["600.00", "600.00"]
    stage.amend(wrong, "typed wrong", request="1")
    billed, follows, note = wait_until(lambda: len(found := documents()) == 3 and found)
    assert (billed["status"], billed["total_amount"]) == ("finalized", "600.00")
    assert (note["kind"], note["status"], note["total_amount"]) == ("credit_note", "finalized", "-594.00")
    assert (follows["id"], follows["status"], follows["total_amount"]) == (draft["id"], "draft", "6.00")
    corrected = stage.rows(f"SELECT document->'corrects'->0->>'number' FROM invoice WHERE id = {note['id']}")
    assert corrected == [(stage.rows(f"SELECT number FROM invoice WHERE id = {final['id']}")[0][0],)]
    assert agrees(stage)


def three_billed_calls(stage: Stage, tax_rate: str) -> tuple[Any, int, Any]:
    """The wrong price of three calls of the month before, their organization and its final invoice."""
    name = f"left-{time.monotonic_ns()}"
    since = "2026-01-01T00:00:00Z"
    wrong = stage.make("prices", model=name, currency="USD", request="100", effective_from=since)
    [own] = [
        each["id"]
        for each in shown(stage, "/business-models?limit=100")["items"]
        if each["meter"] == "pay_per_use"
    ]
    stage.make(
        "services", name=name, key=name, credits=0, service_type="Pay-As-You-Go", business_model_id=own,
        pricing={"at_cost": {"markup": "1"}},
    )  # fmt: skip
    owner = stage.make("organizations", name=name, tax_rate=tax_rate, country="DE")["id"]
    tenant = stage.make("tenants", name=name, organization_id=owner)["id"]
    first = datetime.now(UTC).date().replace(day=1)
    before = (first - timedelta(days=1)).replace(day=1)
    ago = datetime.now(UTC) - datetime.combine(before, clock(12), UTC)
    data = {"service": name, "model": name, "usage": {"input": 1}}
    assert send(stage, *[event(f"tenant:{tenant}", data, ago) for _ in range(3)])["accepted"] == 3
    wait_until(lambda: Decimal(unbilled(stage, owner).get("usage", "0")) == 300)
    final = stage.make(
        "invoices", organization_id=owner, period_start=before.isoformat(), period_end=first.isoformat()
    )
    assert stage.admin("POST", f"/invoices/{final['id']}/finalize")[0] == 200
    return wrong, owner, shown(stage, f"/invoices/{final['id']}")


def notes(stage: Stage, owner: int) -> Any:
    found = shown(stage, f"/invoices?organization_id={owner}&kind=credit_note&limit=100")["items"]
    return sorted(found, key=lambda note: int(note["id"]))


@pytest.mark.parametrize(
    ("tax_rate", "billed", "amended", "left"),
    [
        # Three calls at 100 each, right at 2.50 each: 300 - 7.50 = 292.50 is given back.
        ("0", "300.00", "-292.50", "-7.50"),
        # With 19 % of tax: 57.00 of 300.00; 55.575 of 292.50, which is 55.58; 57.00 - 55.58 = 1.42.
        ("0.19", "357.00", "-348.08", "-8.92"),
    ],
)
def test_note_by_hand_gives_back_what_the_note_of_an_amended_price_leaves(
    stage: Stage, tax_rate: str, billed: str, amended: str, left: str
) -> None:
    wrong, owner, final = three_billed_calls(stage, tax_rate)
    path = f"/invoices/{final['id']}"
    assert final["total_amount"] == billed
    stage.amend(wrong, "typo", request="2.5")
    [note] = wait_until(lambda: notes(stage, owner))
    assert (note["status"], note["total_amount"]) == ("finalized", amended)
    status, refused = stage.admin("POST", f"{path}/void")
    assert (status, refused["detail"]) == (409, "A credit note gives this invoice back already.")
    lines = [{"position": 1, "amount": "200"}]
    status, refused = stage.admin("POST", f"{path}/credit-note", {"lines": lines})
    assert (status, refused["errors"][0]["message"]) == (422, "7.50 is left of it, not 200"), refused
    status, draft = stage.admin("POST", f"{path}/credit-note", {})
    assert (status, draft["total_amount"]) == (200, left), draft
    assert stage.admin("POST", f"/invoices/{draft['id']}/finalize")[0] == 200
    status, refused = stage.admin("POST", f"{path}/credit-note", {})
    assert (status, refused["detail"]) == (409, "All of this invoice was given back already.")
    assert agrees(stage)


@pytest.mark.parametrize(
    ("tax_rate", "by_hand", "noted", "amended"),
    [
        # 300 is billed and 7.50 is right: of the 292.50, 42.50 is left after 250, and nothing after 300.
        ("0", "250", "-250.00", ["-42.50"]),
        ("0", "300", "-300.00", []),
        # With 19 % of tax: 250 + 47.50; 42.50 + 8.075, which is 8.08.
        ("0.19", "250", "-297.50", ["-50.58"]),
    ],
)
def test_note_of_an_amended_price_gives_back_what_a_note_by_hand_leaves(
    stage: Stage, tax_rate: str, by_hand: str, noted: str, amended: list[str]
) -> None:
    wrong, owner, final = three_billed_calls(stage, tax_rate)
    lines = [{"position": 1, "amount": by_hand}]
    status, draft = stage.admin("POST", f"/invoices/{final['id']}/credit-note", {"lines": lines})
    assert (status, draft["total_amount"]) == (200, noted), draft
    assert stage.admin("POST", f"/invoices/{draft['id']}/finalize")[0] == 200
    stage.amend(wrong, "typo", request="2.5")
    corrected = f"SELECT FROM charge WHERE organization_id = {owner} AND fact LIKE 'noted:%'"
    wait_until(lambda: stage.rows(corrected))
    assert [note["total_amount"] for note in notes(stage, owner)] == [noted, *amended]
    assert unbilled(stage, owner) == {}
    assert agrees(stage)


def test_note_by_hand_stays_a_draft_when_a_note_of_an_amended_price_leaves_less(stage: Stage) -> None:
    wrong, owner, final = three_billed_calls(stage, "0")
    status, draft = stage.admin("POST", f"/invoices/{final['id']}/credit-note", {})
    assert (status, draft["total_amount"]) == (200, "-300.00"), draft
    stage.amend(wrong, "typo", request="2.5")
    wait_until(lambda: [note["total_amount"] for note in notes(stage, owner)] == ["-300.00", "-292.50"])
    status, refused = stage.admin("POST", f"/invoices/{draft['id']}/finalize")
    assert (status, refused["detail"]) == (
        409, "Another credit note has given back some of these lines since: delete this draft and draft a new one."
    )  # fmt: skip
    assert agrees(stage)
