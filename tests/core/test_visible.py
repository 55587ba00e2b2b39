"""What nobody sees in a text is named, and escaped where people read it."""

from __future__ import annotations

import csv as reader
import io
import json
import re
import unicodedata

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.core.calls.call import NAME_CHARACTERS_MAX, NAMES_REMEMBERED_MAX, _known, names_in, read_document
from gateway.core.text import csv, hidden_in, visible, visible_json
from gateway.errors import InvalidRequest

DIRECTIONS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI", "BN"}
HIDDEN = [
    ("\u202e", "U+202E", r"\u202e"), ("\u200b", "U+200B", r"\u200b"), ("\u2066", "U+2066", r"\u2066"),
    ("\ufeff", "U+FEFF", r"\ufeff"), ("\xad", "U+00AD", r"\u00ad"), ("\x1b", "U+001B", r"\u001b"),
    ("\x9b", "U+009B", r"\u009b"), ("\x00", "U+0000", r"\u0000"), ("\r", "U+000D", r"\u000d"),
    ("\u2028", "U+2028", r"\u2028"), ("\u3164", "U+3164", r"\u3164"), ("\u2800", "U+2800", r"\u2800"),
    ("\U000e0041", "U+E0041", r"\U000e0041"), ("\ud800", "U+D800", r"\ud800"),
    ("\ufe0f", "U+FE0F", r"\ufe0f"),
]  # fmt: skip


@pytest.mark.parametrize(("character", "name", "escaped"), HIDDEN)
def test_hidden_characters(character: str, name: str, escaped: str) -> None:
    text = f"Acme{character}Ltd"
    assert hidden_in(text) == name
    assert visible(text) == f"Acme{escaped}Ltd"
    written = json.dumps({"name": text}, ensure_ascii=False)
    assert hidden_in(visible_json(written)) == ""
    assert json.loads(visible_json(written)) == {"name": text}


@pytest.mark.parametrize(
    "text",
    ["", "Größe 株式会社 & Söhne", "مثال", "דוגמה", "हिन्दी", "a\tb\nc\r\nd", "😀", "e\u0301", "\xa0", "−1 ½"],
)
def test_what_people_see_stays(text: str) -> None:
    assert hidden_in(text) == ""
    assert visible(text) == visible_json(text) == text


def test_every_control_and_every_mark_of_direction_is_hidden() -> None:
    shown = [
        hex(number)
        for number in range(0x110000)
        if (unicodedata.category(chr(number)) in {"Cc", "Zl", "Zp", "Cs"} and chr(number) not in "\t\n")
        or unicodedata.bidirectional(chr(number)) in DIRECTIONS
        if hidden_in(chr(number)) == ""
    ]  # fmt: skip
    assert shown == []


# --- names ------------------------------------------------------------------------------
# What the names in a document end like, beside what a search through all its bytes finds.


# A name that ends like an id's, in any case, and one that names an image or a file.
IDS = re.compile(rb'_[iI][dD][sS]?":|"[iI][dD]":')
FILES = re.compile(rb'(?:url|ri|file_id)":(?=")')
CACHES = re.compile(rb'"(?i:cach)[^"]*":')
NAMES = st.lists(
    st.sampled_from(["_", "i", "I", "d", "D", "s", "S", "x", "é", "_iDs", "url", "uri", "file_id", "cacHe"]),
    max_size=4,
).map("".join)
VALUES = st.sampled_from(["", ":", "text", 'of \\"id\\": x', 7, None, True])
DOCUMENTS = st.recursive(
    VALUES, lambda each: st.dictionaries(NAMES, each, max_size=4) | st.lists(each, max_size=3), max_leaves=20
)


@given(st.dictionaries(NAMES, DOCUMENTS, max_size=4))
@example({"a_id": 1})
@example({"id": 1})
@example({"IDS": 1, "x": [[{"y_Ids": None}]]})
@example({"url": ":", "image_url": {"url": "x"}, "uri": 1, "file_id": ""})
def test_names_are_found_where_a_search_finds_them(document: dict[str, object]) -> None:
    body = msgspec.json.encode(document)
    found = names_in(document)
    assert found.ids is (IDS.search(body) is not None)
    assert found.files == len(FILES.findall(body))
    assert found.caches is (CACHES.search(body) is not None)


def test_what_is_remembered_of_names_has_a_bound() -> None:
    for number in range(NAMES_REMEMBERED_MAX + 10):
        assert names_in({f"made-up-{number}_id": 1, "x" * NAME_CHARACTERS_MAX + str(number): 1}).ids
    assert len(_known) <= NAMES_REMEMBERED_MAX
    assert max(map(len, _known)) <= NAME_CHARACTERS_MAX


def test_a_document_is_seen_to_its_bottom_or_refused() -> None:
    def nested(depth: int) -> bytes:
        return b'{"a":[' * depth + b'{"file_id":"x"}' + b"]}" * depth

    found = names_in(read_document(nested(100)))
    assert (found.ids, found.files) == (True, 1)
    with pytest.raises(InvalidRequest, match="nested more than 256 deep"):
        names_in(read_document(nested(10_000)))


# --- spreadsheet ------------------------------------------------------------------------
# No cell of a CSV is a formula to a spreadsheet, and every cell is read as it was written.


def cells(text: object) -> list[str]:
    [row] = reader.reader(io.StringIO(csv(("a",), [{"a": text}]).decode(), newline=""))
    return row


@pytest.mark.parametrize(
    "text",
    [
        "=1+1", "+1+1", "-1+1", "@SUM(A1)", " =1+1", "\t=1+1", "\r=1+1", "\n=1+1", "\r\n=1+1", "\xa0=1",
        "\u3000@x", "\u200b=1", "\ufeff=1+1", "\x00=1", " \t -2+3", "\uff1d1", "\uff0b1", "\uff0d1",
        "\uff20x", "\tx", "\rx", "\nx", "-", "+", "--1", "-1-1", "-1e3", "+1;2", "=", "-1 ",
    ],
)  # fmt: skip
def test_formulas_are_text(text: str) -> None:
    assert cells(text) == [f"'{text}"]


@pytest.mark.parametrize(
    "text", ["", "a=1", "1+1", "-5", "-12.50", "+3", "a@b.c", "x", " x", 'say "x"', "a,b", "a\r\nb", "Größe"]
)
def test_other_cells_stay(text: str) -> None:
    assert cells(text) == [text] or (text, cells(text)) == ("", [])


def test_no_separator_of_another_country_begins_a_cell() -> None:
    for separator in ",;|\t":
        raw = csv(("a", "b"), [{"a": f"x{separator}=1+1", "b": 'y"z'}]).decode()
        [row] = reader.reader(io.StringIO(raw, newline=""), delimiter="," if separator != "," else ";")
        assert f'"x{separator}=1+1"' in raw
        assert not any(cell.startswith("=") for cell in row)


def test_numbers_nothing_and_the_head() -> None:
    rows = [{"a": -5, "b": None}, {"a": 7, "b": "z"}]
    assert csv(("a", "b"), rows, head=True) == b"a,b\r\n-5,\r\n7,z\r\n"
    assert csv(("a",), ()) == b""
