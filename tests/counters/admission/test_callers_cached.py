"""Identities and the catalogue: cached for less than a second, unknown only where everything is verified."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
import redis

from gateway.core.accounts.budgets import Budget, account_of
from gateway.core.accounts.definitions import NegotiatedTerms, OrganizationTerms, Share
from gateway.core.accounts.run_policies import RunPolicies, RunPolicy
from gateway.core.accounts.spent_answers import SpentAnswer
from gateway.core.billing.price_book import read_price
from gateway.core.calls.call import Body, CallRequest, CallSpec
from gateway.core.calls.routes import ModelRule, ModelTarget
from gateway.core.model import BATCH, GENERIC, Attribution, Caller, Service
from gateway.counters.admission.cache import CacheLimits, known_bytes
from gateway.counters.admission.callers import IDENTITY_S, Directory
from gateway.counters.admission.catalogue import TERMS_BYTES
from gateway.counters.admission.stored import (
    decode_terms,
    encode_catalogue,
    encode_head,
    encode_identity,
    encode_prices,
    encode_terms,
)
from gateway.counters.leases.allowance import Allowances
from gateway.counters.redis import keys
from gateway.counters.redis.connection import RedisConnection
from gateway.errors import CountersUnavailable, EndedApiKey, InvalidApiKey
from tests.builders import CREDITS, driven
from tests.core.billing.prices import price_row
from tests.counters.conftest import Connect
from tests.waiting import eventually

CALLER = Caller(1, 7, 3, keys.partition_of(1), "ann", frozenset({"m2", "m1"}))
DIGEST = "d" * 64
ONE = known_bytes(encode_identity(CALLER))


@dataclass(slots=True)
class Clock:
    """Seconds that pass when told."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass(slots=True)
class Desk:
    """A directory, the clock it goes by and the server it reads."""

    directory: Directory
    wire: RedisConnection
    clock: Clock
    client: redis.Redis

    async def identify(self, digest: str = DIGEST) -> Caller:
        return await driven(self.directory.identify(digest))

    def know(self, caller: Caller = CALLER) -> None:
        self.client.set(keys.identity(DIGEST), encode_identity(caller))

    def verify(self) -> None:
        self.client.set(keys.verified(0), self.wire.run_id)


@pytest.fixture
async def desk(valkey: str, connect: Connect) -> Desk:
    wire, clock = await connect(valkey), Clock()
    return Desk(Directory(wire, clock), wire, clock, redis.Redis.from_url(valkey))


async def test_a_known_credential_stands_for_its_caller(desk: Desk) -> None:
    desk.know()
    assert await desk.identify() == CALLER
    assert desk.directory.cached(DIGEST) == CALLER


@pytest.mark.parametrize("models", [None, frozenset(), frozenset({"m"})])
async def test_callers_survive_the_way(desk: Desk, models: frozenset[str] | None) -> None:
    desk.know(replace(CALLER, user="", models=models))
    assert await desk.identify() == replace(CALLER, user="", models=models)


@pytest.mark.parametrize("user_header", ["accept", "require", "ignore"])
async def test_what_a_key_makes_of_users_survives_the_way(desk: Desk, user_header: str) -> None:
    desk.know(replace(CALLER, user_header=user_header))
    assert (await desk.identify()).user_header == user_header


async def test_a_key_says_how_a_spent_amount_is_told_before_its_organization_does(desk: Desk) -> None:
    desk.directory.spent = SpentAnswer(429)
    terms = OrganizationTerms(spent=SpentAnswer(402, 60))
    desk.client.set(keys.organization_terms(1), encode_terms(1, terms))
    for own, told in ((SpentAnswer(), SpentAnswer(402, 60)), (SpentAnswer(429), SpentAnswer(429, 60))):
        desk.know(replace(CALLER, spent=own))
        assert desk.directory.spent_answer(await desk.identify()) == told
        desk.clock.now += IDENTITY_S + 0.1


