"""One item that fails keeps no other from its turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from gateway.background.flushing.late import RefusedDrain
from gateway.background.loops import POSTGRESQL, REDIS, Isolation
from gateway.background.timed.deliveries import WebhookDeliveries
from gateway.background.timed.pusher import Pusher
from gateway.background.verifying.verifier import Partitions
from gateway.core.accounts.definitions import (
    KeyDefinition,
    OrganizationDefinition,
    TenantDefinition,
    UserDefinition,
)
from gateway.core.accounts.plans import PlanTerms
from gateway.core.accounts.refusals import RefusedBatch, RefusedCall, RefusedCount
from gateway.core.alerts.messages import Delivery
from gateway.core.billing.allocation import ExpiredGrant
from gateway.core.integrity.recovery import LedgerState
from gateway.core.model import Limits
from gateway.errors import CountersRefused, CountersUnavailable, LedgerUnavailable, StoreUnavailable
from gateway.run.expirer import expirer

POISON = 2


class LogLines:
    """What was logged."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def __call__(self, what: str, **told: Any) -> None:
        self.lines.append({"what": what, **told})


async def test_a_server_that_is_away_is_one_line_a_minute_whatever_fails_of_it() -> None:
    said, now = LogLines(), [0.0]
    isolation = Isolation(said, lambda error: isinstance(error, EOFError), lambda: now[0])
    for second in range(121):
        now[0] = float(second)
        for loop in ("calendar", "sweeper", "news"):
            isolation.pass_failed(loop, StoreUnavailable() if loop == "news" else EOFError("gone"))
        isolation.say("flush failed", "flusher", StoreUnavailable())
    lines = [(one["what"], one["failures"]) for one in said.lines]
    assert lines == [(f"{POSTGRESQL} does not answer", count) for count in (1, 240, 240)]
    assert all("TOLLKEEPER_DATABASE_URL" in one["do"] for one in said.lines)
    isolation.pass_failed("calendar", CountersUnavailable())
    assert said.lines[-1]["what"] == f"{REDIS} does not answer"


async def test_isolation_says_a_failure_of_another_sqlstate_at_once() -> None:
    """A restart, then a full disk, within the same minute: of the flusher, and of the server itself."""
    said, codes = LogLines(), {"away": "57P01", "full": "53100", "standby": "25006"}
    isolation = Isolation(said, seconds=lambda: 0.0, code=lambda error: codes[str(error)])
    for why in ("away", "away", "full", "full", "away", "standby"):
        isolation.say("flush failed", "flusher", LedgerUnavailable(why))
        isolation.pass_failed("news", StoreUnavailable(why))
    assert [one["what"] for one in said.lines] == [
        "flush failed", f"{POSTGRESQL} does not answer",
        "flush failed", f"{POSTGRESQL} refuses",
        "flush failed", f"{POSTGRESQL} refuses",
    ]  # fmt: skip


async def test_faults_that_are_no_servers_are_a_line_each_by_loop_and_error() -> None:
    said = LogLines()
    isolation = Isolation(said, seconds=lambda: 0.0)
    for error in (ValueError("a"), ValueError("b"), KeyError("c"), CountersRefused("ERR d")):
        isolation.pass_failed("calendar", error)
        isolation.pass_failed("news", error)
    assert [(one["what"], one["loop"]) for one in said.lines] == [
        ("loop failed", "calendar"), ("loop failed", "news"),
    ] * 3  # fmt: skip


async def test_each_item_has_its_turn_and_those_that_fail_are_counted_and_said_ever_more_seldom() -> None:
    said, done = LogLines(), list[int]()
    isolation = Isolation(said)
    isolation.watch(["loop"])

    async def act(item: int) -> None:
        if item == POISON:
            raise ValueError("no")
        done.append(item)

    assert [await isolation.run_items("loop", [1, POISON, 3], act, name=str) for _ in range(5)] == [2] * 5
    assert done == [1, 3] * 5
    assert isolation.figures() == {"loop_failures": [["loop", "item", 5], ["loop", "pass", 0]]}
    assert [(one["item"], one["failures"]) for one in said.lines] == [("2", 1), ("2", 2), ("2", 4)]


@pytest.mark.parametrize(
    "away", [CountersUnavailable(), StoreUnavailable(), ConnectionRefusedError(), TimeoutError()]
)
async def test_what_concerns_everybody_ends_the_pass(away: Exception) -> None:
    act = AsyncMock(side_effect=away)
    with pytest.raises(type(away)):
        await Isolation().run_items("loop", [1, 2], act, name=str)
    assert act.await_count == 1


