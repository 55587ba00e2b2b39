"""Shared by both processes of a keeper: access to Redis, and the store.

Part of the composition root.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from uuid import uuid4

from gateway.background.loops import Isolation
from gateway.background.timed.invoicing import AccountCloser
from gateway.background.verifying.reconciler import Reconciler
from gateway.core.billing.document import Letterhead
from gateway.counters.history_guard import HistoryGuards
from gateway.counters.keeper.client import UnsupportedVersions
from gateway.counters.keeper.verification import KeeperCounters
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.cluster import wires_to
from gateway.counters.redis.connection import RedisConnection
from gateway.counters.redis.keys import partition_of
from gateway.feature import features
from gateway.run.program_list import ProgramList
from gateway.settings.settings import Settings
from persistence.engine import Engine, Replica
from persistence.entity import WriteRules
from persistence.error_mapping import code_of, is_away
from persistence.font_coverage import FontCoverage
from persistence.keeper.verification import Accounts
from persistence.resources.integrity import ReconciliationResults
from persistence.store import Store, unlisted

REDIS_CALL_S = 10.0


class KeeperDoors:
    """A keeper process' access to Redis; `left_alone` counts values of other versions."""

    def __init__(self, settings: Settings, log: Callable[..., None], left_alone: UnsupportedVersions) -> None:
        self.fences = HistoryGuards(str(uuid4()), time.monotonic, log, vouches=True)
        self.wires = wires_to(
            parse_url(settings.url_file("redis_url"), settings.redis_files),
            lambda where: RedisConnection(
                where, time.monotonic, call_s=REDIS_CALL_S, stall_s=REDIS_CALL_S, refuses_eviction=True
            ),
            begun=self.fences.guard, call_s=REDIS_CALL_S,
        )  # fmt: skip
        self.isolation = Isolation(log, is_away, code=code_of)
        self.counters = KeeperCounters(self.wires, left_alone=left_alone)

    def comparers(
        self, accounts: Accounts, results: ReconciliationResults
    ) -> tuple[Reconciler, AccountCloser]:
        """Return the reconciler of counters with the ledger, and the closer of accounts."""
        now = partial(datetime.now, UTC)
        reconciler = Reconciler(self.counters, accounts, results, now, partition_of=partition_of)
        return reconciler, AccountCloser(self.counters, accounts, reconciler)


def store_over(
    settings: Settings, letterhead: Letterhead, counters: KeeperCounters, engine: Engine, *,
    organizations: Engine | None = None, replica: Replica | None = None, programs: ProgramList | None = None,
) -> Store:  # fmt: skip
    """Return the store of the Admin API and background loops over PostgreSQL.

    `letterhead` is the sender on invoices, `organizations` an engine for reads within one organization, and
    `replica` the read replica, if any. Without `programs`, no write may use a capability.
    """
    missing = next((find for feature in features() if (find := feature.missing_glyphs()) is not None), None)
    rules = WriteRules(
        private_addresses=settings.webhook_private_addresses, mail_allowed=bool(settings.smtp_url),
        mail_asks=bool(settings.links_url), stand_ins=settings.stand_ins,
    )  # fmt: skip
    return Store(
        engine, partition_of, rules=rules, letterhead=letterhead,
        replica=replica, glyphs=None if missing is None else FontCoverage(missing),
        organizations=organizations, newest_write=counters.newest_write,
        wait_reason=unlisted if programs is None else programs.wait_reason,
    )  # fmt: skip
