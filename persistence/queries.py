"""Queries with names: a slow one is reported by its name and a sentence, never with its values."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import ARRAY, Table, TextClause, event, func, literal, select, text
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.ext.asyncio import AsyncEngine

# Usual seconds of a query that states none.
USUAL_S: Final = 1.0
# Seconds in which a query is reported once at most; other slow runs are counted until then.
REPORT_EACH_S: Final = 60.0
OPTION: Final = "tollkeeper_query"


class QueryName(NamedTuple):
    name: str
    sentence: str
    usual_s: float = USUAL_S


class SlowQuery(NamedTuple):
    """A run of a query beyond its usual time; `runs` are the slow runs since the last report, with this one."""

    query: QueryName
    seconds: float
    runs: int


UNNAMED: Final = QueryName("unnamed", "A query without a name")


def query(name: str, sentence: str, sql: str, *, usual_s: float = USUAL_S) -> TextClause:
    """Return SQL as a statement with a name, such as `news.prune`, and a sentence on what it does."""
    return text(sql).execution_options(**naming(name, sentence, usual_s=usual_s))


def naming(name: str, sentence: str, *, usual_s: float = USUAL_S) -> dict[str, Any]:
    """Return the execution options that name a statement which is not SQL as text."""
    return {OPTION: QueryName(name, sentence, usual_s)}


def insert_rows(table: Table, rows: Sequence[Mapping[str, Any]]) -> Insert:
    """Return one statement that inserts `rows` in their order; all have the columns of the first.

    A list that is given to `execute` would be a statement each, in a pipeline that a cancel can leave open.
    """
    names = [*rows[0]]
    arrays = (literal([row[name] for row in rows], ARRAY(table.c[name].type, dimensions=1)) for name in names)
    given = func.unnest(*arrays).table_valued(*names).render_derived()
    return insert(table).from_select(names, select(*given.c))


def name_of(statement: TextClause) -> QueryName:
    """Return the name of a statement, which is `UNNAMED` if it has none."""
    name: QueryName = statement.get_execution_options().get(OPTION, UNNAMED)
    return name


class SlowQueries:
    """Reports the queries of engines that take longer than is usual for them."""

    def __init__(
        self, report: Callable[[SlowQuery], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._report, self._clock = report, clock
        # By name, so no more than there are names: the time of the last report, and the slow runs since.
        self._reported: dict[str, float] = {}
        self._runs: dict[str, int] = {}

    def watch(self, engine: AsyncEngine) -> None:
        event.listen(engine.sync_engine, "before_cursor_execute", self._begin)
        event.listen(engine.sync_engine, "after_cursor_execute", self._end)

    def _begin(self, _: Any, __: Any, ___: str, ____: Any, context: Any, _____: bool) -> None:
        if context is not None:
            context.tollkeeper_began = self._clock()

    def _end(self, _: Any, __: Any, ___: str, ____: Any, context: Any, _____: bool) -> None:
        if context is not None:
            name = context.execution_options.get(OPTION, UNNAMED)
            self._note(name, self._clock() - context.tollkeeper_began)

    def _note(self, name: QueryName, seconds: float) -> None:
        if seconds <= name.usual_s:
            return
        runs = self._runs[name.name] = self._runs.get(name.name, 0) + 1
        now = self._clock()
        if now - self._reported.get(name.name, -REPORT_EACH_S) >= REPORT_EACH_S:
            self._reported[name.name], self._runs[name.name] = now, 0
            self._report(SlowQuery(name, seconds, runs))
