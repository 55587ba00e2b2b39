"""The page for developers says of every table what it grows with, and what ends its rows."""

from __future__ import annotations

import re

from persistence.tables import metadata
from tests.tree import ROOT

PAGE = ROOT / "docs" / "internals" / "ledger.md"


def told() -> list[str]:
    """The tables that the page names, in its order."""
    section = PAGE.read_text().partition("#### What ends rows\n")[2].partition("\n\nWhom")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")][1:]
    return [name for _, tables, _ in rows for name in re.findall(r"`(\w+)`", tables)]


def test_each_table_is_told_once() -> None:
    assert sorted(told()) == sorted(table.name for table in metadata.sorted_tables)
