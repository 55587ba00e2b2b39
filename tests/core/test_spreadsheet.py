"""No cell of a CSV is a formula to a spreadsheet, and every cell is read as it was written."""

from __future__ import annotations

import csv as reader
import io

import pytest

from gateway.core.text import csv


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
