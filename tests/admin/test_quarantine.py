"""Accounts that are stopped: seen, and let go on with a reason."""

from __future__ import annotations

from typing import Any

from persistence.ledger.writer import LedgerWriter
from tests.admin.conftest import READONLY, Api
from tests.admin.test_cli import Run, from_json, run
from tests.persistence.scenario import Account, batch_of, broken, settle_in

__all__ = ["run"]


async def stopped(api: Api) -> tuple[Account, dict[str, Any]]:
    """An account of which a movement, that also moved credits, is gone; and its quarantine."""
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


async def test_a_stopped_account_is_shown_and_released_with_those_behind_it(api: Api) -> None:
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


async def test_who_may(api: Api) -> None:
    _, row = await stopped(api)
    reader = api.acting_as(READONLY)
    assert (await reader.get("quarantine")).status == 200
    assert (await reader.post(f"quarantine/{row['id']}/release", {"reason": "x"})).status == 403
    assert (await api.post("quarantine/999/release", {"reason": "x"})).status == 404


async def test_from_the_command_line(run: Run, api: Api) -> None:
    _, row = await stopped(api)
    number = str(row["id"])
    assert len((await from_json(run, "quarantine", "list"))["items"]) == 2
    assert (await from_json(run, "quarantine", "show", number))["account"] == row["account"]
    assert (await run("quarantine", "release", number)).exit_code != 0
    done = await from_json(run, "quarantine", "release", number, "--reason", "judge it again")
    assert done["resolution"] == "judged"
    assert "none yet" in (await run("quarantine", "list")).stdout.lower()
    assert len((await from_json(run, "quarantine", "list", "--all"))["items"]) == 2
