"""A row of bytes says the same in C and without it."""

from __future__ import annotations

from struct import pack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.joined import pack_parts, say_parts, unpack_numbers
from tests import extensions
from tests.tree import ROOT

# By how many digits Python keeps, and how many bits a double has.
BITS = 0, 15, 30, 45, 53, 60
EDGES = st.sampled_from(
    [2**63 - 1, -(2**63), *(sign * 2**n + more for n in BITS for sign in (1, -1) for more in (-1, 0, 1))]
)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | EDGES
PARTS = st.lists(st.binary() | st.text(st.characters(exclude_categories=["Cs"])) | NUMBERS | st.booleans())


@pytest.fixture(scope="module")
def in_c() -> Any:
    return extensions.built(ROOT / "gateway" / "core" / "_joined.c")


@given(parts=PARTS)
def test_parts_are_joined_alike(in_c: Any, parts: list[Any]) -> None:
    assert in_c.packed(*parts) == pack_parts(*parts)
    assert in_c.said(*parts) == say_parts(*parts)


@given(packed=st.binary(max_size=40) | st.lists(NUMBERS).map(lambda them: pack(f"<{len(them)}q", *them)))
def test_numbers_are_read_alike(in_c: Any, packed: bytes) -> None:
    assert in_c.numbers(packed) == unpack_numbers(packed)


def test_a_number_beyond_64_bits_is_packed_and_not_said(in_c: Any) -> None:
    assert in_c.packed(2**80) == pack_parts(2**80)
    with pytest.raises(OverflowError):
        in_c.packed(2**1024)
    with pytest.raises(OverflowError):
        in_c.said(2**80)


@pytest.mark.parametrize("part", [None, 1.0, [b"a"]])
def test_nothing_else_is_a_part(in_c: Any, part: Any) -> None:
    for join in (in_c.packed, in_c.said):
        with pytest.raises(TypeError, match="a part is bytes, a text or a whole number"):
            join(b"a", part)
    with pytest.raises(TypeError):
        pack_parts(b"a", part)


def test_a_text_that_has_no_utf_8_is_an_error(in_c: Any) -> None:
    for join in (in_c.packed, in_c.said, pack_parts, say_parts):
        with pytest.raises(UnicodeEncodeError):
            join("\ud800")


@pytest.mark.parametrize("size", [1_003, 1_004, 1_005, 5_000])
def test_rows_of_any_length_are_said(in_c: Any, size: int) -> None:
    parts = b"a" * size, 7, "é"
    assert in_c.said(*parts) == say_parts(*parts)
    assert in_c.packed(*parts) == pack_parts(*parts)
