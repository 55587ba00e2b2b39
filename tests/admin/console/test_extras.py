"""Admin API and console without extras: what needs one is 501 and says which, all else is as usual."""

from __future__ import annotations

import sys
from html import unescape

import pytest

from gateway.extras import install
from tests.admin.conftest import Api
from tests.admin.console.conftest import Person
from tests.features.documents.test_api import final


@pytest.fixture(autouse=True)
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gateway.features.documents.press", raising=False)
    monkeypatch.delattr("gateway.features.documents.press", raising=False)
    for library in ("typst", "facturx", "pyarrow"):
        monkeypatch.setitem(sys.modules, library, None)


async def test_invoice_can_be_finalized_without_the_documents_extra_but_pdf_and_xml_are_501(
    api: Api, admin: Person
) -> None:
    made = await final(api)
    assert (made["status"], (await api.get(f"invoices/{made['id']}.csv")).status) == ("finalized", 200)
    assert made["number"] in (await admin.open(f"/invoices/{made['id']}")).text
    for document in ("pdf", "xml", "xml?format=ubl"):
        asked = await api.get(f"invoices/{made['id']}.{document}")
        assert (asked.status, asked.headers["Content-Type"]) == (501, "application/problem+json")
        assert asked.json["type"].endswith("extra_not_installed")
        assert asked.json["detail"].endswith(install("documents"))
    page = await admin.open(f"/invoices/{made['id']}.pdf")
    assert (page.status, install("documents") in unescape(page.text)) == (501, True)
    assert page.headers["Content-Type"].startswith("text/html")  # a person never reads JSON


@pytest.mark.parametrize("report", ["usage", "reports/revenue"])
async def test_finance_report_as_parquet_is_501_without_the_finance_extra(api: Api, report: str) -> None:
    assert (await api.get(f"{report}.csv")).status == 200
    asked = await api.get(f"{report}.parquet")
    assert (asked.status, asked.json["detail"].endswith(install("finance"))) == (501, True)
