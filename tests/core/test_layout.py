"""A layout reads what was stored before one of its fields came, and nothing that is newer than itself."""

from __future__ import annotations

import struct

import pytest

from gateway.core.layout import FIRST, KINDS, LAYOUT, NUMBER, Layout, LayoutField, UnknownLayout

BYTE, DOUBLE = KINDS["u8"], KINDS["f64"]
GROWN = Layout(
    "GROWN",
    (
        NUMBER,
        LayoutField("flags", BYTE, 0),
        LayoutField("first", DOUBLE, 0),
        LayoutField("second", DOUBLE, -1, LAYOUT + 1),
        LayoutField("third", DOUBLE, 0),
        LayoutField("last", BYTE, 7, FIRST),
    ),
)


def by_older(number: int, stored: bytes) -> bytes:
    return b"".join(stored[one] if isinstance(one, slice) else one for one in GROWN.by_older(number))


@pytest.mark.parametrize("flags", [0, 1, 128])
def test_what_has_no_number_is_read(flags: int) -> None:
    stored = struct.pack("<Bdd", flags, 5, 6)
    assert GROWN.today(stored) == struct.pack("<BBdddB", LAYOUT, flags, 5, -1, 6, 7)
    assert GROWN.today(stored + b"tail") == struct.pack("<BBdddB", LAYOUT, flags, 5, -1, 6, 7) + b"tail"


def test_a_field_stands_at_its_default_where_an_older_layout_had_none() -> None:
    stored = struct.pack("<BBddB", FIRST, 3, 5, 6, 9)
    assert by_older(FIRST, stored + b"tail") == struct.pack("<BBdddB", LAYOUT, 3, 5, -1, 6, 9) + b"tail"
    newest = struct.pack("<BBdddB", LAYOUT, 3, 5, 4, 6, 9)
    assert by_older(LAYOUT + 1, newest) == newest


def test_what_is_of_today_is_left_as_it_is() -> None:
    stored = bytes([LAYOUT]) + b"whatever"
    assert GROWN.today(stored) is stored


@pytest.mark.parametrize("number", [LAYOUT + 1, 255])
def test_what_is_newer_is_not_guessed_at(number: int) -> None:
    with pytest.raises(UnknownLayout, match=f"GROWN of layout {number}"):
        GROWN.today(bytes([number]) + bytes(30))


def test_a_field_that_is_not_there_is_no_field() -> None:
    with pytest.raises(KeyError, match="GROWN has no field none"):
        GROWN.offset("none")
