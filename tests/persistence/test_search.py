"""Names are found by the beginnings of their words, whatever stands between the words."""

from __future__ import annotations

import psycopg
import pytest


@pytest.mark.parametrize(
    ("name", "wanted", "found"),
    [
        ("Acme Corporation Europe", "corp", True),
        ("Acme Corporation Europe", "eur acme", True),
        ("Acme Corporation Europe", "ration", False),
        ("acme-eu.example", "eu", True),
        ("acme-eu.example", "acme-eu.ex", True),
        ("customer_000123", "000123", True),
        ("Łódź Wörkshop", "wör", True),
        ("東京 電力", "電", True),
        ("O'Brien & Sons", "o'brien", True),
        ("anything", "' | !x:*", False),
        ("anything", "...", None),
        ("anything", "any\\", True),
    ],
)
def test_search_takes_words_apart_on_both_sides(
    cloned: str, name: str, wanted: str, found: bool | None
) -> None:
    with psycopg.connect(cloned) as connection:
        said = connection.execute("select name_words(%s) @@ name_query(%s)", (name, wanted)).fetchone()
    assert said == (found,)
