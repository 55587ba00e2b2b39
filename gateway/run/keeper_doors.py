"""What both processes of a keeper stand on: Redis behind its fences, a store, and who compares the two.

Part of the composition root.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from uuid import uuid4

from gateway.admin.invoices.missing_glyphs import missing_glyphs
from gateway.background.isolation import Isolation
from gateway.background.timed.closing import AccountClosing
from gateway.background.verifying.reconciler import Reconciler
from gateway.core.billing.document import Letterhead
from gateway.counters.fences import Fences
from gateway.counters.keeper.left_alone import LeftAlone
from gateway.counters.keeper.verification import KeeperCounters
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connecting import wires_to
from gateway.counters.redis.keys import partition_of
from gateway.counters.redis.wire import Wire
from gateway.settings.settings import Settings
from persistence.away import is_away
from persistence.engine import Engine
from persistence.glyphs import Glyphs
from persistence.keeper.reconciliations import Accounts
from persistence.replica import Replica
from persistence.resources.reconciliation_results import Results
from persistence.store import Store

REDIS_CALL_S = 10.0


class KeeperDoors:
    """Redis, as one process of a keeper asks it; what another version has stored is `left_alone`."""

    def __init__(self, settings: Settings, log: Callable[..., None], left_alone: LeftAlone) -> None:
        self.fences = Fences(str(uuid4()), time.monotonic, log)
        self.wires = wires_to(
            parse_url(settings.url_file("redis_url"), settings.redis_files),
            lambda where: Wire(
                where, time.monotonic, call_s=REDIS_CALL_S, stall_s=REDIS_CALL_S, refuses_eviction=True
            ),
            begun=self.fences.guard, call_s=REDIS_CALL_S,
        )  # fmt: skip
        self.isolation = Isolation(log, is_away)
        self.counters = KeeperCounters(self.wires, left_alone=left_alone)

    def comparers(self, accounts: Accounts, results: Results) -> tuple[Reconciler, AccountClosing]:
        """Who compares the counters with the ledger, and who closes accounts by it."""
        now = partial(datetime.now, UTC)
        reconciler = Reconciler(self.counters, accounts, results, now, partition_of=partition_of)
        return reconciler, AccountClosing(self.counters, accounts, reconciler)


def store_over(
    settings: Settings, letterhead: Letterhead, engine: Engine, organizations: Engine | None = None,
    replica: Replica | None = None,
) -> Store:  # fmt: skip
    """PostgreSQL as the Admin API and the clock use it."""
    return Store(
        engine, partition_of, private_addresses=settings.webhook_private_addresses,
        mail_allowed=bool(settings.smtp_url), mail_asks=bool(settings.links_url), letterhead=letterhead,
        replica=replica, glyphs=Glyphs(missing_glyphs), organizations=organizations,
    )  # fmt: skip
