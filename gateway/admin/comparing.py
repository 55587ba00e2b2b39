"""What the Admin API needs of whoever compares counters and ledger."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from gateway.core.accounts.administration import Row


class Reconciler(Protocol):
    """Compares the counters with the ledger."""

    async def last(self) -> Row | None:
        """The last kept result."""

    def alone(self) -> AbstractAsyncContextManager[None]:
        """Have the only run of all keepers at a time; `Overloaded` while there is another."""

    async def run_now(self, *, repair: bool = False, whole: bool = False, within_s: float) -> Row:
        """Compare everything, keep and answer the result; make drifts good, read all rows only if asked."""
