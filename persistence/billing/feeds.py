"""The feed of use as people see it: how it does, what it could not tell, and what is done about that."""

from __future__ import annotations

from sqlalchemy import func, select, text, update

from gateway.core.accounts.administration import Row
from gateway.core.accounts.usage import NO_PROJECT
from gateway.core.billing.usage_feed import CANCELED, FAILED, WAITING
from gateway.errors import Conflict
from persistence.subject import Change, Subject, alter, lock
from persistence.tables.feeds import usage_feed, usage_outbox
from persistence.tables.ledgers import money

_RETRY = text("""
UPDATE usage_outbox
   SET state = 'waiting', error = NULL,
       place = 1 + coalesce((SELECT max(place) FROM usage_outbox WHERE state = 'waiting'), 0)
 WHERE state = ANY(:states) AND (id = :id OR cast(:id AS bigint) IS NULL)""")


def resume(change: Change) -> Row:
    """Send again at once, whatever pause there is."""
    _open(change)
    alter(change, {"paused_until": None, "attempts": 0, "error": None})
    return change.fetch()


def retry_all(change: Change) -> Row:
    """Have everything that was refused sent again, behind what waits."""
    _open(change)
    change.connection.execute(_RETRY, {"states": [FAILED], "id": None})
    return change.fetch()


def end(change: Change) -> Row:
    """Tell nothing any more of what is used from now on; what waits is sent when a feed is open again."""
    _open(change)
    alter(change, {"ended_at": func.now()})
    return change.fetch()


def retry(change: Change) -> Row:
    """Have one that was refused, or left, sent again, behind what waits."""
    row = lock(change)
    if row["state"] == WAITING:
        raise Conflict("It waits to be sent already.")
    change.connection.execute(_RETRY, {"states": [FAILED, CANCELED], "id": change.row_id})
    return change.fetch()


def cancel(change: Change) -> Row:
    """Leave one that was refused: it is never sent."""
    row = lock(change)
    if row["state"] != FAILED:
        raise Conflict(f"The event is {row['state']}; only a failed one is left.")
    left = update(usage_outbox).where(usage_outbox.c.id == change.row_id).values(state=CANCELED)
    change.connection.execute(left)
    return change.fetch()


def _open(change: Change) -> None:
    if lock(change)["ended_at"] is not None:
        raise Conflict("The feed is over.")


_out = usage_outbox.c
_NOT_TOLD = {"place", "folding", "cost", "api_key_id", "user_id", "project_id", "service_id"}
FEEDS = Subject(
    usage_feed,
    source=select(*(each for each in usage_feed.c if not each.name.startswith("leased_"))),
    time="begun_at",
    verbs={"resume": resume, "retry": retry_all, "end": end},
)
EVENTS = Subject(
    usage_outbox,
    source=select(
        *(each for each in _out if each.name not in _NOT_TOLD),
        *(func.nullif(_out[name], 0).label(name) for name in ("api_key_id", "user_id", "service_id")),
        func.nullif(_out.project_id, NO_PROJECT).label("project_id"),
        money(_out.cost).label("cost"),
    ),
    verbs={"retry": retry, "cancel": cancel},
)
