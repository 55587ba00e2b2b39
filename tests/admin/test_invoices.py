"""Invoices through the API: drafts, finalized ones, documents, and everything that is refused."""

from __future__ import annotations

import asyncio
import base64
import csv
import hashlib
import io
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from psycopg import errors

from gateway.admin.application import build
from gateway.admin.http.guard import ROOM
from gateway.core.billing.document import InvoiceParty, Letterhead
from persistence import engine as engines
from persistence.font_coverage import FontCoverage
from persistence.store import Store
from tests.admin.conftest import ADMIN, READONLY, Api, api_of, ports_over
from tests.connections import connected
from tests.waiting import HUNG_S, eventually

APRIL = {"period_start": "2026-04-01", "period_end": "2026-05-01"}
USES = """
INSERT INTO feature_usage (organization_id, tenant_id, feature_id, "timestamp", usage_amount, spend,
                           spent_after, epoch, seq, request_id, feature_version)
SELECT %(organization)s, %(tenant)s, %(service)s, '2026-04-10T12:00:00Z', 100, 0,
       0, 1, n, gen_random_uuid(), '=1+1'
  FROM generate_series(1, %(count)s) AS n"""
NEW_LINE = """
INSERT INTO invoice_line (invoice_id, position, kind, description, quantity, unit_price, amount)
SELECT id, 99, 'usage', 'x', 1, 1, 1 FROM invoice"""
ROLL_UP = """
INSERT INTO usage_daily (organization_id, tenant_id, service_id, day, requests, usage_amount)
VALUES (%(organization)s, %(tenant)s, %(service)s, '2026-04-10', %(count)s, %(count)s * 100)"""
PRICED = """
INSERT INTO usage_tier (organization_id, tenant_id, service_id, day, unit_price, first_unit, quantity)
SELECT %(organization)s, %(tenant)s, %(service)s, '2026-04-10', price, first, units
  FROM (VALUES (0.05, 0, least(1000, %(count)s * 100)), (0.04, 1000, greatest(0, %(count)s * 100 - 1000)))
       AS k (price, first, units) WHERE units > 0"""


