"""What of a call is charged, as a settlement that comes late asks: of its accounts, and of its budgets."""

from __future__ import annotations

import uuid

from gateway.core.accounts.facts import CallFacts, corrected, write_facts
from gateway.core.accounts.holds import Charged, LateSettlement
from gateway.core.accounts.ledger import EventFlag, EventKind, EventNote
from gateway.core.model import Caller, Settlement
from persistence import engine as engines
from persistence.keeper.sweeps import Sweeps
from persistence.ledger.writer import Writer
from tests.builders import CHAT
from tests.persistence.ledger.test_budget_uses import budget_of, moves, opened
from tests.persistence.scenario import Account, batch_of

TAKEN_BACK = {"note": int(EventNote.RECLAIMED), "metadata": b'{"estimated":true,"reclaimed":true}'}


async def charged(url: str, account: Account, *requests: str) -> dict[str, Charged]:
    caller = Caller(account.organization_id, account.tenant_id, 3, account.partition)
    late = [LateSettlement(b"1-0", Settlement(caller, each, "", CHAT, charge=True), 0) for each in requests]
    pool = engines.create(url)
    found = await Sweeps(pool).charged(late)
    await pool.dispose()
    return found


async def test_what_moved_budgets_alone_is_charged(migrated: str, writer: Writer) -> None:
    account = opened(migrated)
    budget = budget_of(migrated, account)
    told = write_facts(CallFacts(total=7, cost=5, currency="USD", status=200))
    settled = account.consume(None, **moves(budget), metadata=told)
    taken = account.consume(None, **moves(budget), **TAKEN_BACK)
    both = account.consume(7, **moves(budget), **TAKEN_BACK)
    freed = account.consume(None, **TAKEN_BACK)
    await writer.write(batch_of(account))
    asked = [settled.source, taken.source, both.source, freed.source, str(uuid.uuid4())]
    # What was taken back for nothing is not charged, nor is what nobody knows.
    assert await charged(migrated, account, *asked) == {
        settled.source: Charged(7, weighed=0, money=5, raw_tokens=7, requests=1),
        taken.source: Charged(7, reclaimed=True, weighed=0, money=5, raw_tokens=7, requests=1),
        both.source: Charged(7, reclaimed=True, money=5, raw_tokens=7, requests=1),
    }


async def test_corrections_are_in_what_is_charged(migrated: str, writer: Writer) -> None:
    account = opened(migrated)
    budget = budget_of(migrated, account)
    taken = account.consume(None, **moves(budget), **TAKEN_BACK)
    await writer.write(batch_of(account))
    really = write_facts(CallFacts(total=9, cost=8, currency="USD", status=200))
    more = {**moves(budget, money=3), "metadata": corrected(really, taken.source, "late")}
    account.emit(EventKind.ADJUST, EventFlag(0), source=str(uuid.uuid4()), **more)
    await writer.write(batch_of(account))
    assert await charged(migrated, account, taken.source) == {
        taken.source: Charged(9, weighed=0, money=8, raw_tokens=9, requests=1)
    }