async def test_tags_are_limited_to_names_that_the_organization_declares(desk: Desk) -> None:
    desk.know(replace(CALLER, tags=(("team", "red"), ("undeclared", "x"))))
    said = Attribution(tags=(("feature", "search"), ("other", "y"), ("team", "blue")))
    for names, tags in (((), ()), (("team", "feature"), (("feature", "search"), ("team", "red")))):
        desk.client.set(keys.organization_terms(1), encode_terms(1, OrganizationTerms(tags=names)))
        caller = await desk.identify()
        assert desk.directory.tags(caller, said) == tags
        desk.clock.now += IDENTITY_S + 0.1


async def test_an_identity_written_before_keys_spoke_of_users_accepts_them(desk: Desk) -> None:
    desk.client.set(keys.identity(DIGEST), b'{"o":1,"t":7,"k":3,"p":0,"u":"","m":null}')
    assert (await desk.identify()).user_header == "accept"


def test_a_change_counts_within_a_second_and_the_way_to_redis_is_part_of_it() -> None:
    assert IDENTITY_S + 0.1 <= 1.0


async def test_an_identity_lives_for_its_time_and_not_longer(desk: Desk) -> None:
    desk.know()
    desk.verify()
    first = await desk.identify()
    desk.client.delete(keys.identity(DIGEST))
    desk.clock.now += IDENTITY_S
    assert await desk.identify() is first
    desk.clock.now += 0.001
    assert desk.directory.cached(DIGEST) is None
    with pytest.raises(InvalidApiKey):
        await desk.identify()


async def test_that_there_is_none_lives_as_long(desk: Desk) -> None:
    desk.verify()
    with pytest.raises(InvalidApiKey):
        await desk.identify()
    desk.know()
    with pytest.raises(InvalidApiKey):
        await desk.identify()
    assert desk.directory.cached(DIGEST) is None
    desk.clock.now += IDENTITY_S + 0.001
    assert await desk.identify() == CALLER


async def test_the_same_caller_stays_the_same_object(desk: Desk) -> None:
    """What is cached by caller elsewhere is found again."""
    desk.know()
    first = await desk.identify()
    desk.clock.now += 2
    assert await desk.identify() is first


@pytest.mark.parametrize("verified", [None, b"another server's run id"])
async def test_nobody_is_unknown_before_everything_is_verified(desk: Desk, verified: bytes | None) -> None:
    if verified is not None:
        desk.client.set(keys.verified(0), verified)
    for _ in range(2):
        with pytest.raises(CountersUnavailable):
            await desk.identify()
    desk.verify()
    with pytest.raises(InvalidApiKey):
        await desk.identify()


async def test_nothing_is_known_without_a_connection(desk: Desk) -> None:
    await desk.wire.close()
    with pytest.raises(CountersUnavailable):
        await desk.identify()


async def test_the_cache_is_bounded_and_an_entry_that_is_renewed_makes_nobody_go(desk: Desk) -> None:
    desk.directory = Directory(desk.wire, desk.clock, bounds=CacheLimits(known_bytes_max=3 * ONE))
    digests = [f"{n:064d}" for n in range(5)]
    for digest in digests:
        desk.client.set(keys.identity(digest), encode_identity(CALLER))
        await desk.identify(digest)
    kept = digests[2:]
    for _ in range(4):
        desk.clock.now += 10
        await desk.identify(kept[2])
    assert set(desk.directory._known.known) == set(kept)


async def test_who_was_looked_up_longest_ago_goes_for_a_newcomer(desk: Desk) -> None:
    desk.directory = Directory(desk.wire, desk.clock, bounds=CacheLimits(known_bytes_max=3 * ONE))
    digests = [f"{n:064d}" for n in range(4)]
    for digest in digests:
        desk.client.set(keys.identity(digest), encode_identity(CALLER))
    for digest in digests[:3]:
        await desk.identify(digest)
    desk.clock.now += 10
    await desk.identify(digests[0])  # the first that came is the latest that was asked about
    await desk.identify(digests[3])
    assert set(desk.directory._known.known) == {digests[2], digests[0], digests[3]}


