"""What could not be stored is listed, put back exactly once, or resolved with a reason."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gateway.admin.http.bodies import check_body
from gateway.admin.resources.registry import REPORTS
from gateway.cli.admin.client import TIMEOUT_S, AdminClient, CommandFailed
from gateway.cli.admin.program import decide_all
from gateway.core.accounts.administration import REQUEST_S_MAX
from gateway.core.accounts.budgets import owner_of
from gateway.core.accounts.flush_batch import Batch
from gateway.core.accounts.outbox import EventKind, decode
from gateway.core.integrity.recovery import KnownOtherwise
from gateway.errors import Unprocessable
from gateway.ops.doctor import _examine_set_aside
from gateway.ops.doctor_redis import FAILED
from persistence import engine as engines
from persistence.billing.credit_balances import Allocations
from persistence.ledger.writer import LedgerWriter
from persistence.resources.audit import STAFF
from persistence.resources.integrity import Quarantines
from tests.admin.conftest import Api
from tests.admin.console.elsewhere import Browser, World, console_of_people
from tests.admin.test_cli import Run, from_json, run
from tests.builders import encode
from tests.connections import connected
from tests.databases import give_back, take_engine
from tests.in_turn import in_turn
from tests.persistence.ledger.test_budget_moves import budget_of, moves
from tests.persistence.scenario import Account, batch_of, broken, busy, entries_of, settle_in
from tests.waiting import HUNG_S


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


async def test_dead_letter_is_shown_with_the_decoded_ledger_event_and_the_raw_bytes(
    api: Api, writer: LedgerWriter
) -> None:
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


async def test_redriven_dead_letter_sends_the_use_to_the_billing_service_queue(
    api: Api, writer: LedgerWriter
) -> None:
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
async def test_corrected_dead_letter_fills_the_missing_ledger_row_only_once(
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


async def test_redriven_dead_letter_counts_in_budget_use_only_once(api: Api, writer: LedgerWriter) -> None:
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


async def test_credits_of_a_redriven_dead_letter_are_allocated_after_later_credits_were_allocated(
    api: Api, writer: LedgerWriter
) -> None:
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


async def test_undecodable_dead_letter_is_redriven_only_with_replacement_bytes_for_the_whole_entry(
    api: Api, writer: LedgerWriter
) -> None:
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


async def test_redriven_dead_letter_with_unreadable_metadata_creates_no_second_ledger_row(
    api: Api, writer: LedgerWriter
) -> None:
    [account] = settle_in(api.url, 1000)
    account.reset()
    account.consume(10, metadata=b"{broken")
    await writer.write(batch_of(account))
    [letter] = (await api.get("dead-letters")).json["items"]
    assert letter["event"]["metadata"] == "unreadable"
    assert (await api.post(f"dead-letters/{letter['id']}/redrive")).json["resolution"] == "redriven"
    assert api.rows("select count(*) from token_ledger") == [(2,)]


async def test_dead_letter_of_a_request_that_was_charged_meanwhile_cannot_be_redriven(
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


async def test_resolved_dead_letter_is_listed_as_a_ledger_gap_and_marks_the_recharge_as_done(
    api: Api, writer: LedgerWriter
) -> None:
    [account] = settle_in(api.url, 1000)
    account.reset()
    event = account.grant(EventKind.RECHARGE, 50)
    with connected(api.url) as connection:
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


async def test_dead_letter_redrive_with_invalid_corrections_is_refused_with_errors(
    api: Api, writer: LedgerWriter
) -> None:
    [account] = settle_in(api.url, 1000)
    account.reset()
    account.consume(10)
    letter = await bury(api, writer, account, amount=2**60)
    for changes in ({"amount": -1}, {"amount": None}, {"metadata": "text"}):
        refused = await api.post(f"dead-letters/{letter['id']}/redrive", {"changes": changes})
        assert (refused.status, bool(refused.json["errors"])) == (422, True), changes


# --- letters ----------------------------------------------------------------------------
# Letters and accounts in quarantine, decided many at once: as one by one, and nothing twice.


__all__ = ["run"]

OTHERS_S = 0.2
WHY = {"reason": "an older keeper could not read them"}
LETTERS = {"what": "dead_letters", **WHY}
ACCOUNTS = {"what": "quarantine", **WHY}


def unread(batch: Batch) -> Batch:
    """As a keeper sees entries that it cannot read."""
    return {p: [(id_, packed, None) for id_, packed, _ in entries] for p, entries in batch.items()}


async def left_behind(api: Api, *, letters: int = 3, accounts: int = 1) -> tuple[list[Account], Batch]:
    """What a keeper leaves that could not read some entries: letters, and accounts that miss them.

    Answers what waits behind them as well.
    """
    found = settle_in(api.url, *[1000] * accounts)
    writer = LedgerWriter(api.url)
    for account in found:
        account.reset()
    await writer.write(batch_of(*found))
    for account in found:
        account.entries.clear()
        for _ in range(letters):
            account.consume(10)
    await writer.write(unread(batch_of(*found)))
    for account in found:
        account.entries.clear()
        account.consume(5)
    behind = batch_of(*found)
    await writer.write(behind)
    writer.close()
    return found, behind


async def counts(api: Api) -> tuple[int, int]:
    found = (await api.get("letters")).json
    return found["dead_letters"], found["quarantine"]


async def test_bulk_redrive_of_dead_letters_runs_in_batches_and_stores_each_letter_once(api: Api) -> None:
    [account], behind = await left_behind(api)
    assert await counts(api) == (3, 1)
    first = (await api.post("letters", {**LETTERS, "limit": 2})).json
    assert (len(first["done"]), first["refused"], first["next_after_id"]) == (2, [], first["done"][-1])
    second = (await api.post("letters", {**LETTERS, "limit": 2, "after_id": first["next_after_id"]})).json
    assert (len(second["done"]), second["refused"], second["next_after_id"]) == (1, [], None)
    assert (await api.post("letters", LETTERS)).json == {"done": [], "refused": [], "next_after_id": None}
    released = (await api.post("letters", ACCOUNTS)).json
    assert (len(released["done"]), released["refused"]) == (1, [])
    assert await counts(api) == (0, 0)
    writer = LedgerWriter(api.url)
    await writer.write(behind)
    writer.close()
    rows = api.rows("select seq, amount from token_ledger where transaction_type = 'consume' order by seq")
    assert rows == [(2, 10), (3, 10), (4, 10), (5, 5)]
    assert api.rows("select last_seq, tokens_remaining from tenant_quota") == [(5, account.remaining)]
    assert await broken(api.url) == []
    audited = api.rows("select resource, action, count(*) from audit_log group by 1, 2 order by 1, 2")
    assert {one[:2]: one[2] for one in audited if one[0] != "letters"} == {
        ("dead-letters", "redrive"): 3, ("quarantine", "release"): 1,
    }  # fmt: skip


async def test_bulk_redrive_of_dead_letters_continues_after_a_refused_letter(api: Api) -> None:
    await left_behind(api)
    [(poisoned,)] = api.rows("select max(id) from dead_letter")
    api.rows("update dead_letter set raw = 'torn' where id = %s returning id", poisoned)
    found = (await api.post("letters", LETTERS)).json
    assert [one["id"] for one in found["refused"]] == [poisoned]
    assert "cannot be read" in found["refused"][0]["why"]
    assert (len(found["done"]), await counts(api)) == (2, (1, 1))


async def test_bulk_redrive_and_release_filters_select_only_matching_letters_and_accounts(api: Api) -> None:
    [one, other], _ = await left_behind(api, letters=1, accounts=2)
    assert await counts(api) == (2, 2)
    for what in ({**LETTERS, "partition": one.partition}, {**ACCOUNTS, "tenant_id": one.tenant_id}):
        found = (await api.post("letters", what)).json
        assert (len(found["done"]), found["refused"]) == (1, [])
    assert await counts(api) == (1, 1)
    [letter] = (await api.get("dead-letters?resolved=false")).json["items"]
    assert letter["partition"] == other.partition
    assert (await api.post("letters", {**ACCOUNTS, "kind": "conflict"})).json["done"] == []


@in_turn(
    ("sent", "said"),
    [
        ({"what": "dead_letters"}, "reason"), (WHY, "what"), ({**LETTERS, "limit": 501}, "limit"),
        ({**LETTERS, "limit": 0}, "limit"), ({**LETTERS, "accept": True}, "accept"),
        ({**LETTERS, "kind": "gap"}, "kind"), ({**ACCOUNTS, "partition": 3}, "partition"),
        ({**ACCOUNTS, "kind": "odd"}, "kind"), ({**ACCOUNTS, "after_id": -1}, "after_id"),
    ],
)  # fmt: skip
def test_invalid_bulk_redrive_or_release_is_refused_with_the_field_named(
    sent: dict[str, Any], said: str
) -> None:
    run = REPORTS["letters"].run
    assert run is not None
    assert run.body is not None
    with pytest.raises(Unprocessable) as refused:
        check_body(run.body, sent)
    assert said in str(refused.value.errors)


async def test_cli_letters_commands_redrive_all_dead_letters_and_release_all_quarantined_accounts(
    run: Run, api: Api
) -> None:
    await left_behind(api)
    assert (await run("letters", "redrive")).exit_code != 0
    done = await from_json(run, "letters", "redrive", "--reason", "an older keeper")
    assert (done["done"], done["items"]) == (3, [])
    assert (await from_json(run, "letters", "release", "--reason", "they are back"))["done"] == 1
    assert await from_json(run, "letters", "show") == {"dead_letters": 0, "quarantine": 0}


class Busy(BaseHTTPRequestHandler):
    """An Admin API that has much to decide: it answers after any other client has given up."""

    asked, gave_up = threading.Event(), threading.Event()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.set()
        assert self.gave_up.wait(HUNG_S)
        body = b'{"done": [1, 2], "refused": [], "next_after_id": null}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_cli_bulk_redrive_waits_longer_than_the_usual_request_timeout() -> None:
    assert TIMEOUT_S > REQUEST_S_MAX  # this call may take RUN_S_MAX more
    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server, ThreadPoolExecutor(2) as pool:
        pool.submit(server.serve_forever)
        api = AdminClient(f"http://127.0.0.1:{server.server_port}", "t", timeout_s=OTHERS_S)
        try:
            deciding = pool.submit(decide_all, api, LETTERS)
            assert Busy.asked.wait(HUNG_S)
            with pytest.raises(CommandFailed):
                api.post("letters", LETTERS)
            Busy.gave_up.set()
            assert deciding.result() == (2, [])
        finally:
            Busy.gave_up.set()
            server.shutdown()


# --- quarantine -------------------------------------------------------------------------
# Accounts that are stopped: seen, and let go on with a reason.


async def stopped(api: Api) -> tuple[Account, dict[str, Any]]:
    """An account that lost a movement of tokens and credits, and its quarantine."""
    [account] = settle_in(api.url, 1000)
    account.reset()
    writer = LedgerWriter(api.url)
    await writer.write(batch_of(account))
    account.credit(100)
    account.take()
    account.consume(2, credits_=5)
    await writer.write(batch_of(account))
    writer.close()
    items = (await api.get("quarantine?released=false&order=asc")).json["items"]
    assert {item["kind"] for item in items} == {"gap", "behind"}
    return account, next(item for item in items if item["kind"] == "gap")


async def test_quarantined_account_is_shown_and_can_be_released_with_the_lost_events_noted(api: Api) -> None:
    account, row = await stopped(api)
    assert (row["account"], row["stored_seq"], row["found_seq"]) == (
        f"credits:{account.organization_id}", 0, 2,
    )  # fmt: skip
    assert row["stood"]["balance"] == 100
    path = f"quarantine/{row['id']}"
    assert (await api.get(path)).json == row
    assert (await api.post(f"{path}/release")).status == 422
    [behind] = (await api.get("quarantine?kind=behind")).json["items"]
    refused = await api.post(f"quarantine/{behind['id']}/release", {"reason": "x", "accept": True})
    assert (refused.status, row["account"] in refused.json["detail"]) == (409, True)
    done = await api.post(f"{path}/release", {"reason": "the disk is gone", "accept": True})
    assert (done.status, done.json["resolution"]) == (200, "accepted")
    assert (done.json["released_reason"], done.json["released_by"]) == ("the disk is gone", "builtin:admin")
    assert (await api.post(f"{path}/release", {"reason": "again"})).status == 409
    assert (await api.get("quarantine?released=false")).json["items"] == []
    detail = {
        "quarantine": row["id"], "difference": 100, "reason": "the disk is gone", "by": "builtin:admin",
        "person": None,
    }  # fmt: skip
    assert api.rows("select first_seq, last_seq, detail from lost_event") == [(1, 1, detail)]
    assert api.rows("select kind, amount, balance_after from credit_posting") == [("correction", 100, 100)]
    assert await broken(api.url) == []
    assert api.rows("select action from audit_log where resource = 'quarantine'") == [("release",)]


async def test_held_keys_and_overrides_are_counted_by_doctor_and_opened_by_their_own_release_alone(
    api: Api,
) -> None:
    organization = (await api.post("organizations", {"name": "acme"})).json["id"]
    tenant = (await api.post("tenants", {"name": "team", "organization_id": organization})).json["id"]
    leaked, ended = [(await api.post("api-keys", {"tenant_id": tenant, "name": each})).json for each in "ab"]
    of_each = {
        "organization_id": organization,
        "unit": "requests",
        "amount": 9,
        "interval": "day",
        "each": "user",
    }
    budget = (await api.post("budgets", {**of_each, "name": "each"})).json["id"]
    known = KnownOtherwise({leaked["id"]: 0, ended["id"]: 0}, {budget: {owner_of("bob"): ["0", None]}})
    pool = take_engine(api.url)
    [account] = await Quarantines(pool).hold(1, {organization: known})
    await give_back(api.url, pool)
    assert (await api.post(f"api-keys/{ended['id']}/revoke")).status == 200
    [row] = (await api.get("quarantine?released=false")).json["items"]
    assert row["account"] == account == f"access:{organization}"
    assert (row["opens_keys"], row["opens_overrides"], row["stood"]) == (1, 1, None)
    assert row["opens"] == {
        "keys": [{"id": leaked["id"], "prefix": leaked["prefix"], "name": "a"}],
        "overrides": [{"budget_id": budget, "owner": owner_of("bob")}],
    }  # fmt: skip
    [finding] = [one for one in _examine_set_aside(api.url) if one.well is FAILED]
    assert (
        "refused as Redis knows them: 1, overrides that Redis knows otherwise than PostgreSQL: 1;"
        in finding.says
    )
    # A decision on many accounts opens nothing.
    many = (await api.post("letters", {**ACCOUNTS, "accept": True})).json
    assert (many["done"], [one["id"] for one in many["refused"]]) == ([], [row["id"]])
    path = f"quarantine/{row['id']}/release"
    refused = await api.post(path, {"reason": "rows are back"})
    assert (refused.status, "opens 1 keys, and has 1 overrides" in refused.json["detail"]) == (409, True)
    done = await api.post(path, {"reason": "nothing leaked", "accept": True})
    assert (done.json["resolution"], done.json["opens_keys"], done.json["opens_overrides"]) == (
        "accepted",
        1,
        1,
    )
    assert [one.says for one in _examine_set_aside(api.url)] == [
        "no account is in quarantine, and there is no dead letter"
    ]


# --- decided ----------------------------------------------------------------------------
# Letters and accounts that are stopped keep who decided about them: the person, not the token alone.


LETTER = (
    "insert into dead_letter (partition, entry_id, reason, raw, organization_id, resolved_at)"
    " values (1, '1-1', 'unreadable', 'x', %s, null) returning id"
)
STOPPED = (
    "insert into quarantine (account, partition, organization_id, kind, entry_id, epoch, stored_seq,"
    " found_seq, reason) values ('credits:' || %s, 1, %s, 'conflict', '1-2', 1, 1, 2, 'other') returning id"
)
KIM = {"person": "Kim", "identity": "u-1"}


@pytest.fixture
async def world(admin_database: str, keeper_database: str) -> AsyncIterator[World]:
    async with console_of_people(admin_database, keeper_database) as made:
        yield made


def of(row: object, word: str) -> dict[str, object]:
    """Who a row says it was."""
    found = json.loads(json.dumps(row))
    return {name: found[f"{word}_{name}"] for name in ("by", "issuer", "identity", "person")}


async def test_staff_person_deciding_on_a_dead_letter_is_named_to_staff_only(world: World) -> None:
    api = world.api
    token = await world.let_in()
    own = (await api.make("organizations", name="of-decisions"))["id"]
    [(letter,)], [(stopped,)] = api.rows(LETTER, own), api.rows(STOPPED, own, own)
    kim = Browser.at(world)
    assert (await kim.sign_in()).status == 200
    for path, action in ((f"dead-letters/{letter}", "resolve"), (f"quarantine/{stopped}", "release")):
        done = await kim.person.fill(f"/{path}", f"/{path}/{action}", reason="looked at")
        assert done.status == 303, done.text
    whole = {"by": f"token:{token['id']}", "issuer": world.provider.url, **KIM}
    theirs = await api.make("admin-tokens", name="theirs", role="operator", organization_id=own)
    for path, word in ((f"dead-letters/{letter}", "resolved"), (f"quarantine/{stopped}", "released")):
        assert of((await api.get(path)).json, word) == whole
        assert "Kim" in (await kim.person.open(f"/{path}")).text
        seen = (await api.acting_as(theirs["token"]).get(path)).json
        assert of(seen, word) == {"by": STAFF, "issuer": None, "identity": None, "person": None}
        assert seen[f"{word}_reason"] == "looked at"


async def test_organization_sees_the_own_token_that_resolved_a_dead_letter(world: World) -> None:
    api = world.api
    own = (await api.make("organizations", name="that-decides"))["id"]
    [(letter,)] = api.rows(LETTER, own)
    theirs = await api.make("admin-tokens", name="own", role="operator", organization_id=own, ours=True)
    operator = api.acting_as(theirs["token"])
    open_ = (await operator.get(f"dead-letters/{letter}")).json
    assert set(of(open_, "resolved").values()) == {None}
    done = await operator.post(f"dead-letters/{letter}/resolve", {"reason": "ours"})
    assert (done.status, of(done.json, "resolved")["by"]) == (200, f"token:{theirs['id']}")
    [listed] = (await operator.get("dead-letters")).json["items"]
    assert of(listed, "resolved") == of(done.json, "resolved")
