"""Puts what a bench found on the page of figures, between that bench's own marks; nothing else changes."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path("docs/internals/figures.md")


class NoSuchBlock(Exception):
    """The page has no pair of marks of that name."""


def block(name: str) -> re.Pattern[str]:
    """What stands between the marks of one bench."""
    return re.compile(rf"(?<=<!-- bench: {name} -->\n).*?(?=<!-- /bench: {name} -->)", re.DOTALL)


def publish(page: Path, name: str, markdown: str) -> None:
    """Replace one bench's block."""
    text, found = block(name).subn(lambda _: markdown.strip() + "\n", page.read_text(encoding="utf-8"))
    if found != 1:
        raise NoSuchBlock(f"{page} has {found} blocks <!-- bench: {name} --> … <!-- /bench: {name} -->")
    page.write_text(text, encoding="utf-8")
