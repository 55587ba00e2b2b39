"""Rows by the words of their names, as people look for them."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from sqlalchemy import ColumnElement, Table, func

from gateway.core.model import INTEGER_MAX
from persistence.subject import Condition

# Words of a search that are looked for; what has these and not the others is found as well.
WORDS_MAX = 12

_BETWEEN_WORDS = re.compile(r"[\s!-/:-@\[-`{-~]+")


def named(table: Table) -> Condition:
    """Filter rows by the beginnings of the words of their name; a number also finds the row of that id."""

    def condition(value: Any) -> ColumnElement[bool]:
        found: ColumnElement[bool] = func.name_words(table.c.name).op("@@")(func.name_query(_words(value)))
        if value.isascii() and value.isdigit() and int(value) <= INTEGER_MAX:
            return found | (table.c.id == int(value))
        return found

    return condition


def _words(wanted: str) -> str:
    """The words that are looked for, without those that others begin with: each costs a look-up."""
    words = {word.lower(): word for word in _BETWEEN_WORDS.split(wanted)}
    told = [word for word, following in pairwise([*sorted(words), ""]) if not following.startswith(word)]
    return " ".join(words[word] for word in told[:WORDS_MAX]) or wanted
