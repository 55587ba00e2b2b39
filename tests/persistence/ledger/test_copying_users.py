"""What naming users costs: one look-up a name, one count an organization, nothing for who was refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import psycopg
import pytest

from persistence.ledger import statements
from persistence.ledger.copying import KNOWN_S, REFUSED_S, Users
from persistence.ledger.guard import Placed
from tests.connections import connected
from tests.persistence.scenario import Account, batch_of, rows_of, settle_in


class Recorded:
    """A connection that remembers what it was asked, and for how many names."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.asked: list[tuple[str, int]] = []
        self._connection = connection

    def execute(self, sql: str, parameters: Any) -> Any:
        names = parameters["names"] if isinstance(parameters, dict) else parameters[0]
        self.asked.append((sql, len(names)))
        return self._connection.execute(sql, parameters)

    def take(self) -> list[tuple[str, int]]:
        """What was asked since the last time."""
        asked, self.asked = self.asked, []
        return asked


@pytest.fixture
def recorded(migrated: str) -> Iterator[Any]:
    with connected(migrated, autocommit=True) as connection:
        yield Recorded(connection)


def called(account: Account, users: Iterable[str]) -> list[Placed]:
    for user in users:
        account.consume(1, user=user)
    return [(partition, entry) for partition, entries in batch_of(account).items() for entry in entries]


def test_new_users_are_counted_once_an_organization(migrated: str, recorded: Any) -> None:
    users, accounts = Users(), settle_in(migrated, 1000, 1000, 1000)
    fresh = [one for account in accounts for one in called(account, map(str, range(50)))]
    found = users.resolve(recorded, fresh)
    assert len(found) == 150
    assert recorded.take() == [
        (statements.KNOW_USERS, 150), (statements.NEW_TODAY, 3), (statements.MEET_USERS, 150),
        (statements.KNOW_USERS, 150),
    ]  # fmt: skip
    users.remember(found)
    assert users.resolve(recorded, fresh) == found
    assert recorded.take() == []


def test_a_refused_name_is_not_asked_for_again_for_a_while(migrated: str, recorded: Any) -> None:
    now = [0.0]
    users, (account, other) = Users(new_a_day_max=3, clock=lambda: now[0]), settle_in(migrated, 9000, 9000)
    names = [f"made-up-{number}" for number in range(100)]
    users.remember(users.resolve(recorded, called(account, names)))
    assert len(rows_of(migrated, "SELECT id FROM app_user WHERE first_sight")) == 3
    recorded.take()
    assert len(users.resolve(recorded, called(account, names))) == 3
    assert recorded.take() == []
    # New names cost what they are, and another organization is met as ever.
    found = users.resolve(recorded, [*called(account, ["new"]), *called(other, ["ada"])])
    assert [organization for organization, _ in found] == [other.organization_id]
    assert recorded.take() == [
        (statements.KNOW_USERS, 2), (statements.NEW_TODAY, 2), (statements.MEET_USERS, 1),
        (statements.KNOW_USERS, 1),
    ]  # fmt: skip
    with connected(migrated) as admin:
        admin.execute(
            "INSERT INTO app_user (organization_id, external_id) VALUES (%s, 'new')",
            (account.organization_id,),
        )
    now[0] += REFUSED_S + 1
    again = users.resolve(recorded, called(account, ["new", *names]))
    assert len(again) == 4
    assert (account.organization_id, "new") in again


def test_a_name_that_was_taken_out_is_somebody_new_soon(migrated: str) -> None:
    now = [0.0]
    users, [account] = Users(clock=lambda: now[0]), settle_in(migrated, 9000)
    fresh = called(account, ["ada"])
    with connected(migrated, autocommit=True) as keeper:
        before = users.resolve(keeper, fresh)
        users.remember(before)
        keeper.execute("UPDATE app_user SET external_id = 'deleted-' || id")
        now[0] += KNOWN_S + 1
        after = users.resolve(keeper, fresh)
    assert before.keys() == after.keys()
    assert before != after


def test_more_refused_names_than_are_remembered_are_still_refused(migrated: str, recorded: Any) -> None:
    users, [account] = Users(new_a_day_max=1, remembered_max=10), settle_in(migrated, 9000)
    for number in range(5):
        users.remember(users.resolve(recorded, called(account, map(str, range(number * 8, number * 8 + 8)))))
    assert len(rows_of(migrated, "SELECT id FROM app_user WHERE first_sight")) == 1
