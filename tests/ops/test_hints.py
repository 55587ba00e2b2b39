"""Advice agrees with the pages that say more."""

from __future__ import annotations

import re

from gateway.ops.hints import postgresql_hint
from tests.tree import ROOT


def test_hint_names_as_many_connections_of_a_keeper_as_the_page() -> None:
    page = (ROOT / "docs" / "operate" / "postgresql.md").read_text()
    (number,) = re.findall(r"Allow (\d+) connections a keeper", page)
    assert f"(a keeper wants {number})" in postgresql_hint("", sqlstate="53300")
