"""A document that is final says what was so then, whatever is set later."""

from __future__ import annotations

import asyncio
import base64
import csv
import hashlib
import io
import threading
from datetime import date, timedelta
from functools import partial

import psycopg
import pytest

from gateway.core.billing.document import InvoiceParty, Letterhead
from persistence.store import FontCoverage, Store
from tests.admin.conftest import Api, api_of
from tests.admin.test_invoices import acme, draft
from tests.in_turn import in_turn
from tests.waiting import eventually

OTHER = Letterhead(
    InvoiceParty("Somebody Else", ("1 Other Road",), "FR", "FR1"), notes=("Pay at once.",), due_days=3
)
ADDRESS = {"address": ["5 Main Road", "Springfield"], "country": "US", "tax_number": "US-77"}


async def test_seller_buyer_and_terms_are_copied(api: Api, admin_database: str, keeper_database: str) -> None:
    ids = await acme(api, **ADDRESS)
    made = await draft(api, ids)
    assert (made["seller"]["name"], made["buyer"]["address"], made["due_date"]) == (
        "Tollkeeper Ltd", ADDRESS["address"], None,
    )  # fmt: skip
    done = (await api.post(f"invoices/{made['id']}/finalize")).json
    final = date.fromisoformat(done["finalized_at"][:10])
    assert done["buyer"] == {"name": "Acme", **ADDRESS}
    assert done["seller"] == {
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


async def test_without_a_seller_nothing_becomes_final(
    api: Api, admin_database: str, keeper_database: str
) -> None:
    made = await draft(api, await acme(api))
    async with api_of(admin_database, keeper_database, Letterhead()) as nobody:
        refused = await nobody.post(f"invoices/{made['id']}/finalize")
        assert refused.status == 422
        assert [error["field"] for error in refused.json["errors"]] == ["seller"]
        assert (await nobody.get(f"invoices/{made['id']}")).json == made
    assert (await api.post(f"invoices/{made['id']}/finalize")).json["number"].endswith("-000001")


async def test_without_lines_nothing_becomes_final(api: Api) -> None:
    await acme(api)
    other = await api.make("organizations", name="Other")
    made = await draft(api, {"organization": other["id"]})
    refused = await api.post(f"invoices/{made['id']}/finalize")
    assert (refused.status, [error["field"] for error in refused.json["errors"]]) == (422, ["lines"])
    assert api.rows("SELECT count(*) FROM invoice_sequence") == [(0,)]


def han(text: str) -> str:
    return "".join(one for one in text if "\u4e00" <= one <= "\u9fff")


async def test_letters_that_no_font_has_keep_an_invoice_from_becoming_final(
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


async def test_letters_are_looked_for_while_nothing_is_held_and_others_are_served(
    api: Api, admin_database: str, keeper_database: str
) -> None:
    ids = await acme(api, address=["Ωμέγα 1"])
    made = await draft(api, ids)
    begun, go_on, asked = threading.Event(), threading.Event(), list[str]()

    def slow(text: str) -> str:
        asked.append(text)
        begun.set()
        assert go_on.wait(60)
        return ""

    async with api_of(
        admin_database, keeper_database, store=partial(Store, glyphs=FontCoverage(slow))
    ) as other:
        finalizing = asyncio.ensure_future(other.post(f"invoices/{made['id']}/finalize"))
        await eventually(begun.is_set)
        # Neither the flush of its partition waits, nor whoever charges it; and the keeper answers.
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


async def test_a_credit_note_names_its_invoice(api: Api) -> None:
    made = await draft(api, await acme(api))
    done = (await api.post(f"invoices/{made['id']}/finalize")).json
    named = [{"number": done["number"], "date": done["finalized_at"][:10]}]
    note = (await api.post(f"invoices/{made['id']}/credit-note")).json
    assert note["corrects"] == named
    final = (await api.post(f"invoices/{note['id']}/finalize")).json
    assert (final["corrects"], final["due_date"], final["seller"]) == (named, None, done["seller"])
    assert done["corrects"] == []


async def test_a_negative_sum_is_a_credit_note_of_the_invoices_that_billed_it(api: Api) -> None:
    ids = await acme(api)
    may = {"period_start": "2026-05-01", "period_end": "2026-06-01"}
    first = await draft(api, ids)
    first = (await api.post(f"invoices/{first['id']}/finalize")).json
    with psycopg.connect(api.url) as connection:
        # Units that a call took back after their invoice.
        connection.execute("UPDATE usage_tier SET quantity = quantity - 100 WHERE unit_price = 0.04")
    back = await draft(api, ids, **may)
    assert (back["kind"], back["corrects_id"], back["total_amount"]) == ("credit_note", None, "-4.80")
    assert (await api.post(f"invoices/{back['id']}/recompute")).status == 200
    final = (await api.post(f"invoices/{back['id']}/finalize")).json
    assert (final["kind"], final["status"], final["due_date"]) == ("credit_note", "finalized", None)
    assert [each["number"] for each in final["corrects"]] == [first["number"]]
    assert (await api.get("invoices?kind=credit_note")).json["items"] == [final]
    assert (await api.post(f"invoices/{final['id']}/credit-note")).status == 409
    # It has charges of its own: made void, they are owed again.
    assert (await api.post(f"invoices/{final['id']}/void")).json["status"] == "void"
    again = await draft(api, ids, **may)
    assert (again["kind"], again["total_amount"]) == ("credit_note", "-4.80")
    assert api.rows("SELECT * FROM invariant_owed") == []


@in_turn(
    "fields",
    [{"country": "QQ"}, {"country": "de"}, {"address": []}, {"address": ["a\nb"]}, {"tax_number": ""}],
)
async def test_what_invoices_say_of_a_customer_is_checked(api: Api, fields: dict[str, object]) -> None:
    refused = await api.post("organizations", {"name": "Acme", **fields})
    assert refused.status == 422
    assert refused.json["errors"][0]["field"].startswith(next(iter(fields)))


async def test_nothing_copied_can_be_changed(api: Api) -> None:
    made = await draft(api, await acme(api))
    await api.post(f"invoices/{made['id']}/finalize")
    for statement in (
        "UPDATE invoice SET document = NULL", "UPDATE invoice SET customer = 'x'",
        "UPDATE invoice_line SET service = 'x'",
    ):  # fmt: skip
        with psycopg.connect(api.url) as connection, pytest.raises(psycopg.errors.RestrictViolation):
            connection.execute(statement)


async def test_a_pdf_is_made_once(api: Api, admin_database: str, keeper_database: str) -> None:
    ids = await acme(api, **ADDRESS)
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


async def test_what_is_kept_is_only_added_to(api: Api) -> None:
    made = await draft(api, await acme(api))
    await api.post(f"invoices/{made['id']}/finalize")
    await api.get(f"invoices/{made['id']}.pdf")
    for statement in (
        "UPDATE invoice_document SET content = 'x'", "DELETE FROM invoice_document",
        "TRUNCATE invoice_document",
    ):  # fmt: skip
        with psycopg.connect(api.url) as connection, pytest.raises(psycopg.errors.RestrictViolation):
            connection.execute(statement)
    with psycopg.connect(api.url) as connection:
        connection.execute("ALTER TABLE invoice_document DISABLE TRIGGER append_only")
        connection.execute("UPDATE invoice_document SET content = 'x'")
    assert (await api.get(f"invoices/{made['id']}.pdf")).status == 503
