"""The counters as the keeper's loops and people see them, whole: each part of it is in its own module."""

from __future__ import annotations

from gateway.counters.keeper.status import AccountHeads
from gateway.counters.keeper.verification import Verification


class KeeperCounters(Verification, AccountHeads):
    """Control writes, definitions, looks and verification, over one connection."""
