"""What the names in a document end like, beside what a search through all its bytes finds."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.core.calls.call import NAME_CHARACTERS_MAX, NAMES_REMEMBERED_MAX, _known, names_in, read_document
from gateway.errors import InvalidRequest

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
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        names_in(read_document(nested(10_000)))
