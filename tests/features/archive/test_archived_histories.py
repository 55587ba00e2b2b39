"""Invoices go on as they are owed while the months behind them go to an archive."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.integrity.reconciliation import Owner
from gateway.features.archive.archiving import archive
from gateway.ops.storage import FileStore
from persistence import engine
from persistence.keeper.verification import Accounts
from persistence.ledger.checkpoints import Checkpoints
from tests.features.archive.aging import Clones, clones, months_made
from tests.persistence.billing.drawn import some
from tests.persistence.billing.histories import FIRST, STEPS, History, live
from tests.persistence.migrated import template
from tests.persistence.scenario import rows_of

__all__ = ["clones", "template"]

USED = [("tokens", 2_500), ("units", 40), ("buy", (900, 7)), ("tokens", 10)]
AGED = [("wait", 32), ("invoice", 0), *USED, ("wait", 45), ("invoice", 0), ("archive", None)]


class Archiving(History):
    """The same organization, whose months are archived once they are closed."""

    root = Path()
    archived = 0

    async def _archive(self, _: None) -> None:
        await self._charge(None)
        await self.april.allocate()
        pool = engine.create(self.april.url)
        account = self.april.account
        try:
            await Checkpoints(pool).close_months([account.organization_id], self.today.replace(day=1))
            place = FileStore(str(self.root))
            done = await asyncio.to_thread(archive, self.april.url, place, self.today, None, drop_after=0)
            seqs = dict(
                zip(
                    Owner(account.organization_id, (account.tenant_id,)).accounts,
                    (account.seq, account.credit_seq, account.spend_seq), strict=True,
                )
            )  # fmt: skip
            found = await Accounts(pool).accounts(seqs, deep=True)
        finally:
            await pool.dispose()
        # What is delivered a second time is of these days: nothing of a month that long ago is on its way.
        self.sent = []
        self.archived += len(done.files)
        assert [(one.account, one.summed) for one in found.values() if one.summed != one.head.balance] == []
        await self._check()


@some(2)
@given(steps=st.lists(st.one_of(STEPS, STEPS, STEPS, st.tuples(st.just("archive"), st.none())), max_size=16))
def test_random_billing_history_is_charged_the_same_when_past_months_are_archived(
    clones: Clones, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, Any]]
) -> None:
    Archiving.root = tmp_path_factory.mktemp("archive")
    with clones() as url:
        months_made(url, "2026-02-01Z", 24)
        asyncio.run(live(Archiving, url, [("subscribe", FIRST), *USED, *AGED, *steps]))
        assert rows_of(url, "SELECT count(*) FROM archived_month") != [(0,)]
