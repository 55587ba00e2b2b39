"""What the names of a body end like, beside what a search through all of it finds."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.core.names import COLONS_MAX, names_in

# A name that ends like an id's, in any case, and one that names an image or a file.
IDS = re.compile(rb'_[iI][dD][sS]?":|"[iI][dD]":')
FILES = re.compile(rb'(?:url|ri|file_id)":(?=")')
PARTS = st.sampled_from(
    [b'"', b":", b"_", b"i", b"I", b"d", b"D", b"s", b"S", b"x", b"{", b'"id":', b'_iDs":', b'k":', b'url":',
     b'uri":', b'file_id":', b'"url":":']
)  # fmt: skip


@given(st.lists(PARTS, max_size=40))
@example([b'_id":'])
@example([b'"id":'])
@example([b'_ids":'])
@example([b'"', b'id":'])
@example([b'"url":":', b'url":"'])
def test_names_are_found_where_a_search_finds_them(parts: list[bytes]) -> None:
    body = b"{" + b"".join(parts)
    found = names_in(body)
    assert found.ids is (IDS.search(body) is not None)
    assert found.files == len(FILES.findall(body))


@pytest.mark.parametrize("colons", [COLONS_MAX - 3, COLONS_MAX - 2, COLONS_MAX * 3])
def test_a_body_of_many_colons_may_name_anything(colons: int) -> None:
    body = b'{"text":"' + b":" * colons + b'","url":"x"}'
    found = names_in(body)
    assert found.files == 1
    assert found.ids is (body.count(b":") >= COLONS_MAX)
