"""Whatever names say, and however many lines there are, documents are made and say the same."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

import pytest
from facturx import get_xml_from_pdf
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import Conflict
from gateway.features.documents import press
from gateway.features.documents.e_invoice import legible
from gateway.features.documents.press import LINES_HERE_MAX, LINES_MAX, missing_glyphs
from gateway.features.documents.renderer import FACTUR_X, UBL, InvoiceRenderer
from persistence.billing.invoice_documents import DOCUMENT_BYTES_MAX
from tests.features.documents.made import BUYER, SELLER, invoice, line
from tests.search import examples

RENDERER = InvoiceRenderer()
HOSTILE = [
    "شركة الاختبار ١٢٣", "חברה \u202egnp.exe", "Zo\u0308e\u0301" + "\u0301\u0323" * 90, "名前 株式会社",
    "\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f",
    "a\x00b\x07\x1b[31m", "<b>&amp;]]></b> <!-- <?x -->", "#set page(width: 1pt) $x$ @x `y` \\ *b* _i_",
    "=1+1",
    "\u200b\ufeff\u2028\ufffe\U000f0000", "W" * 200, "x" * 4_000, "\t \n", "{{ 7 * 7 }} %s ${x}",
]  # fmt: skip
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)


def named(name: str, description: str) -> dict[str, Any]:
    made = invoice(seller=SELLER | {"name": name}, buyer=BUYER | {"name": name, "address": [description]})
    made["lines"][0]["description"] = description
    return made


def names(content: bytes) -> list[str]:
    return [each.text or "" for each in ET.fromstring(content).iter() if each.tag.endswith("}Name")]


@settings(max_examples=examples(25))
@given(name=TEXTS, description=TEXTS)
def test_names_and_descriptions_read_back_from_the_invoice_xml_are_unchanged(
    name: str, description: str
) -> None:
    made = named(name, description)
    assert names(RENDERER.xml(made, FACTUR_X)) == [
        legible(description), "Rerank 2", legible(name), legible(name),
    ]  # fmt: skip
    assert legible(description) in names(RENDERER.xml(made, UBL))


@settings(max_examples=examples(20))
@given(name=TEXTS, description=TEXTS)
def test_a_pdf_is_made_of_any_text(name: str, description: str) -> None:
    assert RENDERER.pdf(named(name, description)).startswith(b"%PDF-")


@pytest.mark.parametrize("text", HOSTILE)
def test_name_containing_markup_is_written_as_plain_text_in_xml_and_the_pdf_is_made(text: str) -> None:
    made = named(text, text)
    content = RENDERER.xml(made, FACTUR_X)
    assert names(content)[0] == legible(text)
    # What has no glyph in any font of the machine is set as a box, and is no archive then.
    pdf = RENDERER.pdf(made, content)
    assert get_xml_from_pdf(pdf, check_xsd=False) in [("factur-x.xml", content), (False, False)]


@pytest.mark.parametrize("text", [*HOSTILE, "Zoë & Łukasz", "Ωμέγα Жук", "€ – “x”"])
def test_archivable_pdf_is_made_only_if_every_character_has_a_font_glyph(text: str) -> None:
    """What an archive refuses is what finalizing refuses before."""
    archived = press.archive(RENDERER.content(named(text, "plain")), None, 1)
    assert (archived is None) == bool(missing_glyphs(text))


def test_list_of_characters_without_a_font_glyph_names_each_character_once() -> None:
    assert missing_glyphs("Zoë \U000f0000\U000f0001 and \U000f0000") == "\U000f0000\U000f0001"
    assert missing_glyphs("") == missing_glyphs("Zoë, 12 Łódź – Ωμέγα") == ""


def long(lines: int) -> dict[str, Any]:
    made = invoice((), (), subtotal="0.00", tax="0.00", total_amount="0.00")
    usual = (1, "0.05", "0.00", "0.2", None)
    return made | {"lines": [line(position, usual) for position in range(1, lines + 1)]}


@pytest.mark.parametrize(("syntax", "lines"), [(FACTUR_X, 10_000), (UBL, 2_000)])
def test_invoice_xml_of_thousands_of_lines_stays_within_the_document_size_limit(
    syntax: str, lines: int
) -> None:
    content = RENDERER.xml(long(lines), syntax)
    assert len(content) < DOCUMENT_BYTES_MAX // 2
    assert f"Rerank {lines}<".encode() in content


def test_invoice_pdf_with_many_lines_has_no_embedded_xml_and_with_too_many_is_refused() -> None:
    made = long(LINES_HERE_MAX + 1)
    content = RENDERER.xml(made, FACTUR_X)
    pdf = RENDERER.pdf(made, content)
    assert (pdf[:5], get_xml_from_pdf(pdf, check_xsd=False)) == (b"%PDF-", (False, False))
    with pytest.raises(Conflict, match=str(LINES_MAX + 1)):
        RENDERER.pdf(long(LINES_MAX + 1))
