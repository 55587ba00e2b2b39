"""Use of budgets and runs by entries, summed by window, and the news of runs.

An entry lists the windows that it moved in the counters, and by how much: the same amounts are added here, once.
Rows with a seq of their account are stored once, and their use with them. An entry without one counts if it is
newer than all stored entries of its partition. A window counts as far as the counters do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from psycopg import Connection

from gateway.core.accounts.flush_batch import stream_place
from gateway.core.accounts.outbox import (
    EventKind,
    OutboxEntry,
    WindowKey,
    attributed,
    end_limit_of,
    money_moved,
    sign_of,
)
from gateway.core.accounts.runs import is_run, read_news
from gateway.core.model import INTEGER_MAX
from persistence.ledger import statements
from persistence.ledger.guard import TIME_MS_MAX, Placed, event_of
from persistence.ledger.rows import facts_of, stored_text
from persistence.ledger.statements import bounded, columns_of
from persistence.ledger.usage_rollup import tags_json

# The leading columns of a row that a run's use needs: the run's own row has its owner.
_OF_RUNS = 7
# Windows, and the entry that moves them.
Move = tuple[tuple[WindowKey, ...], OutboxEntry]


def store_runs(connection: Connection[Any], noted: Sequence[Placed]) -> None:
    """Store runs that were opened or ended; entries with unreadable metadata are skipped."""
    rows: dict[int, tuple[object, ...]] = {}
    for event in map(event_of, noted):
        news = read_news(event.metadata) if event.kind == EventKind.RUN else None
        if news is not None:
            known = rows.get(event.amount)
            ended = event.at_ms if news.ended else 0
            rows[event.amount] = (
                event.amount, event.organization_id, event.tenant_id, news.id, news.parent_id, news.unit,
                news.amount, news.calls_max, news.created_ms or event.at_ms, event.next_reset_ms,
                ended if known is None else known[-1] or ended,
            )  # fmt: skip
    if rows:
        connection.execute(statements.STORE_RUNS, columns_of([rows[row] for row in sorted(rows)]))


def move_budget_uses(connection: Connection[Any], fresh: Sequence[Placed], noted: Sequence[Placed]) -> None:
    """Add the use of new entries to budgets; `noted` ones move no account and may be stored already."""
    newer = _newer(connection, [placed for placed in noted if event_of(placed).budgets])
    carries = {
        window: event_of(placed)
        for placed in newer
        if _carries(placed)
        for window in event_of(placed).budgets
    }
    if carries:  # the last entry of a window counts
        amounts = [
            (*row[:_OF_RUNS], *_end_limit(event))
            for window, event in carries.items()
            for row in _rows_of([((window,), event)])
        ]
        if amounts:
            connection.execute(statements.CARRY_BUDGETS, statements.columns_of(amounts))
    for sets_back, moves in _turns([*fresh, *(placed for placed in newer if not _carries(placed))]):
        rows, of_runs = list[tuple[Any, ...]](), list[tuple[Any, ...]]()
        for row in _rows_of(moves):
            if is_run(row[0]):
                of_runs.append(row[:_OF_RUNS])
            else:
                rows.append(row)
        if rows:
            statement = statements.RESET_BUDGETS if sets_back else statements.MOVE_BUDGETS
            connection.execute(statement, statements.columns_of(rows))
        if of_runs:
            connection.execute(statements.MOVE_RUNS, statements.columns_of(of_runs))


def _turns(placed: Sequence[Placed]) -> Iterator[tuple[bool, list[Move]]]:
    """Yield movements of budgets' windows in an order that counts all of them: use, a reset, later use.

    The flag says whether a group consists of resets. Calls of a group add up, even beyond the maximum of a
    sum; calls after a reset must follow it, or a full sum could not count them.
    """
    events = [event_of(entry) for entry in placed]
    resets = {window for event in events if _sets_back(event) for window in event.budgets}
    turns: dict[int, list[Move]] = {}
    turn_of: dict[WindowKey, int] = {}
    if resets:
        events = [event_of(entry) for entry in sorted(placed, key=_place)]
    for event in events:
        if resets.isdisjoint(event.budgets):
            turns.setdefault(0, []).append((event.budgets, event))
            continue
        for window in event.budgets:
            turn = turn_of.get(window, 0)
            turn_of[window] = turn = turn + (turn % 2 != _sets_back(event))
            turns.setdefault(turn, []).append(((window,), event))
    return ((turn % 2 == 1, turns[turn]) for turn in sorted(turns))


def _end_limit(event: OutboxEntry) -> tuple[int | None, int | None, float | None]:
    """Return the limit that an entry tells, if it is of money and if it is not, and when amounts had changed."""
    of_money, of_others = (end_limit_of(event, is_money=is_money) for is_money in (True, False))
    if of_money is None or of_others is None:
        return None, None, None
    return of_money.amount, of_others.amount, of_money.changed


def _carries(placed: Placed) -> bool:
    return event_of(placed).kind == EventKind.CARRY


def _sets_back(event: OutboxEntry) -> bool:
    return event.kind == EventKind.BUDGET


def _place(placed: Placed) -> tuple[int, Any]:
    partition, (entry_id, _, _) = placed
    return partition, stream_place(entry_id)


def _rows_of(moves: Iterable[Move]) -> list[tuple[Any, ...]]:
    """Return the rows of use by window: money, tokens and requests, and the owner if it is known."""
    alike: dict[tuple[WindowKey, ...], list[Any]] = {}
    for budgets, event in moves:
        if budgets:
            sums = alike.get(budgets)
            if sums is None:
                sums = alike[budgets] = [0, 0, 0, event]
            sign = sign_of(event)
            sums[0] += sign * money_moved(event)
            sums[1] += sign * event.raw_tokens
            sums[2] += sign * event.requests
    windows: dict[WindowKey, list[Any]] = {}
    for moved, (money, tokens, requests, event) in alike.items():
        for window in moved:
            sums = windows.setdefault(window, [0, 0, 0, event])
            sums[0] += money
            sums[1] += tokens
            sums[2] += requests
    return [
        _row(window, *windows[window])
        for window in sorted(windows)
        if 0 <= window.budget_id <= INTEGER_MAX and 0 <= window.start_ms <= TIME_MS_MAX
    ]


def _row(window: WindowKey, money: int, tokens: int, requests: int, event: OutboxEntry) -> tuple[Any, ...]:
    _, project, _ = attributed(event.attribution)
    facts = facts_of(event)
    return (
        window.budget_id, window.start_ms, stored_text(window.value), event.organization_id,
        money, *(bounded(sum_, INTEGER_MAX) for sum_ in (tokens, requests)),
        stored_text(event.user), str(event.key_id or ""), project, stored_text(facts.session),
        str(event.tenant_id or ""), tags_json(facts.tags),
    )  # fmt: skip


def _newer(connection: Connection[Any], noted: Sequence[Placed]) -> list[Placed]:
    """Return those of the entries that were not stored before; `noted` entries have no sequence numbers."""
    if not noted:
        return []
    partitions = sorted({partition for partition, _ in noted})
    newest = {
        p: stream_place(mark.encode()) for p, mark in connection.execute(statements.MARKS, (partitions,))
    }
    start = stream_place(b"")
    return [placed for placed in noted if stream_place(placed[1][0]) > newest.get(placed[0], start)]
