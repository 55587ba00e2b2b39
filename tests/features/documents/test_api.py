"""XML of final invoices: made once, kept with its digest, refused with what is missing."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from facturx import get_xml_from_pdf

from gateway.core.billing.document import InvoiceParty, Letterhead
from tests.admin.conftest import Api, api_of
from tests.admin.test_invoices import acme, draft

ADDRESS = {"address": ["5 Main Road"], "country": "FR", "tax_number": "FR40303265045"}


async def final(api: Api, **more: Any) -> dict[str, Any]:
    ids = await acme(api, currency="EUR", **(ADDRESS | more))
    made = await draft(api, ids)
    done: dict[str, Any] = (await api.post(f"invoices/{made['id']}/finalize")).json
    return done


async def test_invoice_xml_is_generated_once_and_stays_identical_after_the_invoice_is_voided(
    api: Api, admin_database: str, keeper_database: str
) -> None:
    made = await final(api)
    where = f"invoices/{made['id']}.xml"
    first = await api.get(where)
    assert (first.status, first.headers["Content-Type"]) == (200, "application/xml")
    said = f"sha-256=:{base64.b64encode(hashlib.sha256(first.raw).digest()).decode()}:"
    assert first.headers["Repr-Digest"] == said
    assert ET.fromstring(first.raw).tag.endswith("}CrossIndustryInvoice")
    ubl = (await api.get(f"{where}?format=ubl")).raw
    assert ET.fromstring(ubl).tag.endswith("}Invoice")
    pdf = (await api.get(f"invoices/{made['id']}.pdf")).raw
    assert get_xml_from_pdf(pdf, check_xsd=False) == ("factur-x.xml", first.raw)
    await api.patch(f"organizations/{made['organization_id']}", {"name": "New", "country": "DE"})
    other = Letterhead(InvoiceParty("Somebody Else", (), "ES", "ES1"))
    async with api_of(admin_database, keeper_database, other) as later:
        assert (await later.get(where)).raw == first.raw
        assert (await later.get(f"{where}?format=ubl")).raw == ubl
    kept = api.rows("SELECT format, sha256 FROM invoice_document ORDER BY format")
    assert [row[0] for row in kept] == ["factur-x", "pdf", "ubl"]
    assert kept[0][1] == hashlib.sha256(first.raw).hexdigest()
    # A void one cannot be told by its XML: what was given out stays, nothing is made any more.
    await api.post(f"invoices/{made['id']}/void")
    assert (await api.get(where)).raw == first.raw


async def test_accept_header_or_format_parameter_selects_the_xml_format(api: Api) -> None:
    where = f"invoices/{(await final(api))['id']}.xml"
    accepted = await api.call("GET", where, headers={"Accept": "application/vnd.oasis.ubl+xml"})
    assert (accepted.raw, accepted.headers["Vary"]) == ((await api.get(f"{where}?format=ubl")).raw, "Accept")
    assert (await api.get(f"{where}?format=factur-x")).raw == (await api.get(where)).raw
    refused = await api.get(f"{where}?format=edifact")
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "format")


async def test_xml_of_a_draft_or_void_invoice_is_refused(api: Api) -> None:
    ids = await acme(api, **ADDRESS)
    made = await draft(api, ids)
    where = f"invoices/{made['id']}.xml"
    assert (await api.get(where)).status == 409
    await api.post(f"invoices/{made['id']}/finalize")
    await api.post(f"invoices/{made['id']}/void")
    assert (await api.get(where)).status == 409
    assert api.rows("SELECT count(*) FROM invoice_document") == [(0,)]


@pytest.mark.parametrize(("more", "field"), [({"country": None}, "buyer.country")])
async def test_invoice_xml_is_422_naming_a_missing_en_16931_field_while_the_pdf_is_still_served(
    api: Api, more: dict[str, Any], field: str
) -> None:
    made = await final(api, **more)
    refused = await api.get(f"invoices/{made['id']}.xml")
    assert (refused.status, [each["field"] for each in refused.json["errors"]]) == (422, [field])
    pdf = await api.get(f"invoices/{made['id']}.pdf")
    assert pdf.raw.startswith(b"%PDF-")
    assert api.rows("SELECT format FROM invoice_document") == [("pdf",)]


async def test_xml_of_a_credit_note_names_the_corrected_invoice(api: Api) -> None:
    made = await final(api)
    note = (await api.post(f"invoices/{made['id']}/credit-note", {"lines": [{"position": 2}]})).json
    done = (await api.post(f"invoices/{note['id']}/finalize")).json
    assert [line["tax_rate"] for line in done["lines"]] == ["0.20", "0.20"]
    found = ET.fromstring((await api.get(f"invoices/{note['id']}.xml?format=ubl")).raw)
    assert found.tag.endswith("}CreditNote")
    said = {each.tag.rpartition("}")[2]: each.text for each in found.iter()}
    assert (said["CreditNoteTypeCode"], said["PayableAmount"]) == ("381", "9.60")
    assert made["number"] in [each.text for each in found.iter()]


PARTS = {"street": "Main Road 5", "city": "Paris", "post_code": "75001", "country": "FR"}
NETWORK = {"address": PARTS, "country": None, "buyer_reference": "PO 7", "endpoint_id": "9957:FR40303265045"}


async def test_peppol_xml_is_stored_and_a_profile_with_missing_fields_is_422_naming_the_fields(
    admin_database: str, keeper_database: str
) -> None:
    seller = InvoiceParty("Seller", (), "FR", "FR83404833048", endpoint_id="9957:FR83404833048")
    async with api_of(admin_database, keeper_database, Letterhead(seller)) as api:
        made = await final(api, **NETWORK)
        assert made["buyer"]["address"] == ["Main Road 5", "75001 Paris"]
        where = f"invoices/{made['id']}.xml?profile="
        found = await api.get(f"{where}peppol")
        said = {each.tag.rpartition("}")[2]: each.text for each in ET.fromstring(found.raw).iter()}
        assert (said["BuyerReference"], said["CityName"], said["PostalZone"]) == ("PO 7", "Paris", "75001")
        assert (await api.get(f"{where}peppol&format=ubl")).raw == found.raw
        refused = [await api.get(f"{where}{asked}") for asked in ("xrechnung", "peppol&format=factur-x", "x")]
        assert [each.status for each in refused] == [422, 422, 422]
        fields = [[error["field"] for error in each.json["errors"]] for each in refused]
        assert fields[1:] == [["format"], ["profile"]]
        assert "seller.contact.name" in fields[0]
        assert api.rows("SELECT format FROM invoice_document") == [("peppol",)]


@pytest.mark.parametrize("written", [str, dict])
async def test_organization_address_parts_are_also_accepted_inside_a_single_address_line(
    api: Api, written: type
) -> None:
    """A form sends the line, a command what the line says."""
    parts = {"street": "Main Road 5", "post_code": "10115", "city": "Berlin"}
    made = await api.make("organizations", name="Acme")
    line = json.dumps(parts) if written is str else parts
    changed = await api.call("PATCH", f"organizations/{made['id']}", {"address": [line]})
    assert (changed.status, changed.json["address"]) == (200, parts)
