"""JSON of others is read, or refused in one line."""

from __future__ import annotations

import pytest

from gateway.core.text import read_json


def test_a_document_is_read() -> None:
    assert read_json(b'{"a": [1, -2, 1.5, "x", null]}') == {"a": [1, -2, 1.5, "x", None]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nests too deep"),
        ("9" * 5_000, "more than 4300 digits"),
        ("{", "Expecting property name"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        read_json(text)
    assert "\n" not in str(refused.value)
    assert "set_int_max" not in str(refused.value)
