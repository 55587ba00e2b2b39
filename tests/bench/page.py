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


def check(page: Path, name: str) -> None:
    """NoSuchBlock where `publish` would find no place; a page that is not there will be made."""
    if page.exists() and (found := len(block(name).findall(page.read_text(encoding="utf-8")))) != 1:
        raise NoSuchBlock(f"{page} has {found} blocks <!-- bench: {name} --> … <!-- /bench: {name} -->")


def publish(page: Path, name: str, markdown: str) -> None:
    """Replace one bench's block; make the page where there is none."""
    check(page, name)
    if not page.exists():
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(f"<!-- bench: {name} -->\n<!-- /bench: {name} -->\n", encoding="utf-8")
    text = block(name).sub(lambda _: markdown.strip() + "\n", page.read_text(encoding="utf-8"))
    page.write_text(text, encoding="utf-8")