class SlowUses:
    """A store whose uses come when `go` says so."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.begun = asyncio.Semaphore(0)
        self.go = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def within(self, organization_id: int | None) -> SlowUses:
        assert organization_id is None  # the admin's
        return self

    async def usage(self, invoice_id: int) -> AsyncIterator[bytes]:
        self.begun.release()
        await self.go.wait()
        yield b""


async def acme(api: Api, **more: Any) -> dict[str, int]:
    """An organization that used 1,200 Pay-Per-Use units in April."""
    organization = await api.make("organizations", name="Acme", tax_rate="0.20", **more)
    tenant = await api.make("tenants", name="web", organization_id=organization["id"])
    model = (await api.get("business-models?name=Pay-Per-Use")).json["items"][0]["id"]
    service = await api.make(
        "services", name="Rerank", key="rerank", credits=0, service_type="Pay-As-You-Go",
        business_model_id=model,
        pricing={"tiers": [{"up_to": 1000, "unit_price": "0.05"}, {"up_to": None, "unit_price": "0.04"}]},
    )  # fmt: skip
    ids = {"organization": organization["id"], "tenant": tenant["id"], "service": service["id"]}
    with connected(api.url) as connection:
        for statement in (USES, ROLL_UP, PRICED):
            connection.execute(statement, ids | {"count": 12})
        connection.execute("UPDATE organization SET spend_last_seq = 12 WHERE id = %s", (organization["id"],))
    return ids


async def draft(api: Api, ids: dict[str, int], **period: Any) -> dict[str, Any]:
    return await api.make("invoices", organization_id=ids["organization"], **(APRIL | period))


async def test_draft_invoice_has_lines_and_no_number(api: Api) -> None:
    ids = await acme(api)
    made = await draft(api, ids)
    assert (made["status"], made["number"], made["kind"], made["customer"]) == (
        "draft",
        None,
        "invoice",
        "Acme",
    )
    assert [(line["quantity"], line["unit_price"], line["amount"]) for line in made["lines"]] == [
        (1000, "0.05", "50.00"), (200, "0.04", "8.00"), (1, "11.60", "11.60"),
    ]  # fmt: skip
    assert (made["subtotal"], made["tax"], made["total_amount"]) == ("58.00", "11.60", "69.60")
    assert (made["period_start"], made["period_end"]) == ("2026-04-01", "2026-05-01")
    listed = (await api.get(f"invoices?organization_id={ids['organization']}&status=draft")).json["items"]
    assert listed == [made]


async def test_finalizing_an_invoice_settles_the_accounts_and_assigns_an_invoice_number(api: Api) -> None:
    ids = await acme(api)
    made = await draft(api, ids)
    done = await api.post(f"invoices/{made['id']}/finalize")
    assert done.status == 200
    assert api.counters.closed == [ids["organization"]]
    year = done.json["finalized_at"][:4]
    assert (done.json["number"], done.json["status"]) == (f"{year}-000001", "finalized")
    again = await api.post(f"invoices/{made['id']}/finalize")
    assert again.status == 409
    for action in ("recompute", "finalize"):
        assert (await api.post(f"invoices/{made['id']}/{action}")).status == 409
    assert (await api.delete(f"invoices/{made['id']}")).status == 409
    assert (await api.get(f"invoices?number={year}-000001")).json["items"] == [done.json]


async def test_invoice_is_not_finalized_while_redis_and_database_accounts_disagree(api: Api) -> None:
    made = await draft(api, await acme(api))
    api.counters.unsettled = "The accounts do not agree."
    refused = await api.post(f"invoices/{made['id']}/finalize")
    assert (refused.status, refused.json["detail"]) == (409, "The accounts do not agree.")
    assert (await api.get(f"invoices/{made['id']}")).json["status"] == "draft"


async def test_a_finalized_invoice_is_immutable_even_to_sql(api: Api) -> None:
    made = await draft(api, await acme(api))
    await api.post(f"invoices/{made['id']}/finalize")
    await api.get(f"invoices/{made['id']}.pdf")
    with connected(api.url, autocommit=True) as connection:
        for statement in (
            "UPDATE invoice SET total_amount = 0", "UPDATE invoice SET status = 'draft'",
            "UPDATE invoice SET document = NULL", "UPDATE invoice SET customer = 'x'", "DELETE FROM invoice",
            "UPDATE invoice_line SET amount = 0", "UPDATE invoice_line SET service = 'x'",
            "DELETE FROM invoice_line", NEW_LINE, "DELETE FROM invoice_basis", "TRUNCATE invoice_line",
            "UPDATE charge SET amount = 0", "UPDATE charge SET invoice_id = NULL", "DELETE FROM charge",
            "TRUNCATE charge CASCADE", "UPDATE invoice_document SET content = 'x'",
            "DELETE FROM invoice_document", "TRUNCATE invoice_document",
        ):  # fmt: skip
            with pytest.raises(errors.RestrictViolation):
                connection.execute(statement)
        connection.execute("ALTER TABLE invoice_document DISABLE TRIGGER append_only")
        try:
            connection.execute("UPDATE invoice_document SET content = 'x'")
        finally:
            connection.execute("ALTER TABLE invoice_document ENABLE TRIGGER append_only")
    assert (await api.get(f"invoices/{made['id']}.pdf")).status == 503


async def test_invoice_periods_of_an_organization_never_overlap(api: Api) -> None:
    ids = await acme(api)
    await draft(api, ids)
    for start, end, status in (
        ("2026-04-30", "2026-05-31", 409), ("2026-03-01", "2026-04-02", 409),
        ("2026-05-01", "2026-06-01", 201), ("2026-03-01", "2026-04-01", 201),
    ):  # fmt: skip
        sent = {"organization_id": ids["organization"], "period_start": start, "period_end": end}
        assert (await api.post("invoices", sent)).status == status
    other = await api.make("organizations", name="Other")
    made = await api.make("invoices", organization_id=other["id"], **APRIL)
    assert (made["lines"], made["total_amount"]) == ([], "0.00")


async def test_invoice_with_a_credit_note_is_voided_only_after_the_note_is_deleted(api: Api) -> None:
    ids = await acme(api)
    made = await draft(api, ids)
    assert (await api.post(f"invoices/{made['id']}/void")).status == 409
    assert (await api.post(f"invoices/{made['id']}/credit-note")).status == 409
    await api.post(f"invoices/{made['id']}/finalize")
    note = (await api.post(f"invoices/{made['id']}/credit-note")).json
    assert (note["kind"], note["corrects_id"], note["total_amount"]) == ("credit_note", made["id"], "-69.60")
    assert (await api.post(f"invoices/{made['id']}/void")).status == 409
    assert (await api.delete(f"invoices/{note['id']}")).status == 204
    void = await api.post(f"invoices/{made['id']}/void")
    assert (void.json["status"], void.json["total_amount"]) == ("void", "69.60")
    assert (await draft(api, ids))["total_amount"] == "69.60"


async def test_finalized_invoice_has_pdf_and_csv_documents(api: Api) -> None:
    ids = await acme(api)
    made = await draft(api, ids)
    where = f"invoices/{made['id']}"
    done = (await api.post(f"{where}/finalize")).json
    pdf = await api.get(f"{where}.pdf")
    assert (pdf.status, pdf.headers["Content-Type"]) == (200, "application/pdf")
    assert pdf.raw.startswith(b"%PDF-")
    assert f'invoice-{done["number"]}.pdf"' in pdf.headers["Content-Disposition"]
    lines = list(csv.DictReader(io.StringIO((await api.get(f"{where}.csv")).raw.decode())))
    assert [(row["kind"], row["quantity"], row["amount"], row["currency"]) for row in lines] == [
        ("usage", "1000", "50.00", "USD"), ("usage", "200", "8.00", "USD"), ("tax", "1", "11.60", "USD"),
    ]  # fmt: skip
    reader = api.acting_as(READONLY)
    assert (await reader.get(f"{where}.pdf")).status == 200
    assert (await api.acting_as(None).get(f"{where}.pdf")).status == 401


async def test_invoice_usage_csv_lists_every_use_behind_the_invoice(api: Api) -> None:
    ids = await acme(api)
    made = await draft(api, ids)
    await api.post(f"invoices/{made['id']}/finalize")
    answer = await api.get(f"invoices/{made['id']}/usage.csv")
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.raw.decode())))
    assert sum(Decimal(row["amount"] or 0) for row in rows) == Decimal("69.60")
    uses = [row for row in rows if row["kind"] == "units"]
    assert sum(int(use["quantity"]) for use in uses) == 1_200
    assert {use["service"] for use in uses} == {"rerank"}
    assert uses[0]["timestamp"] == "2026-04-10T12:00:00Z"
    known = api.rows("SELECT request_id::text FROM feature_usage")
    assert {use["request_id"] for use in uses} == {request_id for (request_id,) in known}
    # What callers wrote is never a formula.
    assert {use["feature_version"] for use in uses} == {"'=1+1"}


async def test_invoice_usage_download_is_503_when_too_many_downloads_run_at_once(api: Api) -> None:
    made = await draft(api, await acme(api))
    engine = engines.create(api.url)
    ports = ports_over(engine, api.counters)
    slow = SlowUses(ports.store)
    async with TestClient(TestServer(build(replace(ports, store=slow)))) as client:  # type: ignore[arg-type]  # most of a store

        async def read() -> int:
            async with client.get(
                f"/admin/v1/invoices/{made['id']}/usage.csv", headers={"Authorization": f"Bearer {ADMIN}"}
            ) as answer:
                await answer.read()
                return answer.status

        reading = [asyncio.create_task(read()) for _ in range(ROOM.staff_max + ROOM.waiting_max + 1)]
        for _ in range(ROOM.staff_max):
            await asyncio.wait_for(slow.begun.acquire(), 30)
        done, others = await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
        assert [each.result() for each in done] == [503]
        slow.go.set()
        assert await asyncio.gather(*others) == [200] * len(others)
        assert await read() == 200
    await engine.dispose()


# --- final documents --------------------------------------------------------------------
# A document that is final says what was so then, whatever is set later.


OTHER = Letterhead(
    InvoiceParty("Somebody Else", ("1 Other Road",), "FR", "FR1"), notes=("Pay at once.",), due_days=3
)
CUSTOMERS_ADDRESS = {"address": ["5 Main Road", "Springfield"], "country": "US", "tax_number": "US-77"}


async def test_finalized_invoice_keeps_seller_buyer_and_terms_after_later_changes(
    api: Api, admin_database: str, keeper_database: str
) -> None:
    ids = await acme(api, **CUSTOMERS_ADDRESS)
    made = await draft(api, ids)
    assert (made["seller"]["name"], made["buyer"]["address"], made["due_date"]) == (
        "Tollkeeper Ltd", CUSTOMERS_ADDRESS["address"], None,
    )  # fmt: skip
    done = (await api.post(f"invoices/{made['id']}/finalize")).json
    final = date.fromisoformat(done["finalized_at"][:10])
    nothing = dict.fromkeys(("postal", "contact", "endpoint_id", "buyer_reference"))
    assert done["buyer"] == {"name": "Acme", **CUSTOMERS_ADDRESS, **nothing}
    assert done["seller"] == nothing | {
        "name": "Tollkeeper Ltd", "address": ["12 Gate Street"], "country": "GB", "tax_number": "GB123456789",
    }  # fmt: skip
    assert (done["notes"], done["due_date"]) == (["Thank you."], (final + timedelta(days=14)).isoformat())
    await api.patch(
        f"organizations/{ids['organization']}", {"name": "New", "country": None, "address": ["x"]}
    )
    await api.patch(f"tenants/{ids['tenant']}", {"name": "Renamed"})
    await api.patch(f"services/{ids['service']}", {"name": "Renamed"})
    async with api_of(admin_database, keeper_database, OTHER) as later:
        assert (await later.get(f"invoices/{made['id']}")).json == done
        text = (await later.get(f"invoices/{made['id']}.csv")).raw.decode()
    assert {row["service"] for row in csv.DictReader(io.StringIO(text))} == {"Rerank", ""}


async def test_invoice_is_not_finalized_without_a_seller(
    api: Api, admin_database: str, keeper_database: str
) -> None:
    made = await draft(api, await acme(api))
    async with api_of(admin_database, keeper_database, Letterhead()) as nobody:
        refused = await nobody.post(f"invoices/{made['id']}/finalize")
        assert refused.status == 422
        assert [error["field"] for error in refused.json["errors"]] == ["seller"]
        assert (await nobody.get(f"invoices/{made['id']}")).json == made
    assert (await api.post(f"invoices/{made['id']}/finalize")).json["number"].endswith("-000001")


def han(text: str) -> str:
    return "".join(one for one in text if "\u4e00" <= one <= "\u9fff")


async def test_invoice_with_a_character_missing_from_all_fonts_is_not_finalized(
    api: Api, admin_database: str, keeper_database: str
) -> None:
    ids = await acme(api, address=["東京都 1"])
    made = await draft(api, ids)
    looking = partial(Store, glyphs=FontCoverage(han))
    async with api_of(admin_database, keeper_database, store=looking) as other:
        refused = await other.post(f"invoices/{made['id']}/finalize")
        assert refused.status == 422
        [error] = refused.json["errors"]
        assert (error["field"], "東 (U+6771)" in error["message"]) == ("buyer.address", True)
        assert api.rows("SELECT count(*) FROM invoice_sequence") == [(0,)]
        await other.patch(f"organizations/{ids['organization']}", {"address": ["Tokyo 1"]})
        assert (await other.post(f"invoices/{made['id']}/finalize")).status == 200
        await other.patch(f"organizations/{ids['organization']}", {"name": "東"})
        note = (await other.post(f"invoices/{made['id']}/credit-note")).json
        refused = await other.post(f"invoices/{note['id']}/finalize")
        assert [error["field"] for error in refused.json["errors"]] == ["buyer.name"]
    assert (await api.post(f"invoices/{note['id']}/finalize")).status == 200


async def test_slow_font_check_while_finalizing_an_invoice_blocks_no_other_request(
    api: Api, admin_database: str, keeper_database: str
) -> None:
    ids = await acme(api, address=["Ωμέγα 1"])
    made = await draft(api, ids)
    begun, go_on, asked = threading.Event(), threading.Event(), list[str]()

    def slow(text: str) -> str:
        asked.append(text)
        begun.set()
        assert go_on.wait(HUNG_S)
        return ""

    async with api_of(
        admin_database, keeper_database, store=partial(Store, glyphs=FontCoverage(slow))
    ) as other:
        finalizing = asyncio.ensure_future(other.post(f"invoices/{made['id']}/finalize"))
        await eventually(begun.is_set)
        # The flush of its partition and the charges do not wait, and the keeper answers.
        held = (
            "select count(*) from pg_locks where locktype = 'advisory' and classid in (7800, 7803)"
            " and database = (select oid from pg_database where datname = current_database())"
        )
        assert api.rows(held) == [(0,)]
        assert (await other.get(f"invoices/{made['id']}")).json["status"] == "draft"
        go_on.set()
        assert (await finalizing).status == 200
        note = (await other.post(f"invoices/{made['id']}/credit-note")).json
        assert (await other.post(f"invoices/{note['id']}/finalize")).status == 200
    assert asked == ["Ωμέγα"], "what is known is not looked for again"


async def test_pdf_of_a_finalized_invoice_is_made_once_and_kept(
    api: Api, admin_database: str, keeper_database: str
) -> None:
    ids = await acme(api, **CUSTOMERS_ADDRESS)
    made = await draft(api, ids)
    where = f"invoices/{made['id']}.pdf"
    assert (await api.get(where)).status == 200
    assert api.rows("SELECT count(*) FROM invoice_document") == [(0,)]
    await api.post(f"invoices/{made['id']}/finalize")
    found = await asyncio.gather(*(api.get(where) for _ in range(4)))
    [first] = {answer.raw for answer in found}
    digest = hashlib.sha256(first)
    kept = api.rows("SELECT sha256 FROM invoice_document WHERE format = 'pdf'")
    assert kept == [(digest.hexdigest(),)]
    said = f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert {answer.headers["Repr-Digest"] for answer in found} == {said}
    await api.patch(f"organizations/{ids['organization']}", {"name": "New", "address": ["x"]})
    async with api_of(admin_database, keeper_database, OTHER) as later:
        assert (await later.get(where)).raw == first
    await api.post(f"invoices/{made['id']}/void")
    void = (await api.get(where)).raw
    assert void.startswith(b"%PDF-")
    assert void != first
    assert (await api.get(where)).raw == void
