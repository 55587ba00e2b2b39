"""The users that requests name: made on first sight, remembered by this process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from psycopg import Connection

from persistence import statements
from persistence.guard import Placed

NEW_USERS_A_DAY_MAX = 10_000
REMEMBERED_MAX = 200_000
NAME_LENGTH_MAX = 128

# Organization and the caller's own user id.
Name = tuple[int, str]


class Users:
    """Ids of the users of each organization. What a transaction learned counts once it commits."""

    def __init__(self, *, new_a_day_max: int = NEW_USERS_A_DAY_MAX) -> None:
        self._new_a_day_max = new_a_day_max
        self._known: dict[Name, int] = {}

    def resolve(self, connection: Connection[Any], fresh: Iterable[Placed]) -> dict[Name, int]:
        """The ids of everybody named; one over the organization's daily limit of new users has none."""
        names = {(e[2].organization_id, e[2].user) for _, e in fresh if e[2] is not None and e[2].user}
        found = {name: self._known[name] for name in names if name in self._known}
        missing = sorted(name for name in names if name not in found and _storable(name[1]))
        if missing:
            columns = {
                "organizations": [organization for organization, _ in missing],
                "names": [external_id for _, external_id in missing],
            }
            connection.execute(statements.MEET_USERS, {**columns, "a_day_max": self._new_a_day_max})
            rows = connection.execute(statements.KNOW_USERS, columns)
            found.update({(organization, external_id): id_ for organization, external_id, id_ in rows})
        return found

    def remember(self, found: dict[Name, int]) -> None:
        """Keep what a committed transaction learned."""
        if len(self._known) + len(found) > REMEMBERED_MAX:
            self._known.clear()
        self._known.update(found)


def _storable(name: str) -> bool:
    return len(name) <= NAME_LENGTH_MAX and "\0" not in name
