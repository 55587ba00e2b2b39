"""What is copied into an invoice: read as it was kept, complete or refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest

from gateway.core.billing.document import (
    Corrected,
    Document,
    Letterhead,
    Party,
    document_of,
    require_complete,
)
from gateway.errors import Unprocessable

SELLER = Party("Tollkeeper Ltd", ("12 Gate Street",), "GB", "GB123456789")
DOCUMENT = Document(
    SELLER, Party("Acme"), ("Thanks.",), "2026-05-15", (Corrected("2026-000001", "2026-05-01"),)
)


def test_what_is_kept_is_read_again() -> None:
    assert document_of(DOCUMENT.as_json()) == DOCUMENT
    nobody = replace(DOCUMENT, seller=None)
    assert document_of(nobody.as_json()) == nobody


@pytest.mark.parametrize(
    ("seller", "lines", "fields"),
    [(None, 1, ["seller"]), (SELLER, 0, ["lines"]), (None, 0, ["seller", "lines"])],
)
def test_without_seller_or_lines_nothing_becomes_final(
    seller: Party | None, lines: int, fields: list[str]
) -> None:
    with pytest.raises(Unprocessable) as refused:
        require_complete(replace(DOCUMENT, seller=seller), lines)
    assert [field for field, _ in refused.value.errors] == fields
    require_complete(DOCUMENT, 1)


def test_an_address_of_its_own_counts_before_the_one_of_the_settings() -> None:
    head = Letterhead(addresses={"3": ["By id"], "Acme": ["By name"]})
    assert head.buyer(3, Party("Acme")).address == ("By id",)
    assert head.buyer(4, Party("Acme")).address == ("By name",)
    assert head.buyer(4, Party("Other")).address == ()
    assert head.buyer(3, Party("Acme", ("Its own",), "DE")) == Party("Acme", ("Its own",), "DE")


def test_a_credit_note_is_not_due() -> None:
    head = Letterhead(due_days=14)
    assert head.due_date("invoice", date(2026, 5, 1)) == date(2026, 5, 15)
    assert head.due_date("credit_note", date(2026, 5, 1)) is None
    assert head.due_date("invoice", None) is None
    assert Letterhead().due_date("invoice", date(2026, 5, 1)) is None
