"""Dead letters: entries that cannot become rows, stored in raw bytes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from psycopg import Connection

from gateway.core.accounts.outbox import moved
from gateway.core.model import INTEGER_MAX
from persistence.ledger import statements
from persistence.ledger.copying import Place
from persistence.ledger.guard import CREDITS, TOKENS, USAGE, Placed

# By part: the statement that skips a seq left empty.
_SKIP = {TOKENS: statements.SKIP_QUOTAS, CREDITS: statements.SKIP_CREDITS, USAGE: statements.SKIP_SPENDS}
# Organization, tenant, epoch and seqs of an entry that names none.
_UNNAMED: tuple[int | None, ...] = (None,) * 6


def bury(connection: Connection[Any], dead: Sequence[tuple[Placed, str]], aside: Collection[Place]) -> None:
    """Store entries that cannot become rows as dead letters, in raw bytes, and let their accounts continue.

    An entry in `aside` claimed the sequence number of another entry, so it leaves no gap.
    """
    skipped: dict[int, dict[int, tuple[int, int]]] = {part: {} for part in _SKIP}
    for placed, reason in dead:
        partition, (entry_id, _, event) = placed
        named = _UNNAMED
        if event is not None:
            epoch, seqs = 0, dict[int, int | None].fromkeys(_SKIP)
            if (partition, entry_id) not in aside:
                epoch = event.epoch if event.epoch <= INTEGER_MAX else 0
                for part, one in moved(event).items():
                    seqs[part] = one.seq
                    skipped[part][one.owner_id] = (epoch, one.seq)
            named = (event.organization_id, event.tenant_id or None, epoch, *seqs.values())
        _store(connection, placed, reason, named)
    for part, statement in _SKIP.items():
        if skipped[part]:
            rows = [(id_, *at) for id_, at in sorted(skipped[part].items())]
            connection.execute(statement, statements.columns_of(rows))


def set_aside(
    connection: Connection[Any], fresh: Iterable[Placed], unreadable: Mapping[tuple[int, bytes], str]
) -> int:
    """Store the raw bytes of entries whose unreadable metadata was replaced; return their number.

    `unreadable` are the reasons by entry.
    """
    if not unreadable:
        return 0
    kept = 0
    for placed in fresh:
        partition, (entry_id, _, _) = placed
        reason = unreadable.get((partition, entry_id))
        if reason is not None:
            _store(connection, placed, reason, _UNNAMED)
            kept += 1
    return kept


def _store(connection: Connection[Any], placed: Placed, reason: str, named: tuple[int | None, ...]) -> None:
    partition, (entry_id, packed, _) = placed
    connection.execute(statements.BURY, (partition, entry_id.decode(), packed, reason, *named))