async def test_who_is_served_all_the_time_outlives_any_number_of_others(desk: Desk) -> None:
    desk.directory = Directory(desk.wire, desk.clock, bounds=CacheLimits(known_bytes_max=3 * ONE))
    desk.know()
    served = await desk.identify()
    for n in range(20):
        desk.clock.now += IDENTITY_S + 0.001
        assert await desk.identify() is served
        digest = f"{n:064d}"
        desk.client.set(keys.identity(digest), encode_identity(CALLER))
        await desk.identify(digest)
        assert desk.directory.cached(DIGEST) is served


async def test_guessed_credentials_are_bounded_and_displace_nobody(desk: Desk) -> None:
    desk.directory = Directory(
        desk.wire, desk.clock, bounds=CacheLimits(known_bytes_max=3 * ONE, unknown_max=3)
    )
    desk.know()
    desk.verify()
    await desk.identify()
    for n in range(10):
        for _ in range(2):
            with pytest.raises(InvalidApiKey):
                await desk.identify(f"{n:064d}")
    assert desk.directory.cached(DIGEST) == CALLER
    assert len(desk.directory._known) == 1
    assert len(desk.directory._unknown) == 3


async def test_a_credential_that_is_gone_is_forgotten_as_known(desk: Desk) -> None:
    desk.know()
    desk.verify()
    await desk.identify()
    desk.client.delete(keys.identity(DIGEST))
    desk.clock.now += 10
    with pytest.raises(InvalidApiKey):
        await desk.identify()
    assert len(desk.directory._known) == 0


# --- catalogue --------------------------------------------------------------------------

CHAT = Service(1, "chat")
IMAGES = Service(2, "images", "consumption", counts_tokens=False, credits=9, one_time=True)


async def test_there_is_no_service_before_the_first_catalogue(desk: Desk) -> None:
    with pytest.raises(CountersUnavailable):
        desk.directory.service("chat")


async def test_the_catalogue_is_followed(desk: Desk) -> None:
    desk.client.set(keys.CATALOGUE, encode_catalogue(4, [CHAT]))
    task = asyncio.create_task(desk.directory.keep_fresh())
    await eventually(lambda: desk.directory.version == 4)
    assert (desk.directory.service("chat"), desk.directory.service("images")) == (CHAT, None)
    desk.client.set(keys.CATALOGUE, encode_catalogue(5, [CHAT, IMAGES]))
    await eventually(lambda: desk.directory.version == 5)
    assert desk.directory.service("images") == IMAGES
    desk.client.delete(keys.CATALOGUE)
    desk.client.config_resetstat()

    def looked() -> bool:
        return desk.client.info("commandstats").get("cmdstat_get", {"calls": 0})["calls"] >= 6  # twice

    await eventually(looked)
    assert desk.directory.service("chat") == CHAT
    task.cancel()


async def test_models_are_followed_and_stay_the_same_object_until_they_are_others(desk: Desk) -> None:
    fast = ModelRule("fast", False, (ModelTarget("azure", "prod"), ModelTarget("openai", "")))
    more = ModelRule("o/", True, (ModelTarget("gpu", "*"),), frozenset({"429"}), 7, "models 2")
    desk.client.set(keys.CATALOGUE, encode_catalogue(4, [CHAT], None, [fast]))
    await driven(desk.directory.refresh())
    found = desk.directory.models()
    assert found == (fast,)
    desk.client.set(keys.CATALOGUE, encode_catalogue(5, [CHAT, IMAGES], None, [fast]))
    await driven(desk.directory.refresh())
    assert desk.directory.models() is found
    desk.client.set(keys.CATALOGUE, encode_catalogue(6, [CHAT], None, [fast, more]))
    await driven(desk.directory.refresh())
    assert desk.directory.models() == (fast, more)


async def test_shares_are_followed_and_stay_the_same_object_until_they_are_others(desk: Desk) -> None:
    mine = Share("openai", "", 7, 3, 2, 60, 900, BATCH)
    for version in (4, 5):
        desk.client.set(keys.CATALOGUE, encode_catalogue(version, [CHAT], None, (), [mine]))
        before = desk.directory.shares()
        await driven(desk.directory.refresh())
    assert desk.directory.shares() is before
    assert before == (mine,)


