"""What nobody sees in a text is named, and escaped where people read it."""

from __future__ import annotations

import json
import unicodedata

import pytest

from gateway.core.text import hidden_in, visible, visible_json

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
