"""Documents of more values than a file may have: the second tier reads a million."""

from __future__ import annotations

from tests.admin.configuration.test_documents import assert_refused


def test_documents_refuses_more_values_than_a_file_may_have() -> None:
    assert_refused("a: [" + "1," * 1_000_001 + "]", "more than 1000000 values")