# --- terms ------------------------------------------------------------------------------


def negotiate(desk: Desk, credits_: int) -> None:
    terms = OrganizationTerms((NegotiatedTerms(2, credits_),))
    desk.client.set(keys.organization_terms(1), encode_terms(1, terms))


async def test_terms_come_with_the_identity_and_live_as_long(desk: Desk) -> None:
    desk.know()
    desk.client.set(keys.CATALOGUE, encode_catalogue(1, [CREDITS]))
    await driven(desk.directory.refresh())
    with pytest.raises(CountersUnavailable):
        desk.directory.resolve(CALLER, "images")
    negotiate(desk, 6)
    # Work that no call has begun here, such as a look at a job, asks for them by itself.
    await driven(desk.directory.know(1))
    own = desk.directory.resolve(CALLER, "images")
    assert own is not None
    assert own.credits == 6
    caller = await desk.identify()
    first = desk.directory.resolve(caller, "images")
    assert first is not None
    assert first.credits == 6
    assert desk.directory.resolve(caller, "nothing") is None
    negotiate(desk, 5)
    await desk.identify()
    assert desk.directory.resolve(caller, "images") is first
    desk.clock.now += IDENTITY_S + 0.001
    await desk.identify()
    changed = desk.directory.resolve(caller, "images")
    assert changed is not None
    assert (first.credits, changed.credits) == (6, 5)
    desk.clock.now += IDENTITY_S + 0.001
    await desk.identify()
    assert desk.directory.resolve(caller, "images") is changed


async def test_a_key_that_moves_to_another_organization_has_its_terms(desk: Desk) -> None:
    desk.client.set(keys.CATALOGUE, encode_catalogue(1, [CREDITS]))
    await driven(desk.directory.refresh())
    desk.know(replace(CALLER, organization_id=2))
    await desk.identify()
    negotiate(desk, 6)
    desk.know()
    desk.clock.now += IDENTITY_S + 0.001
    found = desk.directory.resolve(await desk.identify(), "images")
    assert found is not None
    assert found.credits == 6


async def test_organizations_kept_are_bounded(desk: Desk) -> None:
    desk.directory = Directory(desk.wire, desk.clock, bounds=CacheLimits(terms_bytes_max=2 * TERMS_BYTES))
    for organization_id in (1, 2, 3):
        desk.know(replace(CALLER, organization_id=organization_id))
        desk.clock.now += IDENTITY_S + 0.001
        await desk.identify()
    with pytest.raises(CountersUnavailable):
        desk.directory.resolve(CALLER, "images")


async def test_an_organization_that_is_served_all_the_time_keeps_its_terms(desk: Desk) -> None:
    desk.directory = Directory(desk.wire, desk.clock, bounds=CacheLimits(terms_bytes_max=2 * TERMS_BYTES))
    desk.directory._load(encode_catalogue(1, [IMAGES]))
    for organization_id in (1, 2, 1, 3, 1, 4):
        desk.know(replace(CALLER, organization_id=organization_id))
        desk.clock.now += IDENTITY_S + 0.001
        await desk.identify()
        desk.directory.resolve(replace(CALLER, organization_id=1), "images")
    assert list(desk.directory._terms.known) == [1, 4]


# --- while Redis is away ----------------------------------------------------------------


@pytest.fixture
async def leasing(valkey: str, connect: Connect) -> tuple[Desk, Allowances]:
    wire, clock = await connect(valkey), Clock()
    leases = Allowances(clock)
    directory = Directory(wire, clock, lambda: clock.now, allowances=leases, stale_s=600)
    return Desk(directory, wire, clock, redis.Redis.from_url(valkey)), leases


def lease(leases: Allowances) -> None:
    """The caller's tenant has one, for long."""
    leases.wanted(CALLER)
    for one in leases.all():
        one.until = 10**6


