"""What entries use of budgets, added up by window.

An entry says which windows it moved in the counters, and by how much: by the same it moves them here, once.
What is stored by its place in an account moves them with its row. What moves no account has no place: it
counts where it is newer than all that was stored of its partition. A window counts as far as the counters do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from psycopg import Connection

from gateway.core.accounts.ledger import Budgeted, Event, EventKind, attributed, sign_of
from gateway.core.accounts.outbox import stream_place
from gateway.core.model import INTEGER_MAX
from persistence.ledger import statements
from persistence.ledger.call_rows import facts_of, stored_text
from persistence.ledger.guard import TIME_MS_MAX, Placed, event_of
from persistence.ledger.sums import bounded

# Windows, and the entry that moves them.
Move = tuple[tuple[Budgeted, ...], Event]


def move(connection: Connection[Any], fresh: Sequence[Placed], noted: Sequence[Placed]) -> None:
    """Add what entries use that are stored for the first time; `noted` ones move no account."""
    told = _newer(connection, [placed for placed in noted if event_of(placed).budgets])
    for sets_back, moves in _turns([*fresh, *told]):
        if rows := _rows_of(moves):
            statement = statements.RESET_BUDGETS if sets_back else statements.MOVE_BUDGETS
            connection.execute(statement, statements.columns_of(rows))


def _turns(placed: Sequence[Placed]) -> Iterator[tuple[bool, list[Move]]]:
    """Windows and what moves them, in turns: what calls use of a window, what sets it back, what comes after.

    Calls add up, also to a window that is full. What is behind a reset must not be added before it: a full
    window has no room for it.
    """
    resets = {window for each in placed if _sets_back(event := event_of(each)) for window in event.budgets}
    turns: dict[int, list[Move]] = {}
    turn_of: dict[Budgeted, int] = {}
    for each in sorted(placed, key=_place) if resets else placed:
        event = event_of(each)
        if resets.isdisjoint(event.budgets):
            turns.setdefault(0, []).append((event.budgets, event))
            continue
        for window in event.budgets:
            turn = turn_of.get(window, 0)
            turn_of[window] = turn = turn + (turn % 2 != _sets_back(event))
            turns.setdefault(turn, []).append(((window,), event))
    return ((turn % 2 == 1, turns[turn]) for turn in sorted(turns))


def _sets_back(event: Event) -> bool:
    return event.kind == EventKind.BUDGET


def _place(placed: Placed) -> tuple[int, Any]:
    partition, (entry_id, _, _) = placed
    return partition, stream_place(entry_id)


def _rows_of(moves: Iterable[Move]) -> list[tuple[object, ...]]:
    """What entries use of each window, in all three units, and whose account it can be."""
    alike: dict[tuple[Budgeted, ...], list[Any]] = {}
    for budgets, event in moves:
        if budgets:
            sums = alike.get(budgets)
            if sums is None:
                sums = alike[budgets] = [0, 0, 0, event]
            sign = sign_of(event)
            sums[0] += sign * event.money
            sums[1] += sign * event.raw_tokens
            sums[2] += sign * event.requests
    windows: dict[Budgeted, list[Any]] = {}
    for moved, (money, tokens, requests, event) in alike.items():
        for window in moved:
            sums = windows.setdefault(window, [0, 0, 0, event])
            sums[0] += money
            sums[1] += tokens
            sums[2] += requests
    return [_row(window, *windows[window]) for window in sorted(windows) if _can_be(window)]


def _can_be(window: Budgeted) -> bool:
    """Whether there can be such a window: a number no column holds is nobody's, and stops no flush."""
    return 0 <= window.budget_id <= INTEGER_MAX and 0 <= window.start_ms <= TIME_MS_MAX


def _row(window: Budgeted, money: int, tokens: int, requests: int, event: Event) -> tuple[object, ...]:
    _, project, _ = attributed(event.attribution)
    return (
        window.budget_id, window.start_ms, stored_text(window.value), event.organization_id,
        *(bounded(sum_, INTEGER_MAX) for sum_ in (money, tokens, requests)),
        stored_text(event.user), str(event.key_id or ""), project, stored_text(facts_of(event).session),
    )  # fmt: skip


def _newer(connection: Connection[Any], noted: Sequence[Placed]) -> list[Placed]:
    """Those of entries without a place that were not stored before."""
    if not noted:
        return []
    partitions = sorted({partition for partition, _ in noted})
    newest = {
        p: stream_place(mark.encode()) for p, mark in connection.execute(statements.MARKS, (partitions,))
    }
    start = stream_place(b"")
    return [placed for placed in noted if stream_place(placed[1][0]) > newest.get(placed[0], start)]
