"""The pusher: intents reach the counters in order, once, whenever they can."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from gateway.background.loops import Isolation
from gateway.background.timed.pusher import ACCOUNTS_AT_ONCE_MAX, Pusher
from gateway.core.accounts.definitions import ControlWrite
from gateway.core.billing.money import PriceTier
from gateway.core.model import INTEGER_MAX, Service, Verdict
from gateway.counters.admission.catalogue import CachedTerms
from gateway.counters.admission.stored import decode_identity
from gateway.counters.redis import keys
from gateway.errors import CountersRefused, CountersUnavailable, OutOfRange, ServiceNotIncluded
from persistence.keeper.definitions import PendingWrites, Pushes
from tests.background.backend import Backend, backend_at
from tests.builders import World
from tests.connections import connected
from tests.waiting import eventually

# --- alone ------------------------------------------------------------------------------


@dataclass
class Waiting:
    """Writes of accounts that are held, and what became of all there were."""

    by_account: dict[str, list[ControlWrite]]
    source: Source
    cut: Collection[str] = ()
    newest: None = None
    is_comparing: bool = False

    async def note(
        self, applied: Collection[ControlWrite], refused: Collection[tuple[ControlWrite, str]]
    ) -> None:
        self.source.done += [write.id for write in applied]
        self.source.never += [(write.id, reason) for write, reason in refused]


@dataclass
class Source:
    """Accounts in memory: of the first letter's organization. `busy` ones are pushed by others for a turn.

    So many writes of each are taken at once.
    """

    ids: dict[str, list[str]]
    most: int = 100
    busy: set[str] = field(default_factory=set)
    unread: str = ""
    asked: list[list[str]] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    never: list[tuple[str, str]] = field(default_factory=list)

    async def accounts(self, count: int, partitions: Sequence[int] | None = None) -> list[str]:
        assert partitions is None
        return list(self.ids)[:count]

    @asynccontextmanager
    async def waiting(self, accounts: Sequence[str], known: None) -> AsyncIterator[Waiting]:
        self.asked.append(list(accounts))
        if self.unread in accounts:
            raise ValueError(self.unread)
        held = [account for account in accounts if account not in self.busy]
        self.busy = set()
        gone = {*self.done, *(one for one, _ in self.never)}
        left = {account: [one for one in self.ids[account] if one not in gone] for account in held}
        found = {
            account: [
                ControlWrite(one, int(one), account, "recharge", organization_id=ord(account[0]))
                for one in ids[: self.most]
            ]
            for account, ids in left.items()
        }
        yield Waiting(found, self, [account for account, ids in left.items() if len(ids) > self.most])


class Target:
    """Counters that answer as told."""

    def __init__(self, **answers: bool | Exception) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def newest_write(self) -> None:
        """None: of a database that was set back, `tests/persistence/test_ids.py` tells."""

    async def apply(self, write: ControlWrite) -> bool:
        self.asked.append(write.id)
        answer = self.answers.get(write.id, True)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_an_accounts_writes_are_applied_in_their_order() -> None:
    source, target = Source({"a": ["1", "2", "3"]}), Target()
    assert await Pusher(source, target).push(["a"]) == []
    assert target.asked == source.done == ["1", "2", "3"]


@pytest.mark.parametrize("answer", [False, CountersUnavailable(), CountersRefused()])
async def test_a_write_that_must_wait_keeps_those_behind_it_waiting(answer: bool | Exception) -> None:
    source, target = Source({"a": ["1", "2", "3"], "b": ["4"]}), Target(**{"2": answer})
    assert len(await Pusher(source, target).push([*source.ids])) == 1
    assert sorted(target.asked) == ["1", "2", "4"]
    assert sorted(source.done) == ["1", "4"]


async def test_a_write_that_can_never_be_applied_is_refused_and_the_next_one_goes_on() -> None:
    source, target = Source({"a": ["1", "2"]}), Target(**{"1": OutOfRange()})
    assert await Pusher(source, target).push(["a"]) == []
    assert ([one for one, _ in source.never], source.done) == (["1"], ["2"])
    assert "9007199254740991" in source.never[0][1]


async def test_one_account_that_fails_is_left_and_told_of_and_all_others_are_in_force() -> None:
    source, isolation = Source({f"{letter}:1": [str(n)] for n, letter in enumerate("abcd")}), Isolation()
    target = Target(**{"2": ValueError("odd")})
    assert await Pusher(source, target, isolation=isolation).push([*source.ids]) == ["c:1"]
    assert sorted(source.done) == ["0", "1", "3"]
    assert isolation.figures() == {"loop_failures": [["pusher", "item", 1]]}


async def test_one_account_that_cannot_be_read_is_found_among_all_and_left() -> None:
    source, isolation = Source({f"{letter}:1": [str(n)] for n, letter in enumerate("abcdefgh")}), Isolation()
    source.unread = "f:1"
    assert await Pusher(source, Target(), isolation=isolation).push([*source.ids]) == ["f:1"]
    assert sorted(source.done) == ["0", "1", "2", "3", "4", "6", "7"]
    assert isolation.figures() == {"loop_failures": [["pusher", "item", 1]]}
    assert len(source.asked) == 1 + 2 * 3, "halves of halves, not one by one"


async def test_who_cannot_be_asked_at_all_ends_a_pass() -> None:
    source = Source({"a": ["1"], "b": ["2"]})
    source.unread = "b"
    isolation = Isolation(is_away=lambda error: isinstance(error, ValueError))
    with pytest.raises(ValueError, match="b"):
        await Pusher(source, Target(), isolation=isolation).push_more()
    assert isolation.figures() == {"loop_failures": []}


async def test_accounts_of_one_organization_are_applied_in_the_order_of_their_first_writes() -> None:
    source, target = (
        Source({"a:key": ["9"], "b:x": ["5", "7"], "a:organization": ["3"], "a:it": ["4"]}),
        Target(),
    )
    assert await Pusher(source, target).push([*source.ids]) == []
    assert [one for one in target.asked if one in {"9", "3", "4"}] == ["3", "4", "9"]


async def test_what_others_push_is_waited_for_behind_all_that_is_free() -> None:
    source, target = Source({"a": ["1"], "b": ["2"], "c": ["3"]}, busy={"a", "b"}), Target()
    assert await Pusher(source, target).push([*source.ids]) == []
    assert source.asked == [["a", "b", "c"], ["a", "b"]]
    assert target.asked == ["3", "1", "2"]


async def test_more_writes_than_are_taken_at_once_are_pushed_in_turns() -> None:
    source, target = Source({"a": ["1", "2", "3"], "b": ["4", "5"]}, most=2), Target(**{"5": False})
    assert await Pusher(source, target).push([*source.ids]) == ["b"]
    assert target.asked == ["1", "2", "4", "5", "3"]
    assert source.asked == [["a", "b"], ["a"]]


async def test_who_is_stuck_with_more_than_is_taken_at_once_is_left_and_all_others_go_on() -> None:
    ids = {"a": ["1", "2", "3"], "b": ["4", "5", "6"], "c": ["7"]}
    source, target = Source(ids, most=1), Target(**{"1": False, "5": CountersUnavailable()})
    assert sorted(await Pusher(source, target).push([*ids])) == ["a", "b"]
    assert sorted(source.done) == ["4", "7"]
    assert sorted(target.asked) == ["1", "4", "5", "7"]


async def test_a_thousand_accounts_are_pushed_by_the_hundred() -> None:
    source = Source({f"{chr(97 + n % 26)}:{n}": [str(n)] for n in range(1_000)})
    assert await Pusher(source, Target()).push([*source.ids]) == []
    assert [len(some) for some in source.asked] == [ACCOUNTS_AT_ONCE_MAX] * 10


# --- with the counters and the database -------------------------------------------------


async def test_what_people_write_is_in_force_and_done_by_its_row(backend: Backend) -> None:
    world = await backend.settle_in(100)
    tenant_id = world.caller.tenant_id
    await backend.write("tenants", "recharge", tenant_id, amount=50)
    await backend.write("tenants", "adjust", tenant_id, amount=30, direction="OUT", reason="too much")
    await backend.write("tenants", "reset", tenant_id)
    await backend.write("tenants", "block", tenant_id)
    assert await backend.push() == 0
    assert (world.tenant.remaining, world.tenant.manual_block) == (100, True)
    assert {state for _, verb, state in backend.writes() if verb != "define"} == {"applied"}
    assert {state for _, verb, state in backend.writes() if verb == "define"} == {"done"}
    await backend.flush()
    assert backend.ledger(tenant_id) == [
        (1, "reset", 100, 100),
        (2, "recharge", 50, 150),
        (3, "adjust", -30, 120),
        (4, "reset", -20, 100),
    ]
    assert backend.rows("select metadata from token_ledger where seq = 3")[0]["metadata"] == {
        "reason": "too much"
    }
    assert {state for _, _, state in backend.writes()} == {"done"}
    assert world.client.hlen(keys.control(world.p)) == 0


async def test_pushing_again_changes_nothing(backend: Backend) -> None:
    world = await backend.settle_in(100)
    await backend.write("tenants", "recharge", world.caller.tenant_id, amount=50)
    assert sum(await asyncio.gather(backend.push(), backend.push())) == 0
    backend.rows("update control_write set state = 'pending' where verb <> 'define' returning id")
    assert await backend.push() == 0
    assert world.tenant.remaining == 150


async def test_two_keepers_push_one_account_once(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as one, backend_at(valkey, migrated) as other:
        world = await one.settle_in(100)
        for _ in range(5):
            await one.write("tenants", "recharge", world.caller.tenant_id, amount=1)
        await asyncio.gather(one.push(), other.push())
        assert world.tenant.remaining == 105
        assert [event.seq for event in world.events()] == [1, 2, 3, 4, 5, 6]


# Sessions that wait for a lock of another one.
BLOCKED = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"


async def test_pusher_applies_writes_once_when_their_rows_are_stored_during_its_push(
    backend: Backend,
) -> None:
    world = await backend.settle_in(100)
    tenant_id, owner = world.caller.tenant_id, world.caller.organization_id
    await backend.flush()
    await backend.write("tenants", "recharge", tenant_id, amount=50)
    await backend.write("tenants", "adjust", tenant_id, amount=30, direction="OUT", reason="too much")
    await backend.made("credit-additions", organization_id=owner, credits_added=500)
    names, pushes = [f"tenant:{tenant_id}", f"organization:{owner}"], Pushes(backend.engine)

    async def apply_all(waiting: PendingWrites) -> list[str]:
        writes = [write for name in names for write in waiting.by_account[name]]
        assert all([await backend.counters.apply(write) for write in writes])
        return [write.verb for write in writes]

    async with pushes.waiting(names) as waiting:  # the keeper dies before it notes what it has applied
        assert await apply_all(waiting) == ["recharge", "adjust", "credits"]
    async with asyncio.TaskGroup() as both, pushes.waiting(names) as waiting:
        flush = both.create_task(backend.flush())
        await eventually(lambda: flush.done() or bool(backend.rows(BLOCKED)))
        assert await apply_all(waiting) == ["recharge", "adjust", "credits"]
    await backend.push()
    await backend.flush()
    assert backend.ledger(tenant_id) == [
        (1, "reset", 100, 100),
        (2, "recharge", 50, 150),
        (3, "adjust", -30, 120),
    ]
    assert [row["amount"] for row in backend.rows("select amount from credit_posting")] == [500]
    assert {state for _, _, state in backend.writes()} == {"done"}
    assert world.client.hlen(keys.control(world.p)) == 0


async def test_pusher_reads_no_write_that_the_flusher_is_finishing(backend: Backend) -> None:
    world = await backend.settle_in(100)
    name = f"tenant:{world.caller.tenant_id}"
    await backend.write("tenants", "recharge", world.caller.tenant_id, amount=50)
    with connected(backend.database) as flushing:
        flushing.execute("update control_write set state = 'done' where state = 'pending'")
        async with Pushes(backend.engine).waiting([name]) as waiting:
            assert waiting.by_account == {name: []}


async def test_what_a_key_makes_of_users_is_written_anew(backend: Backend) -> None:
    world = await backend.settle_in(100)
    name = keys.identity(backend.rows("select digest from api_key")[0]["digest"])
    for wanted in ("require", "ignore", "accept"):
        await backend.write("api-keys", "change", world.caller.key_id, user_header=wanted)
        await backend.push()
        assert decode_identity(world.client.get(name)).h == wanted
        world.client.flushall()
        await backend.verify()
        assert decode_identity(world.client.get(name)).h == wanted


async def test_a_revoked_key_is_refused_at_once(backend: Backend) -> None:
    world = await backend.settle_in(100)
    digest = backend.rows("select digest from api_key")[0]["digest"]
    assert world.client.exists(keys.identity(digest))
    await backend.write("api-keys", "revoke", world.caller.key_id)
    await backend.push()
    assert not world.client.exists(keys.identity(digest))
    assert world.reserve().verdict is Verdict.REVOKED


async def test_limits_and_plans_reach_the_counters(backend: Backend) -> None:
    world = await backend.settle_in(100, reset_interval="daily")
    caller = world.caller
    limits = {"requests_per_minute": 5, "concurrency": 2}
    await backend.write("tenants", "change", caller.tenant_id, limits=limits, user_limits={"concurrency": 1})
    await backend.write("organizations", "change", caller.organization_id, limits=limits)
    await backend.write("api-keys", "change", caller.key_id, limits=limits)
    bigger = await backend.made("token-plans", name="bigger", total_amount=500)
    await backend.write("tenant-quotas", "change", caller.tenant_id, plan_id=bigger)
    assert await backend.push() == 0
    for state in (world.tenant, world.organization, world.key):
        assert (state.rpm, state.concurrency) == (5, 2)
    assert (world.tenant.user_concurrency, world.tenant.remaining) == (1, 500)


async def test_writes_wait_while_redis_is_away_or_unverified(backend: Backend) -> None:
    world = await backend.settle_in(100)
    world.client.delete(keys.marker(world.p))
    await backend.write("tenants", "recharge", world.caller.tenant_id, amount=1)
    assert await backend.push() == 1
    await backend.wire.close()
    assert await backend.push() == 1
    assert backend.writes()[-1][2] == "pending"


async def test_what_would_leave_the_range_is_refused_for_good(backend: Backend) -> None:
    world = await backend.settle_in(INTEGER_MAX)
    written = await backend.write("tenants", "recharge", world.caller.tenant_id, amount=1)
    assert await backend.push() == 0
    assert backend.writes()[-1][2] == "refused"
    reason = await backend.store.refusal([intent.id for intent in written.intents])
    assert reason is not None
    assert "9007199254740991" in reason


# --- terms ------------------------------------------------------------------------------
# What people negotiate and subscribe to, on its way to where gateways read it.


TODAY = datetime.now(UTC).date()
NOW_MS = datetime.now(UTC).timestamp() * 1000


def terms(world: World) -> CachedTerms:
    return CachedTerms(world.get(keys.organization_terms(world.caller.organization_id)))


async def model(backend: Backend, name: str) -> int:
    return int(backend.rows("select id from business_model where name = %s", name)[0]["id"])


async def service(backend: Backend, model_name: str, meter: str) -> Service:
    key = f"images-{uuid.uuid4().hex}"
    service_id = await backend.made(
        "services", name=key, key=key, credits=8, service_type="Pay-As-You-Go",
        business_model_id=await model(backend, model_name),
    )  # fmt: skip
    return Service(service_id, key, meter, credits=8)


async def test_overrides_reach_the_gateways_and_survive_a_loss(backend: Backend) -> None:
    world = await backend.settle_in(100)
    images = await service(backend, "Consumption", "consumption")
    override = await backend.made(
        "organization-services", organization_id=world.caller.organization_id, service_id=images.id,
        negotiated_credits=6,
    )  # fmt: skip
    await backend.push()
    assert terms(world).resolve(images, NOW_MS).credits == 6
    await backend.write(
        "organization-services", "change", override, negotiated_credits=0,
        business_model_id=await model(backend, "Pay-Per-Use"),
        pricing={"tiers": [{"up_to": 9, "unit_price": "0.01"}, {"up_to": None, "unit_price": "0.008"}]},
    )  # fmt: skip
    await backend.push()
    for _ in range(2):
        found = terms(world).resolve(images, NOW_MS)
        assert (found.meter, found.credits) == ("pay_per_use", 0)
        assert found.pricing.tiers == (PriceTier(9, Decimal("0.01")), PriceTier(None, Decimal("0.008")))
        world.client.flushall()
        await backend.verify()


async def test_another_meter_of_a_business_model_reaches_who_negotiated_it(backend: Backend) -> None:
    world = await backend.settle_in(100)
    images = await service(backend, "Subscription", "subscription")
    special = await backend.made("business-models", name=images.key, meter="consumption")
    await backend.made(
        "organization-services", organization_id=world.caller.organization_id, service_id=images.id,
        negotiated_credits=6, business_model_id=special,
    )  # fmt: skip
    await backend.push()
    assert terms(world).resolve(images, NOW_MS).meter == "consumption"
    await backend.write("business-models", "change", special, meter="pay_per_use")
    await backend.push()
    assert terms(world).resolve(images, NOW_MS).meter == "pay_per_use"


async def test_a_subscription_reaches_the_gateways_with_its_days(backend: Backend) -> None:
    world = await backend.settle_in(100)
    images = await service(backend, "Subscription", "subscription")
    assert terms(world).resolve(images, NOW_MS).needs_plan
    costs = {"monthly_cost": Decimal(1), "annual_cost": Decimal(10)}
    plan = await backend.made("subscription-plans", name=images.key, feature_access=[images.key], **costs)
    await backend.made(
        "organization-subscriptions", organization_id=world.caller.organization_id, plan_id=plan,
        start_date=TODAY, end_date=TODAY + timedelta(days=30),
    )  # fmt: skip
    await backend.push()
    assert not terms(world).resolve(images, NOW_MS).needs_plan
    with pytest.raises(ServiceNotIncluded):
        terms(world).resolve(images, NOW_MS + 31 * 86_400_000)
    await backend.write("subscription-plans", "change", plan, feature_access=[])
    await backend.push()
    with pytest.raises(ServiceNotIncluded):
        terms(world).resolve(images, NOW_MS)
