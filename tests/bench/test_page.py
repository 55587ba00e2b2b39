"""A bench writes its own block of the page of figures, and every block there is some bench's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.bench.page import PAGE, NoSuchBlock, block, publish
from tests.tree import ROOT, named, texts

TWO = "# Title\n\n<!-- bench: a -->\nold\n<!-- /bench: a -->\n\n<!-- bench: b -->\nkept\n<!-- /bench: b -->\n"


def test_only_the_block_of_the_bench_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "figures.md"
    page.write_text(TWO)
    publish(page, "a", r"new \1" + "\n\n")
    assert page.read_text() == TWO.replace("old", r"new \1")


def test_a_page_that_is_not_there_is_made(tmp_path: Path) -> None:
    page = tmp_path / "new" / "figures.md"
    for markdown in ("old", "new"):
        publish(page, "a", markdown)
    assert page.read_text() == "<!-- bench: a -->\nnew\n<!-- /bench: a -->\n"


@pytest.mark.parametrize("text", ["", TWO.replace("<!-- /bench: a -->", ""), TWO + TWO])
def test_a_page_without_that_block_is_left_alone(tmp_path: Path, text: str) -> None:
    page = tmp_path / "figures.md"
    page.write_text(text)
    with pytest.raises(NoSuchBlock):
        publish(page, "a", "new")
    assert page.read_text() == text


def test_every_block_is_written_by_a_bench() -> None:
    page = texts()[PAGE.as_posix()]
    there = re.findall(r"<!-- bench: (\w+) -->", page)
    benches = "".join(texts()[name] for name in named(".py") if name.startswith("tests/bench/"))
    written = re.findall(r'publish\(\s*options\.page, "(\w+)"', benches)
    assert sorted(there) == sorted(written)
    assert all(block(name).search(page) for name in there)
    assert (ROOT / PAGE).exists()
