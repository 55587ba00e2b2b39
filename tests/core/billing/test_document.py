"""What is copied into an invoice: read as it was kept, complete or refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest

from gateway.core.billing.document import (
    ILLEGIBLE_MAX,
    LETTERS_MAX,
    Document,
    InvoiceParty,
    InvoiceReference,
    Letterhead,
    UnseenLetters,
    document_of,
    require_complete,
)
from gateway.errors import Unprocessable

SELLER = InvoiceParty("Tollkeeper Ltd", ("12 Gate Street",), "GB", "GB123456789")
DOCUMENT = Document(
    SELLER, InvoiceParty("Acme"), ("Thanks.",), "2026-05-15", (InvoiceReference("2026-000001", "2026-05-01"),)
)


def test_what_is_kept_is_read_again() -> None:
    assert document_of(DOCUMENT.as_json()) == DOCUMENT
    nobody = replace(DOCUMENT, seller=None)
    assert document_of(nobody.as_json()) == nobody


@pytest.mark.parametrize(
    ("seller", "lines", "fields"),
    [(None, ["Use"], ["seller"]), (SELLER, [], ["lines"]), (None, [], ["seller", "lines"])],
)
def test_without_seller_or_lines_nothing_becomes_final(
    seller: InvoiceParty | None, lines: list[str], fields: list[str]
) -> None:
    with pytest.raises(Unprocessable) as refused:
        require_complete(replace(DOCUMENT, seller=seller), lines, Letterhead().missing_glyphs)
    assert [field for field, _ in refused.value.errors] == fields
    require_complete(DOCUMENT, ["Use"], Letterhead().missing_glyphs)


class Han(dict[str, str]):
    """Of every text, what is Chinese in it."""

    def __contains__(self, _: object) -> bool:
        return True

    def __getitem__(self, text: str) -> str:
        return "".join(letter for letter in text if "\u4e00" <= letter <= "\u9fff")


@pytest.mark.parametrize(
    ("document", "lines", "field", "named"),
    [
        (
            replace(DOCUMENT, buyer=InvoiceParty("陳大文")),
            ["Use"],
            "buyer.name",
            "陳 (U+9673), 大 (U+5927), 文 (U+6587)",
        ),
        (
            replace(DOCUMENT, buyer=InvoiceParty("Acme", ("1", "東京"))),
            ["Use"],
            "buyer.address",
            "東 (U+6771)",
        ),
        (replace(DOCUMENT, seller=InvoiceParty("Ltd", tax_number="税")), ["Use"], "seller.tax_number", "税"),
        (replace(DOCUMENT, notes=("謝",)), ["Use"], "notes", "謝"),
        (DOCUMENT, ["Use", "名 of June"], "lines.2.description", "名 (U+540D), which no font"),
    ],
)
def test_letters_that_no_font_has_are_named_with_their_field(
    document: Document, lines: list[str], field: str, named: str
) -> None:
    with pytest.raises(Unprocessable) as refused:
        require_complete(document, lines, Han())
    [(where, message)] = refused.value.errors
    assert where == field
    assert named in message


def test_what_nobody_has_looked_for_is_asked_for_at_once_and_only_words_that_may_be_missing() -> None:
    document = replace(DOCUMENT, buyer=InvoiceParty("Acme 陳", ("Zoë, Łódź", "東京 1")))
    with pytest.raises(UnseenLetters) as unseen:
        require_complete(document, ["Use", "Жук and use"], {"陳": ""})
    assert list(unseen.value.texts) == ["東京", "Жук"]
    require_complete(document, ["Use", "Жук and use"], {"陳": "", "東京": "", "Жук": ""})
    require_complete(document, ["Use", "Жук and use"], None)


def test_no_more_than_some_fields_and_letters_are_told() -> None:
    with pytest.raises(Unprocessable) as refused:
        require_complete(DOCUMENT, ["名" * 99] * 99, Han())
    assert len(refused.value.errors) == ILLEGIBLE_MAX
    assert all(message.count("U+") == LETTERS_MAX for _, message in refused.value.errors)


def test_an_address_of_its_own_counts_before_the_one_of_the_settings() -> None:
    head = Letterhead(addresses={"3": ["By id"], "Acme": ["By name"]})
    assert head.buyer(3, InvoiceParty("Acme")).address == ("By id",)
    assert head.buyer(4, InvoiceParty("Acme")).address == ("By name",)
    assert head.buyer(4, InvoiceParty("Other")).address == ()
    assert head.buyer(3, InvoiceParty("Acme", ("Its own",), "DE")) == InvoiceParty("Acme", ("Its own",), "DE")


def test_a_credit_note_is_not_due() -> None:
    head = Letterhead(due_days=14)
    assert head.due_date("invoice", date(2026, 5, 1)) == date(2026, 5, 15)
    assert head.due_date("credit_note", date(2026, 5, 1)) is None
    assert head.due_date("invoice", None) is None
    assert Letterhead().due_date("invoice", date(2026, 5, 1)) is None
