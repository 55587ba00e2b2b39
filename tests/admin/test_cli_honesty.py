"""What could not be stored, from the command line."""

from __future__ import annotations

from persistence.ledger.writer import LedgerWriter
from tests.admin.conftest import Api
from tests.admin.test_cli import Run, from_json, run
from tests.persistence.scenario import Account, batch_of, broken, settle_in

__all__ = ["run"]


async def torn(api: Api) -> tuple[Account, LedgerWriter]:
    """An account whose second movement could not become a row."""
    [account] = settle_in(api.url, 1000)
    account.reset()
    account.service_id = 2**80
    account.consume(10)
    writer = LedgerWriter(api.url)
    await writer.write(batch_of(account))
    return account, writer


async def test_a_letter_is_listed_and_driven_again(run: Run, api: Api) -> None:
    _, writer = await torn(api)
    writer.close()
    [letter] = (await from_json(run, "deadletter", "list"))["items"]
    assert letter["reason"] in (await run("deadletter", "list")).stdout
    number = str(letter["id"])
    assert (await from_json(run, "deadletter", "show", number))["event"]["amount"] == 10
    assert (await run("deadletter", "redrive", number)).exit_code == 1
    for wrong in ("service_id", "service_id=abc"):
        assert (await run("deadletter", "redrive", number, "--change", wrong)).exit_code == 1
    done = await from_json(run, "deadletter", "redrive", number, "--change", "service_id=1")
    assert done["resolution"] == "redriven"
    assert (await from_json(run, "deadletter", "list"))["items"] == []
    assert len((await from_json(run, "deadletter", "list", "--all"))["items"]) == 1
    assert api.rows("select amount, service_id from token_ledger where seq = 2") == [(10, 1)]
    assert await broken(api.url) == []


async def test_a_letter_is_resolved_with_a_reason(run: Run, api: Api) -> None:
    _, writer = await torn(api)
    writer.close()
    [letter] = (await from_json(run, "deadletter", "list"))["items"]
    assert (await run("deadletter", "resolve", str(letter["id"]))).exit_code != 0
    done = await from_json(run, "deadletter", "resolve", str(letter["id"]), "--reason", "a test")
    assert (done["resolution"], done["resolved_reason"]) == ("resolved", "a test")
