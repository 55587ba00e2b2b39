"""Usage feeds in the Admin API: their state and failures, and actions on them.

An ended feed goes on until its events are sent: use in its time may become known later.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, func, insert, literal_column, select, text, update

from gateway.core.accounts.administration import Row
from gateway.core.accounts.usage import NO_PROJECT
from gateway.errors import Conflict
from gateway.features.usage_feed.events import CANCELED, COUNTED_MAX, FAILED, WAITING
from persistence.entity import Entity, EntityWrite, alter, lock
from persistence.tables import money, usage_feed, usage_outbox
from persistence.usage_feed.outbox import BORDER, hold_flushes

_RETRY = text("""
UPDATE usage_outbox AS u
   SET state = 'waiting', error = NULL,
       place = 1 + coalesce((SELECT max(place) FROM usage_outbox WHERE feed_id = u.feed_id
                                AND state = 'waiting'), 0)
 WHERE state = ANY(:states) AND (id = :id OR feed_id = :feed_id)""")
_LEFT = text("SELECT count(*) FROM usage_outbox WHERE feed_id = :id AND state IN ('waiting', 'failed')")


def begin(change: EntityWrite) -> Row:
    """Open a feed of usage events with the service and the maximum of the command's ended feed.

    Use is reported from now on. Raise `Conflict` if another feed is open.
    """
    hold_flushes(change.connection)
    row = lock(change)
    if change.connection.execute(select(_feed.id).where(_feed.ended_at.is_(None))).first() is not None:
        raise Conflict("A feed is open: what is used is told already.")
    like = {name: row[name] for name in ("service", "waiting_max")}
    made = insert(usage_feed).values(**like, begun_at=_border()).returning(_feed.id)
    return change.fetch(change.connection.execute(made).scalar_one())


def resume(change: EntityWrite) -> Row:
    """Resume a paused feed, so that its events are sent at once; return its row."""
    _require_kept(change)
    alter(change, {"paused_until": None, "attempts": 0, "error": None})
    return change.fetch()


def retry_all(change: EntityWrite) -> Row:
    """Queue all refused events of a feed again, after the waiting ones."""
    _require_kept(change)
    change.connection.execute(_RETRY, {"states": [FAILED], "id": None, "feed_id": change.row_id})
    return change.fetch()


def end(change: EntityWrite) -> Row:
    """End a feed.

    Later use is not reported. Earlier use is, even if it becomes known only after the end.
    """
    hold_flushes(change.connection)
    if lock(change)["ended_at"] is not None:
        raise Conflict("The feed has ended.")
    alter(change, {"ended_at": _border()})
    return change.fetch()


def drop(change: EntityWrite) -> Row:
    """Delete the unsent events of an ended feed, and report no more use from the feed's time."""
    hold_flushes(change.connection)
    _require_kept(change)
    if change.fetch()["ended_at"] is None:
        raise Conflict("The feed is open: end it first.")
    left = change.connection.execute(_LEFT, {"id": change.row_id}).scalar_one()
    alter(change, {"dropped_at": func.now(), "dropped": left})
    return change.fetch()


def retry(change: EntityWrite) -> Row:
    """Queue a refused or canceled event again, after the waiting ones."""
    row = lock(change)
    if row["state"] == WAITING:
        raise Conflict("It waits to be sent already.")
    states = [FAILED, CANCELED]
    change.connection.execute(_RETRY, {"states": states, "id": change.row_id, "feed_id": None})
    return change.fetch()


def cancel(change: EntityWrite) -> Row:
    row = lock(change)
    if row["state"] != FAILED:
        raise Conflict(f"The event is {row['state']}; only a failed one is left.")
    left = update(usage_outbox).where(usage_outbox.c.id == change.row_id).values(state=CANCELED)
    change.connection.execute(left)
    return change.fetch()


def _border() -> ColumnElement[Any]:
    return literal_column(BORDER)


def _require_kept(change: EntityWrite) -> None:
    if lock(change)["dropped_at"] is not None:
        raise Conflict("The feed is dropped: nothing of it is told any more.")


def _count(state: str) -> ColumnElement[Any]:
    """Return an SQL expression for the number of a feed's events in a state, up to `COUNTED_MAX`."""
    return literal_column(
        "(SELECT count(*) FROM (SELECT FROM usage_outbox AS o WHERE o.feed_id = usage_feed.id"
        f" AND o.state = '{state}' LIMIT {COUNTED_MAX}) AS counted)"
    ).label(state)


_feed, _out = usage_feed.c, usage_outbox.c
_NOT_TOLD = {"place", "folding", "cost", "api_key_id", "user_id", "project_id", "service_id"}
FEEDS = Entity(
    usage_feed,
    source=select(
        *(each for each in _feed if not each.name.startswith("leased_")), _count(WAITING), _count(FAILED)
    ),
    time="begun_at",
    verbs={"begin": begin, "resume": resume, "retry": retry_all, "end": end, "drop": drop},
)
# Dropped events are deleted later.
_DROPPED = select(_feed.id).where(_feed.dropped_at.is_not(None))
EVENTS = Entity(
    usage_outbox,
    source=select(
        *(each for each in _out if each.name not in _NOT_TOLD),
        *(func.nullif(_out[name], 0).label(name) for name in ("api_key_id", "user_id", "service_id")),
        func.nullif(_out.project_id, NO_PROJECT).label("project_id"),
        money(_out.cost).label("cost"),
    ).where(_out.feed_id.not_in(_DROPPED)),
    verbs={"retry": retry, "cancel": cancel},
)
