"""What doctor says of a server that answers."""

from __future__ import annotations

import pytest

from gateway.doctor import _verification


@pytest.mark.parametrize(
    ("vouched", "well", "said"),
    [(b"", True, "no keeper"), (b"this", True, "has verified"), (b"another", False, "run the keeper")],
)
def test_a_server_that_no_keeper_has_compared_is_what_refuses_calls(
    vouched: bytes, well: bool, said: str
) -> None:
    finding = _verification(vouched, b"this")
    assert finding.well is well
    assert said in finding.says