async def test_what_the_counters_refuse_of_one_is_of_that_one() -> None:
    act = AsyncMock(side_effect=[CountersRefused("WRONGTYPE"), None])
    assert await Isolation().run_items("loop", [1, 2], act, name=str) == 1


async def test_of_items_together_those_that_fail_alone_as_well_are_counted() -> None:
    said, done = LogLines(), list[list[int]]()
    isolation = Isolation(said)

    async def act(items: Sequence[int]) -> None:
        if POISON in items or len(items) > 2:  # too many at once, which is nobody's fault
            raise ValueError
        done.append(list(items))

    async def together(*items: int) -> int:
        return await isolation.together("loop", items, act, name=str)

    assert (await together(4, 5, 6), await together(7, 8)) == (3, 2)
    assert isolation.figures() == {"loop_failures": []}
    assert (await together(1, POISON, 3), await together(POISON), await together()) == (2, 0, 0)
    assert done == [[4], [5], [6], [7, 8], [1], [3]]
    assert isolation.figures() == {"loop_failures": [["loop", "item", 2]]}
    assert [one["item"] for one in said.lines] == ["2", "2"]


@pytest.mark.parametrize("items", [[1, 2], [1]])
async def test_what_concerns_everybody_ends_what_is_done_together(items: list[int]) -> None:
    act = AsyncMock(side_effect=CountersUnavailable())
    with pytest.raises(CountersUnavailable):
        await Isolation().together("loop", items, act, name=str)
    assert act.await_count == 1


def now() -> datetime:
    return datetime(2026, 5, 10, tzinfo=UTC)


# --- what the log says of an item -----------------------------------------------------------------

HUSH = "hush-hush"


def failing(**found: object) -> Any:
    """A port that finds these, and fails at whatever is done with one of them."""
    port = AsyncMock()
    for name in ("store", "hand_over", "send", "account_heads"):
        setattr(port, name, AsyncMock(side_effect=ValueError))
    port.waiting = Mock(side_effect=ValueError)
    for name, items in found.items():
        setattr(port, name, AsyncMock(return_value=items))
    return port


async def refused_batches(isolation: Isolation) -> None:
    call = RefusedCall("r", 0, 1, 2, 3, 4, HUSH, "", HUSH, HUSH, HUSH, False, 429, HUSH, 1)
    batches = [RefusedBatch("w", n, [RefusedCount(1, 0, 2, 3, 4, HUSH, 0, HUSH, 1)], [call]) for n in (8, 9)]
    stream = failing(read=[(b"1", one) for one in batches])
    assert await RefusedDrain(stream, failing(), isolation=isolation).drain() == len(batches)


async def definitions(isolation: Isolation) -> None:
    limits, terms = Limits(), PlanTerms()
    found = [
        OrganizationDefinition(5, limits), TenantDefinition(6, 5, limits, limits, terms),
        KeyDefinition(7, 6, 5, HUSH, limits, user=HUSH), UserDefinition(6, 5, HUSH, limits),
    ]  # fmt: skip
    target = failing(define_all=[(one, ValueError()) for one in found])
    await Partitions(failing(), target, None, isolation).define(LedgerState([], [], [], [], [], 1))


async def deliveries(isolation: Isolation) -> None:
    delivery = Delivery(11, f"https://{HUSH}.example", HUSH, "ping", {HUSH: HUSH}, now(), 1)
    await WebhookDeliveries(failing(), failing(), now, isolation=isolation).attempt(delivery)


async def accounts_of_users(isolation: Isolation) -> None:
    source = failing(accounts=[f"user:6:{HUSH}:7", "credits:5"])
    await Pusher(source, failing(), isolation=isolation).push_more()


async def expired(isolation: Isolation) -> None:
    ledger = failing(expired=[ExpiredGrant(13, 5)], behind=[])
    await expirer(ledger, failing(now_ms=0), lambda _: 0).turn(isolation)


@pytest.mark.parametrize(
    ("goes_through", "named"),
    [
        (refused_batches, ["batch 8 of worker w", "batch 9 of worker w"]),
        (definitions, ["organization:5", "tenant:6", "user:6"]),  # the first, second and fourth
        (deliveries, ["delivery 11"]),
        (accounts_of_users, ["user:6", "credits:5"]),
        (expired, ["addition 13"]),
    ],
)
async def test_the_log_names_an_item_and_has_no_word_of_a_caller(
    goes_through: Callable[[Isolation], Awaitable[None]], named: list[str]
) -> None:
    said = LogLines()
    await goes_through(Isolation(said))
    assert [one["item"] for one in said.lines] == named
    assert HUSH not in str(said.lines)