async def test_who_was_known_before_is_known_while_redis_is_away(leasing: tuple[Desk, Allowances]) -> None:
    desk, leases = leasing
    desk.know()
    known = await desk.identify()
    lease(leases)
    desk.wire.available = False
    desk.clock.now += 600
    assert await desk.identify() is known
    assert leases.all()[0].seen == desk.clock.now
    with pytest.raises(CountersUnavailable):
        await desk.identify("e" * 64)
    leases.all()[0].until = 0.0
    with pytest.raises(CountersUnavailable):
        await desk.identify()


async def test_who_was_known_long_ago_is_nobody_any_more(leasing: tuple[Desk, Allowances]) -> None:
    desk, leases = leasing
    desk.know()
    await desk.identify()
    lease(leases)
    desk.wire.available = False
    desk.clock.now += 602
    with pytest.raises(CountersUnavailable):
        await desk.identify()


async def test_a_key_is_nobodys_from_its_end_on_however_lately_it_was_read(
    leasing: tuple[Desk, Allowances],
) -> None:
    desk, _ = leasing
    desk.client.set(keys.identity(DIGEST), encode_identity(CALLER, round((desk.clock.now + 0.5) * 1000)))
    assert await desk.identify() == CALLER
    desk.clock.now += 0.4
    assert await desk.identify() == CALLER
    desk.clock.now += 0.1
    with pytest.raises(EndedApiKey):
        await desk.identify()


@pytest.mark.parametrize(("ahead_s", "left_s"), [(600, 400), (-600, -1)])
async def test_key_ends_by_the_time_of_redis_where_our_clock_is_wrong(
    valkey: str, connect: Connect, ahead_s: int, left_s: int
) -> None:
    wire, clock = await connect(valkey), Clock()
    desk = Desk(
        Directory(wire, clock, lambda: clock.now + ahead_s), wire, clock, redis.Redis.from_url(valkey)
    )
    desk.client.set(keys.identity(DIGEST), encode_identity(CALLER, round((clock.now + left_s) * 1000)))
    desk.directory.adjust(ahead_s)
    if left_s > 0:
        assert await desk.identify() == CALLER
    else:
        with pytest.raises(EndedApiKey):
            await desk.identify()
    desk.directory.adjust(0.0)  # our clock alone says the opposite
    clock.now += IDENTITY_S + 0.001
    if left_s > 0:
        with pytest.raises(EndedApiKey):
            await desk.identify()
    else:
        assert await desk.identify() == CALLER


async def test_a_key_expires_while_redis_is_away(leasing: tuple[Desk, Allowances]) -> None:
    desk, leases = leasing
    desk.client.set(keys.identity(DIGEST), encode_identity(CALLER, round((desk.clock.now + 60) * 1000)))
    await desk.identify()
    lease(leases)
    desk.wire.available = False
    desk.clock.now += 59
    assert await desk.identify() == CALLER
    desk.clock.now += 1
    with pytest.raises(CountersUnavailable):
        await desk.identify()


async def test_a_credential_known_as_revoked_stays_refused(leasing: tuple[Desk, Allowances]) -> None:
    desk, leases = leasing
    desk.know()
    desk.verify()
    await desk.identify()
    lease(leases)
    desk.client.delete(keys.identity(DIGEST))
    desk.clock.now += IDENTITY_S + 0.001
    with pytest.raises(InvalidApiKey):
        await desk.identify()
    lease(leases)
    desk.wire.available = False
    desk.clock.now += IDENTITY_S + 0.001
    with pytest.raises(CountersUnavailable):
        await desk.identify()


async def test_who_was_known_before_is_known_to_an_emptied_redis_until_it_is_verified(
    leasing: tuple[Desk, Allowances],
) -> None:
    desk, leases = leasing
    desk.know()
    known = await desk.identify()
    lease(leases)
    desk.client.flushall()
    desk.clock.now += IDENTITY_S + 0.001
    assert await desk.identify() is known
    desk.verify()
    with pytest.raises(InvalidApiKey):
        await desk.identify()


