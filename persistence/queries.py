"""Queries with names: a slow one is logged by its name and a sentence, never with its values."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import TextClause, text


class QueryName(NamedTuple):
    name: str
    sentence: str


def query(name: str, sentence: str, sql: str) -> TextClause:
    """Return SQL as a statement with a name, such as `news.quotas`, and a sentence on what it does."""
    return text(sql).execution_options(query=QueryName(name, sentence))
