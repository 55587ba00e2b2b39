"""The users that requests name: made on first sight, remembered by this process.

A name costs one look-up, however many are made up: new users are counted once an organization and
batch, and a name over its organization's limit is not asked for again for a while.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

from psycopg import Connection

from persistence.ledger import statements
from persistence.ledger.guard import Placed

NEW_USERS_A_DAY_MAX = 10_000
REMEMBERED_MAX = 200_000
# So long a name over the limit is left alone: then it may be a new day, or a person has made that user.
REFUSED_S = 60.0
NAME_LENGTH_MAX = 128

# Organization and the caller's own user id.
Name = tuple[int, str]


class Users:
    """Ids of the users of each organization. What a transaction learned counts once it commits.

    `clock` is monotonic.
    """

    def __init__(
        self,
        *,
        new_a_day_max: int = NEW_USERS_A_DAY_MAX,
        clock: Callable[[], float] = time.monotonic,
        remembered_max: int = REMEMBERED_MAX,
    ) -> None:
        self._new_a_day_max, self._remembered_max = new_a_day_max, remembered_max
        self._clock = clock
        self._known: dict[Name, int] = {}
        # By their hashes: anybody makes up long ones.
        self._refused: set[int] = set()
        self._refused_from = clock()

    def resolve(self, connection: Connection[Any], fresh: Iterable[Placed]) -> dict[Name, int]:
        """The ids of everybody named; one over the organization's daily limit of new users has none."""
        if self._clock() - self._refused_from > REFUSED_S:
            self._refused.clear()
        names = {(e[2].organization_id, e[2].user) for _, e in fresh if e[2] is not None and e[2].user}
        found = {name: self._known[name] for name in names if name in self._known}
        missing = storable(one for one in names - found.keys() if hash(one) not in self._refused)
        if missing:
            found |= _known(connection, missing)
        if unknown := [name for name in missing if name not in found]:
            met = self._within_limit(connection, unknown)
            connection.execute(statements.MEET_USERS, columns_of(met))
            found |= _known(connection, met)
            self._refuse(set(unknown) - found.keys())
        return found

    def remember(self, found: dict[Name, int]) -> None:
        """Keep what a committed transaction learned."""
        if len(self._known) + len(found) > self._remembered_max:
            self._known.clear()
        self._known.update(found)

    def _within_limit(self, connection: Connection[Any], unknown: Sequence[Name]) -> list[Name]:
        """The names, sorted as they come, that their organizations may still add today."""
        organizations = sorted({organization for organization, _ in unknown})
        today = Counter(dict(connection.execute(statements.NEW_TODAY, (organizations,)).fetchall()))
        met: list[Name] = []
        for organization, names in groupby(unknown, key=lambda name: name[0]):
            met += list(names)[: max(0, self._new_a_day_max - today[organization])]
        return met

    def _refuse(self, over: set[Name]) -> None:
        if not self._refused or len(self._refused) + len(over) > self._remembered_max:
            self._refused.clear()
            self._refused_from = self._clock()
        self._refused |= set(map(hash, over))


def _known(connection: Connection[Any], names: Sequence[Name]) -> dict[Name, int]:
    rows = connection.execute(statements.KNOW_USERS, columns_of(names))
    return {(organization, external_id): id_ for organization, external_id, id_ in rows}


def columns_of(names: Sequence[Name]) -> dict[str, Any]:
    """What `statements` of users take."""
    return {"organizations": [one for one, _ in names], "names": [name for _, name in names]}


def storable(names: Iterable[Name]) -> list[Name]:
    """Those of names that a user may have, in the order in which writers lock rows."""
    return sorted(name for name in names if 0 < len(name[1]) <= NAME_LENGTH_MAX and "\0" not in name[1])
