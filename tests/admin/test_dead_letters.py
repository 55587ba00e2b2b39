"""What could not be stored is listed, put back exactly once, or resolved with a reason."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from gateway.core.accounts.outbox import EventKind, decode
from persistence import engine as engines
from persistence.billing.credit_balances import Allocations
from persistence.ledger.writer import LedgerWriter
from tests.admin.conftest import READONLY, Api
from tests.builders import encode
from tests.persistence.ledger.test_budget_uses import budget_of, moves
from tests.persistence.scenario import Account, batch_of, broken, busy, entries_of, settle_in


@pytest.fixture
async def writer(api: Api) -> AsyncIterator[LedgerWriter]:
    writer = LedgerWriter(api.url)
    yield writer
    writer.close()


async def bury(api: Api, writer: LedgerWriter, account: Account, /, **poison: Any) -> dict[str, Any]:
    """Have the account's last entry arrive poisoned; answers its letter."""
    entry_id, packed = account.entries[-1]
    account.entries[-1] = (entry_id, encode(replace(decode(packed), **poison)))
    await writer.write(batch_of(account))
    [letter] = (await api.get("dead-letters?resolved=false")).json["items"]
    return dict(letter)


async def test_a_letter_is_shown_with_what_it_says(api: Api, writer: LedgerWriter) -> None:
    [account] = settle_in(api.url, 1000)
    account.reset()
    event = account.consume(10)
    letter = await bury(api, writer, account, amount=2**60)
    assert (letter["tenant_id"], letter["token_seq"], letter["resolution"]) == (account.tenant_id, 2, None)
    assert (letter["event"]["amount"], letter["event"]["source"]) == (2**60, event.source)
    assert letter["event"]["metadata"]["model"] == "gpt-4o"
    assert base64.b64decode(letter["raw"]) == encode(replace(event, amount=2**60))
    shown = await api.get(f"dead-letters/{letter['id']}")
    assert shown.json == letter
    assert (await api.get(f"dead-letters?tenant_id={account.tenant_id + 1}")).json["items"] == []
    assert (await api.get("dead-letters?resolved=true")).json["items"] == []


async def test_a_letter_that_is_put_back_is_told_to_a_billing_service(api: Api, writer: LedgerWriter) -> None:
    api.rows(
        "insert into usage_feed (service, begun_at, waiting_max)"
        " values ('lago', '2000-01-01', 1000) returning id"
    )
    [account] = settle_in(api.url, 1000)
    account.reset()
    event = account.consume(10)
    letter = await bury(api, writer, account, amount=2**60)
    assert api.rows("select name from usage_outbox") == []
    await api.post(f"dead-letters/{letter['id']}/redrive", {"changes": {"amount": 10}})
    assert api.rows("select name, tokens from usage_outbox") == [(f"{event.source}:use", 10)]


@pytest.mark.parametrize("moved_on", [False, True])
async def test_a_corrected_letter_takes_its_place_once(
    api: Api, writer: LedgerWriter, *, moved_on: bool
) -> None:
    [account] = settle_in(api.url, 1000)
    busy(account)
    await writer.write(batch_of(account))
    event = account.consume(10, credits_=2, units=3, spend=4, user="eve")
    entries = list(account.entries)
    letter = await bury(api, writer, account, amount=2**60, credits=2**58)
    buried = [(entries[0][0], encode(replace(event, amount=2**60, credits=2**58)))]
    if moved_on:
        account.consume(5, credits_=1, units=1, spend=1)
        await writer.write(batch_of(account))
    path = f"dead-letters/{letter['id']}/redrive"
    assert (await api.post(path)).status == 422
    assert (await api.post(path, {"changes": {"amount": 11, "credits": 2}})).status == 409
    body = {"changes": {"amount": 10, "credits": 2}, "reason": "a broken client"}
    done = await api.post(path, body)
    assert (done.status, done.json["resolution"]) == (200, "redriven"), done.raw
    assert (done.json["resolved_reason"], done.json["resolved_by"]) == ("a broken client", "builtin:admin")
    assert (await api.post(path, body)).status == 409
    assert await broken(api.url) == []
    assert api.rows("select count(*) from listed_gap") == [(0,)]
    [(seq, remaining)] = api.rows("select last_seq, tokens_remaining from tenant_quota")
    assert (seq, remaining) == (account.seq, account.remaining)
    assert api.rows("select credit_balance, spent from organization") == [(account.balance, account.spent)]
    assert api.rows("select count(*) from token_ledger where request_id = %s", event.source) == [(1,)]
    # What Redis delivers again, with its old bytes, is recognised.
    account.entries = buried
    batch = batch_of(account)
    again = await writer.write(batch)
    assert (again.rows, again.quarantined, again.entries()) == ({}, [], entries_of(batch))
    audited = api.rows("select action, resource, actor from audit_log where resource = 'dead-letters'")
    assert audited == [("redrive", "dead-letters", "builtin:admin")]


async def test_a_letter_put_back_moves_its_budgets_once(api: Api, writer: LedgerWriter) -> None:
    [account] = settle_in(api.url, 1000)
    account.reset()
    budget = budget_of(api.url, account)
    account.consume(10, **moves(budget))
    used = "select used from budget_use where budget_id = %s"
    letter = await bury(api, writer, account, amount=2**60)
    buried = [(account.at_ms, letter["raw"])]
    assert api.rows(used, budget) == []
    path = f"dead-letters/{letter['id']}/redrive"
    assert (await api.post(path, {"changes": {"amount": 10}})).json["resolution"] == "redriven"
    assert api.rows(used, budget) == [(5,)]
    account.entries = [(b"%d-0" % at_ms, base64.b64decode(raw)) for at_ms, raw in buried]
    await writer.write(batch_of(account))
    assert api.rows(used, budget) == [(5,)]


