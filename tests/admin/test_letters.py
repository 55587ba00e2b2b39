"""Letters and accounts in quarantine, decided many at once: as one by one, and nothing twice."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gateway.cli.admin.client import TIMEOUT_S, AdminClient, CommandFailed
from gateway.cli.admin.program import decided
from gateway.core.accounts.administration import REQUEST_S_MAX
from gateway.core.accounts.outbox import Batch
from persistence.ledger.writer import LedgerWriter
from tests.admin.conftest import READONLY, Api
from tests.admin.test_cli import Run, from_json, run
from tests.in_turn import in_turn
from tests.persistence.scenario import Account, batch_of, broken, settle_in

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


async def test_all_of_it_is_put_back_some_a_call_and_nothing_twice(api: Api) -> None:
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


async def test_one_that_is_refused_keeps_no_other(api: Api) -> None:
    await left_behind(api)
    [(poisoned,)] = api.rows("select max(id) from dead_letter")
    api.rows("update dead_letter set raw = 'torn' where id = %s returning id", poisoned)
    found = (await api.post("letters", LETTERS)).json
    assert [one["id"] for one in found["refused"]] == [poisoned]
    assert "cannot be read" in found["refused"][0]["why"]
    assert (len(found["done"]), await counts(api)) == (2, (1, 1))


async def test_filters_take_their_own_alone(api: Api) -> None:
    [one, other], _ = await left_behind(api, letters=1, accounts=2)
    assert await counts(api) == (2, 2)
    for what in ({**LETTERS, "partition": one.partition}, {**ACCOUNTS, "tenant_id": one.tenant_id}):
        found = (await api.post("letters", what)).json
        assert (len(found["done"]), found["refused"]) == (1, [])
    assert await counts(api) == (1, 1)
    [letter] = (await api.get("dead-letters?resolved=false")).json["items"]
    assert letter["partition"] == other.partition
    assert (await api.post("letters", {**ACCOUNTS, "kind": "conflict"})).json["done"] == []


async def test_a_call_is_answered_once_under_a_key(api: Api) -> None:
    await left_behind(api)
    first = await api.post("letters", {**LETTERS, "limit": 1}, key="k")
    again = await api.post("letters", {**LETTERS, "limit": 1}, key="k")
    assert (again.json, again.headers["Idempotent-Replayed"]) == (first.json, "true")
    assert await counts(api) == (2, 1)
    assert (await api.post("letters", LETTERS, key="k")).status == 409


@in_turn(
    ("sent", "said"),
    [
        ({"what": "dead_letters"}, "reason"),
        (WHY, "what"),
        ({**LETTERS, "limit": 501}, "limit"),
        ({**LETTERS, "limit": 0}, "limit"),
        ({**LETTERS, "accept": True}, "accept"),
        ({**LETTERS, "kind": "gap"}, "kind"),
        ({**ACCOUNTS, "partition": 3}, "partition"),
        ({**ACCOUNTS, "kind": "odd"}, "kind"),
        ({**ACCOUNTS, "after_id": -1}, "after_id"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_its_name(api: Api, sent: dict[str, Any], said: str) -> None:
    refused = await api.post("letters", sent)
    assert (refused.status, said in refused.raw.decode()) == (422, True), refused.raw


async def test_readers_may_count_and_decide_nothing(api: Api) -> None:
    reader = api.acting_as(READONLY)
    assert (await reader.get("letters")).status == 200
    assert (await reader.post("letters", LETTERS)).status == 403


async def test_commands_go_through_all_of_it(run: Run, api: Api) -> None:
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
        assert self.gave_up.wait(60)
        body = b'{"done": [1, 2], "refused": [], "next_after_id": null}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_command_waits_as_long_as_a_call_may_decide() -> None:
    assert TIMEOUT_S > REQUEST_S_MAX  # this call may take RUN_S_MAX more
    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server, ThreadPoolExecutor(2) as pool:
        pool.submit(server.serve_forever)
        api = AdminClient(f"http://127.0.0.1:{server.server_port}", "t", timeout_s=OTHERS_S)
        try:
            deciding = pool.submit(decided, api, LETTERS)
            assert Busy.asked.wait(60)
            with pytest.raises(CommandFailed):
                api.post("letters", LETTERS)
            Busy.gave_up.set()
            assert deciding.result() == (2, [])
        finally:
            Busy.gave_up.set()
            server.shutdown()
