"""Behind a PostgreSQL that was set back, keys and overrides are as Redis knows them until a person accepts the rows."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.core.accounts.administration import Row
from gateway.core.accounts.budgets import owner_of
from gateway.core.model import Verdict
from gateway.counters.admission.stored import decode_terms
from gateway.counters.keeper.verification import KeeperCounters
from gateway.counters.redis import keys
from gateway.counters.redis.keys import partition_of
from gateway.errors import Conflict, CountersUnavailable, NotFound
from tests.background.backend import Backend, backend_at
from tests.background.flushing.test_rollbacks import older_copy
from tests.builders import World
from tests.search import another

HELD = "SELECT * FROM quarantine WHERE starts_with(account, 'access:') AND released_at IS NULL"


def digest(letter: str) -> str:
    return letter.encode().hex() * 32


class Customer:
    """An organization with a tenant, and a budget of each user; keys are named by their digests."""

    organization: int
    tenant: int
    budget: int

    def __init__(self) -> None:
        self.keys: dict[str, int] = {}

    async def settle_in(self, backend: Backend) -> Customer:
        await backend.verify()
        self.organization = await backend.made("organizations", name="a customer")
        plan = await backend.made("token-plans", name="plan", total_amount=1_000)
        self.tenant = await backend.made(
            "tenants", name="team", organization_id=self.organization, plan_id=plan
        )
        self.budget = await backend.made(
            "budgets", organization_id=self.organization, name="each", unit="tokens", amount=1_000, interval="month",
            each="user",
        )  # fmt: skip
        await backend.push()
        return self

    async def key(self, backend: Backend, letter: str) -> int:
        made = {"tenant_id": self.tenant, "name": letter, "digest": digest(letter), "prefix": f"tk_{letter}"}
        self.keys[letter] = await backend.made("api-keys", **made)
        await backend.push()
        return self.keys[letter]

    def serves(self, backend: Backend, letter: str) -> bool:
        """Whether a call with this key is admitted: gateways find it, and the counters do not refuse it."""
        if not backend.client().exists(keys.identity(digest(letter))):
            return False
        ids = {"organization_id": self.organization, "tenant_id": self.tenant, "key_id": self.keys[letter]}
        call = World(backend.valkey, made=True, **ids).reserve(need=1)
        if call.verdict is not Verdict.ADMITTED:
            return False
        call.settle(tokens=1)
        return True

    def amount(self, backend: Backend, who: str) -> int | None:
        """What the counters let one user take."""
        raw = backend.client().get(keys.organization_terms(self.organization))
        assert isinstance(raw, bytes)
        [budget] = decode_terms(raw).budgets
        return budget.limit_of(owner_of(who), int(datetime.now(UTC).timestamp() * 1_000)).amount

    async def override(self, backend: Backend, who: str, amount: int) -> None:
        await backend.write("budgets", "override", self.budget, who=who, amount=amount)
        await backend.push()

    async def lift(self, backend: Backend, who: str) -> None:
        await backend.write("budgets", "remove-override", self.budget, who=who)
        await backend.push()


async def noticed(backend: Backend) -> None:
    """What a keeper does each second."""
    await backend.pusher.keep_ids()
    assert await backend.push() == 0


async def release(backend: Backend, *, accept: bool) -> Row:
    [held] = backend.rows(HELD)
    done = await backend.write("quarantine", "release", held["id"], reason="a test", accept=accept)
    await backend.push()
    return done.row


def opened(row: Row) -> tuple[list[str], list[str]]:
    opens: Any = row["opens"]
    return [key["name"] for key in opens["keys"]], [override["owner"] for override in opens["overrides"]]


@asynccontextmanager
async def settled(
    valkey: str, database: str, *letters: str, **amounts: int
) -> AsyncIterator[tuple[Customer, str]]:
    """A customer with keys and overrides, and a backup of the database then."""
    async with backend_at(valkey, database) as backend:
        customer = await Customer().settle_in(backend)
        for letter in letters:
            await customer.key(backend, letter)
        for who, amount in amounts.items():
            await customer.override(backend, who, amount)
    async with older_copy(database) as older:
        yield customer, older


async def test_a_key_is_served_again_once_its_row_is_back(valkey: str, migrated: str) -> None:
    async with settled(valkey, migrated, "a") as (customer, older):
        async with backend_at(valkey, migrated) as backend:
            await customer.key(backend, "b")
            assert customer.serves(backend, "b")
        async with backend_at(valkey, older) as backend:
            await noticed(backend)
            assert [customer.serves(backend, letter) for letter in "ab"] == [True, False]
        async with backend_at(valkey, migrated) as backend:
            await noticed(backend)
            assert [customer.serves(backend, letter) for letter in "ab"] == [True, True]
            assert backend.rows(HELD) == []


async def test_limits_of_a_row_are_in_force_again_once_the_row_is_back(valkey: str, migrated: str) -> None:
    async with settled(valkey, migrated) as (customer, older):
        async with backend_at(valkey, migrated) as backend:
            await backend.write("budgets", "change", customer.budget, amount=500)
            await backend.push()
        async with backend_at(valkey, older) as backend:
            await noticed(backend)
            assert customer.amount(backend, "ann") == 1_000
        async with backend_at(valkey, migrated) as backend:
            await noticed(backend)
            assert customer.amount(backend, "ann") == 500


async def test_a_revoked_key_stays_refused_behind_a_restore_until_a_person_accepts_its_row(
    valkey: str, migrated: str
) -> None:
    async with settled(valkey, migrated, "a", "b") as (customer, older):
        async with backend_at(valkey, migrated) as backend:
            await backend.write("api-keys", "revoke", customer.keys["a"])
            await backend.push()
        async with backend_at(valkey, older) as backend:
            await noticed(backend)
            await backend.write("api-keys", "change", customer.keys["a"], limits={"requests_per_minute": 50})
            await backend.push()
            backend.client().delete(keys.marker(partition_of(customer.organization)))
            await backend.verify()  # all is defined again
            assert [customer.serves(backend, letter) for letter in "ab"] == [False, True]
            with pytest.raises(Conflict, match="opens 1 keys, and has 0 overrides"):
                await release(backend, accept=False)
            assert not customer.serves(backend, "a")
            assert opened(await release(backend, accept=True)) == (["a"], [])
            assert [customer.serves(backend, letter) for letter in "ab"] == [True, True]


async def test_a_key_that_a_person_revokes_again_is_opened_by_no_release(valkey: str, migrated: str) -> None:
    async with settled(valkey, migrated, "a", "b") as (customer, older):
        async with backend_at(valkey, migrated) as backend:
            for letter in "ab":
                await backend.write("api-keys", "revoke", customer.keys[letter])
            await backend.push()
        async with backend_at(valkey, older) as backend:
            await noticed(backend)
            await backend.write("api-keys", "revoke", customer.keys["a"])
            assert opened(await release(backend, accept=True)) == (["b"], [])
            assert [customer.serves(backend, letter) for letter in "ab"] == [False, True]


async def test_a_rotated_key_ends_at_its_end_in_redis_though_its_successor_is_lost(
    valkey: str, migrated: str
) -> None:
    async with settled(valkey, migrated, "a", "b") as (customer, older):
        async with backend_at(valkey, migrated) as backend:
            for letter, overlap_s in (("a", 1), ("b", 3_600)):
                made = {
                    "digest": digest(letter.upper()),
                    "prefix": "tk_new",
                    "pepper": None,
                    "overlap_s": overlap_s,
                }
                await backend.write("api-keys", "rotate", customer.keys[letter], **made)
            await backend.push()
            ends = backend.rows(
                "SELECT id, floor(extract(epoch FROM expires_at) * 1000) AS ms FROM api_key WHERE replaced_by_id > 0"
            )
        async with backend_at(valkey, older) as backend:
            await noticed(backend)
            [held] = backend.rows(HELD)
            assert held["stood"]["keys"] == pytest.approx(
                {str(row["id"]): int(row["ms"]) for row in ends}, abs=1
            )
            assert customer.serves(backend, "b")


async def test_an_override_that_a_restore_lost_stays_until_a_person_accepts_or_says_another(
    valkey: str, migrated: str
) -> None:
    async with settled(valkey, migrated, cap=5, dan=7) as (customer, older):
        async with backend_at(valkey, migrated) as backend:
            for who, amount in (("ann", 0), ("bob", 0), ("cap", 3), ("eve", 0)):
                await customer.override(backend, who, amount)
            await customer.lift(backend, "dan")
            users = "ann", "bob", "cap", "dan", "eve"
            known = {who: customer.amount(backend, who) for who in users}
            assert known == {"ann": 0, "bob": 0, "cap": 3, "dan": 1_000, "eve": 0}
        async with backend_at(valkey, older) as backend:
            await noticed(backend)
            await backend.write(
                "organizations", "change", customer.organization, limits={"requests_per_minute": 50}
            )
            await backend.push()
            assert {who: customer.amount(backend, who) for who in users} == known
            # A person's word is newer.
            await customer.override(backend, "ann", 9)
            await customer.lift(backend, "eve")
            with pytest.raises(NotFound):
                await customer.lift(backend, "eve")
            said = known | {"ann": 9, "eve": 1_000}
            assert {who: customer.amount(backend, who) for who in users} == said
            with pytest.raises(Conflict, match="opens 0 keys, and has 3 overrides"):
                await release(backend, accept=False)
            _, owners = opened(await release(backend, accept=True))
            assert owners == sorted(owner_of(who) for who in ("bob", "cap", "dan"))
            rows = {"ann": 9, "bob": 1_000, "cap": 5, "dan": 7, "eve": 1_000}
            assert {who: customer.amount(backend, who) for who in users} == rows


async def test_a_list_of_all_overrides_ends_the_hold_of_the_budget(valkey: str, migrated: str) -> None:
    async with settled(valkey, migrated) as (customer, older):
        async with backend_at(valkey, migrated) as backend:
            await customer.override(backend, "ann", 0)
        async with backend_at(valkey, older) as backend:
            await noticed(backend)
            await backend.write(
                "budgets", "set-overrides", customer.budget, overrides=[{"who": "bob", "amount": 2}]
            )
            await backend.push()
            assert [customer.amount(backend, who) for who in ("ann", "bob")] == [1_000, 2]
            assert opened(await release(backend, accept=False)) == ([], [])


async def test_no_definition_is_pushed_and_no_override_taken_before_rows_are_compared(
    valkey: str, migrated: str
) -> None:
    async with settled(valkey, migrated, "a") as (customer, older):
        async with backend_at(valkey, migrated) as backend:
            await customer.override(backend, "ann", 0)
        async with backend_at(valkey, older) as backend:
            await backend.write(
                "organizations", "change", customer.organization, limits={"requests_per_minute": 50}
            )
            account = f"organization:{customer.organization}"
            assert await backend.pusher.push([account]) == [account]  # as the Admin API pushes its own
            with pytest.raises(Conflict, match="compared"):
                await customer.override(backend, "bob", 2)
            assert customer.amount(backend, "ann") == 0
            await noticed(backend)
            await customer.override(backend, "bob", 2)
            assert [customer.amount(backend, who) for who in ("ann", "bob")] == [0, 2]


async def test_a_verification_opens_no_key_before_a_restore_is_noticed(valkey: str, migrated: str) -> None:
    async with settled(valkey, migrated, "a") as (customer, older):
        async with backend_at(valkey, migrated) as backend:
            await backend.write("api-keys", "revoke", customer.keys["a"])
            await customer.override(backend, "ann", 0)
        async with backend_at(valkey, older) as backend:
            backend.client().delete(keys.marker(partition_of(customer.organization)))
            await backend.verify()
            assert not customer.serves(backend, "a")
            assert customer.amount(backend, "ann") == 0
            assert opened(await release(backend, accept=True)) == (["a"], [owner_of("ann")])


async def test_rows_are_compared_again_where_redis_went_away_meanwhile(
    valkey: str, migrated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with settled(valkey, migrated, "a") as (customer, older):
        async with backend_at(valkey, migrated) as backend:
            await customer.key(backend, "b")
            await backend.write("api-keys", "revoke", customer.keys["a"])
            await backend.push()
        async with backend_at(valkey, older) as backend:
            await noticed(backend)
        async with backend_at(valkey, migrated) as backend:
            with monkeypatch.context() as patched:

                async def away(*_: object) -> None:
                    raise CountersUnavailable

                patched.setattr(KeeperCounters, "identities", away)
                await backend.pusher.keep_ids()
                assert await backend.push() > 0
            assert await backend.push() == 0
            assert [customer.serves(backend, letter) for letter in "ab"] == [False, True]


async def test_two_keepers_make_a_single_hold(valkey: str, migrated: str) -> None:
    async with settled(valkey, migrated, "a") as (customer, older):
        async with backend_at(valkey, migrated) as backend:
            await backend.write("api-keys", "revoke", customer.keys["a"])
            await customer.override(backend, "ann", 0)
        async with backend_at(valkey, older) as one, backend_at(valkey, older) as two:
            await asyncio.gather(*(each.pusher.keep_ids() for each in (one, two)))
            await asyncio.gather(*(each.pusher.hold_back() for each in (one, two)), one.push(), two.push())
            [held] = one.rows(HELD)
            assert held["stood"]["keys"] == {str(customer.keys["a"]): 0}
            assert not customer.serves(one, "a")
            assert customer.amount(two, "ann") == 0


async def test_a_second_restore_adds_to_the_hold(valkey: str, migrated: str) -> None:
    async with settled(valkey, migrated, "a", "b") as (customer, older):
        async with backend_at(valkey, migrated) as backend:
            await backend.write("api-keys", "revoke", customer.keys["a"])
            await customer.override(backend, "ann", 0)
        async with backend_at(valkey, older) as backend:
            await noticed(backend)
        async with older_copy(older, "oldest") as oldest:
            async with backend_at(valkey, older) as backend:
                await backend.write("api-keys", "revoke", customer.keys["b"])
                await customer.override(backend, "bob", 0)
            async with backend_at(valkey, oldest) as backend:
                await noticed(backend)
                assert [customer.serves(backend, letter) for letter in "ab"] == [False, False]
                assert [customer.amount(backend, who) for who in ("ann", "bob")] == [0, 0]
                assert opened(await release(backend, accept=True)) == (
                    ["a", "b"], sorted([owner_of("ann"), owner_of("bob")]),
                )  # fmt: skip
                assert [customer.serves(backend, letter) for letter in "ab"] == [True, True]


async def test_a_hold_outlives_a_redis_that_lost_its_data(valkey: str, migrated: str) -> None:
    async with settled(valkey, migrated, "a", "b") as (customer, older):
        async with backend_at(valkey, migrated) as backend:
            await backend.write("api-keys", "revoke", customer.keys["a"])
            await customer.override(backend, "ann", 0)
        async with backend_at(valkey, older) as backend:
            await noticed(backend)
            backend.client().flushdb()
            await backend.verify()
            await backend.push()
            assert [customer.serves(backend, letter) for letter in "ab"] == [False, True]
            assert customer.amount(backend, "ann") == 0


async def test_keys_are_served_as_drawn_histories_of_restores_say(valkey: str, migrated: str) -> None:
    """A key that was revoked is served by an accept alone; one that never was is served where its row is there."""
    draw = random.Random(another(7))
    letters = "abcdefgh"
    revoked, made = set[str](), set[str]()

    async def live_on(backend: Backend, steps: int) -> None:
        for _ in range(steps):
            letter = draw.choice(letters)
            if letter not in made:
                await customer.key(backend, letter)
                made.add(letter)
            elif letter not in revoked and draw.random() < 0.6:
                await backend.write("api-keys", "revoke", customer.keys[letter])
                await backend.push()
                revoked.add(letter)

    async with settled(valkey, migrated) as (customer, first):
        async with backend_at(valkey, migrated) as backend:
            await live_on(backend, draw.randint(4, 8))
        async with older_copy(migrated, "later") as second:
            async with backend_at(valkey, migrated) as backend:
                await live_on(backend, draw.randint(4, 12))
            order = [first, second] if draw.random() < 0.5 else [second, first]
            accepted = draw.random() < 0.5
            for database in (*order, second, migrated):
                async with backend_at(valkey, database) as backend:
                    await noticed(backend)
                    there = {
                        row["name"]
                        for row in backend.rows("SELECT name FROM api_key WHERE revoked_at IS NULL")
                    }
                    served = {letter for letter in made if customer.serves(backend, letter)}
                    assert served == there - revoked
            async with backend_at(valkey, second) as backend:
                await noticed(backend)
                there = {
                    row["name"] for row in backend.rows("SELECT name FROM api_key WHERE revoked_at IS NULL")
                }
                if accepted and backend.rows(HELD):
                    assert set(opened(await release(backend, accept=True))[0]) == there & revoked
                    revoked.clear()
                assert {letter for letter in made if customer.serves(backend, letter)} == there - revoked
