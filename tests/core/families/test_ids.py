"""Which bodies are looked through for ids in what was said."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st

from gateway.core.families.ids import may_name_ids

# What it stands for: a name that ends like an id's, in any case.
MARKS = re.compile(rb'_[iI][dD][sS]?":|"[iI][dD]":')
PARTS = st.sampled_from(
    [b'"', b":", b"_", b"i", b"I", b"d", b"D", b"s", b"S", b"x", b"{", b'"id":', b'_iDs":', b'k":']
)


@given(st.lists(PARTS, max_size=40))
@example([b'_id":'])
@example([b'"id":'])
@example([b'_ids":'])
@example([b'"', b'id":'])
def test_a_body_may_name_ids_where_a_name_of_it_ends_like_one(parts: list[bytes]) -> None:
    body = b"{" + b"".join(parts)
    assert may_name_ids(body) is (MARKS.search(body) is not None)