async def test_credits_put_back_behind_allocated_ones_are_allocated(api: Api, writer: LedgerWriter) -> None:
    [account] = settle_in(api.url, 1000)
    account.reset()
    account.consume(1, credits_=7)
    letter = await bury(api, writer, account, credits=2**60)
    account.consume(1, credits_=2)
    await writer.write(batch_of(account))
    pool = engines.create(api.url)
    allocations = Allocations(pool)
    assert await allocations.allocate(account.organization_id)
    assert (await api.post(f"dead-letters/{letter['id']}/redrive", {"changes": {"credits": 7}})).status == 200
    assert await allocations.allocate(account.organization_id)
    await pool.dispose()
    assert await broken(api.url) == []
    assert api.rows("select seq, amount from credit_allocation order by seq") == [(1, 7), (2, 2)]


async def test_bytes_that_say_nothing_are_sent_whole(api: Api, writer: LedgerWriter) -> None:
    [account] = settle_in(api.url, 1000)
    account.reset()
    account.consume(10)
    (entry_id, packed), account.entries = account.entries[-1], [*account.entries[:-1]]
    account.entries.append((entry_id, b"\x09torn"))
    await writer.write(batch_of(account))
    [letter] = (await api.get("dead-letters")).json["items"]
    assert letter["event"] is None
    path = f"dead-letters/{letter['id']}/redrive"
    assert (await api.post(path)).status == 422
    assert (await api.post(path, {"raw": "%%%"})).status == 422
    assert (await api.post(path, {"raw": base64.b64encode(b"torn").decode()})).status == 422
    done = await api.post(path, {"raw": base64.b64encode(packed).decode()})
    assert (done.status, done.json["resolution"]) == (200, "redriven"), done.raw
    assert api.rows("select last_seq, tokens_remaining from tenant_quota") == [(2, 990)]
    assert await broken(api.url) == []


async def test_metadata_that_was_set_aside_is_stored_already(api: Api, writer: LedgerWriter) -> None:
    [account] = settle_in(api.url, 1000)
    account.reset()
    account.consume(10, metadata=b"{broken")
    await writer.write(batch_of(account))
    [letter] = (await api.get("dead-letters")).json["items"]
    assert letter["event"]["metadata"] == "unreadable"
    assert (await api.post(f"dead-letters/{letter['id']}/redrive")).json["resolution"] == "redriven"
    assert api.rows("select count(*) from token_ledger") == [(2,)]


async def test_a_request_that_was_charged_meanwhile_is_not_charged_again(
    api: Api, writer: LedgerWriter
) -> None:
    [account] = settle_in(api.url, 1000)
    account.reset()
    event = account.consume(10)
    letter = await bury(api, writer, account, amount=2**60)
    account.consume(10, request_id=event.source)
    await writer.write(batch_of(account))
    refused = await api.post(f"dead-letters/{letter['id']}/redrive", {"changes": {"amount": 10}})
    assert refused.status == 409
    assert "charged already" in refused.json["detail"]
    assert await broken(api.url) == []


async def test_a_resolved_letter_stays_a_listed_gap_and_finishes_its_control_write(
    api: Api, writer: LedgerWriter
) -> None:
    [account] = settle_in(api.url, 1000)
    account.reset()
    event = account.grant(EventKind.RECHARGE, 50)
    with psycopg.connect(api.url) as connection:
        connection.execute(
            "insert into control_write (id, partition, account, verb, state)"
            " values (%s, %s, 'tenant:1', 'recharge', 'applied')",
            (event.source, account.partition),
        )
    letter = await bury(api, writer, account, amount=2**60)
    path = f"dead-letters/{letter['id']}/resolve"
    for sent in (None, {"reason": ""}, {"reason": " "}):
        assert (await api.post(path, sent)).status == 422
    done = await api.post(path, {"reason": "agreed with the customer"})
    assert (done.status, done.json["resolution"]) == (200, "resolved")
    assert (await api.post(path, {"reason": "again"})).status == 409
    assert api.rows("select state from control_write") == [("done",)]
    assert api.rows("select count(*) from listed_gap") == [(1,)]
    assert await broken(api.url) == []


@pytest.mark.parametrize(
    "sent",
    [
        {"changes": {"seq": 3}},
        {"changes": {"amount": -1}},
        {"changes": {"amount": None}},
        {"changes": {"metadata": "text"}},
        {"change": {}},
        {"raw": ""},
    ],
)
async def test_wrong_corrections_are_named(api: Api, writer: LedgerWriter, sent: dict[str, Any]) -> None:
    [account] = settle_in(api.url, 1000)
    account.reset()
    account.consume(10)
    letter = await bury(api, writer, account, amount=2**60)
    refused = await api.post(f"dead-letters/{letter['id']}/redrive", sent)
    assert (refused.status, bool(refused.json["errors"])) == (422, True), json.dumps(sent)


async def test_who_may(api: Api) -> None:
    reader = api.acting_as(READONLY)
    assert (await reader.get("dead-letters")).status == 200
    assert (await reader.post("dead-letters/1/redrive")).status == 403
    assert (await reader.post("dead-letters/1/resolve", {"reason": "x"})).status == 403
    assert (await api.post("dead-letters/1/resolve", {"reason": "x"})).status == 404