async def test_a_price_is_in_the_organizations_currency_else_in_that_of_the_base(desk: Desk) -> None:
    desk.know()
    began = datetime.now(UTC) - timedelta(seconds=60)
    rows = [
        price_row(id=1, input=Decimal(1)),
        price_row(id=2, input=Decimal(2), effective_from=began),
        price_row(id=3, input=Decimal(3), currency="EUR", effective_from=began),
    ]
    raw = encode_prices(1, [read_price(row) for row in rows])
    desk.client.mset({keys.PRICES: raw, keys.PRICES_HEAD: encode_head(1, raw)})
    await desk.directory.prices.refresh()

    def found(model: str, ago_s: int) -> int:
        price = desk.directory.price(CALLER, model, int((time.time() - ago_s) * 1000))
        return price.price_id if price is not None else 0

    assert (found("m", 0), found("m", 3600), found("unknown", 0)) == (2, 1, 0)
    desk.client.set(keys.organization_terms(1), encode_terms(1, OrganizationTerms(currency="EUR")))
    await desk.identify()
    assert (found("m", 0), found("m", 3600)) == (3, 1)


DAY = Budget(1, "a day", "money", 5_000, "day")
PEOPLE = Budget(2, "everybody", "requests", 5, "hour", each="user", project_id=0)
SAID = Attribution("ada", project_id=0)


def asked(desk: Desk, said: Attribution = SAID) -> list[str]:
    found = desk.directory.budgets(CALLER, 2, said, CallRequest("m", GENERIC, Body(), CallSpec("m")))
    return [] if found is None else [one.name for one in found.accounts]


async def test_budgets_come_with_the_terms_and_live_as_long(desk: Desk) -> None:
    desk.know()
    with pytest.raises(CountersUnavailable):
        asked(desk)
    await desk.identify()
    assert asked(desk) == []
    terms = OrganizationTerms(budgets=(DAY, PEOPLE))
    desk.client.set(keys.organization_terms(1), encode_terms(1, terms))
    assert asked(desk) == []
    desk.clock.now += IDENTITY_S + 0.001
    await desk.identify()
    # Whom the key is of is whose account it is, whatever the call says.
    assert asked(desk) == [account_of(1, DAY), account_of(1, PEOPLE, CALLER.user)]
    assert asked(desk, Attribution("ada", project_id=1)) == [account_of(1, DAY)]
    assert asked(desk, Attribution("ada")) == [account_of(1, DAY)]
    told = desk.directory.budgets_of(CALLER, SAID)
    assert told == [(account_of(1, DAY), DAY, ()), (account_of(1, PEOPLE, CALLER.user), PEOPLE, ())]


async def test_policies_of_runs_are_the_keys_the_tenants_and_the_organizations(desk: Desk) -> None:
    of_key, of_tenant, own = (RunPolicy(calls_max=each) for each in (1, 2, 3))
    with pytest.raises(CountersUnavailable):
        desk.directory.run_policies(CALLER)
    terms = OrganizationTerms(runs=RunPolicies(own, {CALLER.tenant_id: of_tenant}))
    desk.client.set(keys.organization_terms(1), encode_terms(1, terms))
    desk.know(replace(CALLER, runs=of_key))
    found = desk.directory.run_policies(await desk.identify())
    assert found == (("API key", of_key), ("tenant", of_tenant), ("organization", own))


async def test_a_call_that_no_budget_is_about_takes_from_none(desk: Desk) -> None:
    desk.know()
    desk.client.set(keys.organization_terms(1), encode_terms(1, OrganizationTerms(budgets=(PEOPLE,))))
    await desk.identify()
    assert (
        desk.directory.budgets(CALLER, 2, Attribution(), CallRequest("m", GENERIC, Body(), CallSpec("m")))
        is None
    )


async def test_what_budgets_do_not_say_does_not_travel(desk: Desk) -> None:
    written = encode_terms(7, OrganizationTerms(budgets=(DAY, PEOPLE)))
    assert len(written) < len(encode_terms(7, OrganizationTerms())) + 250
    assert decode_terms(written).budgets == (DAY, PEOPLE)
