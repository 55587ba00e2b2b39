"""A roll-out of the program of the next layout, under load: gateways and keepers in any order, none with the
directory of the one before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests import newer
from tests.conftest import free_port
from tests.deploy.deployment import ADMIN_TOKEN, Deployment, until_ready
from tests.deploy.processes import Admin, Process
from tests.deploy.rolling import USED, Charged, Gateways, Load, Outcome, loaded, streaming
from tests.waiting import HUNG_S, wait_until

KEEPERS = GATEWAYS = 2
# What is replaced, one after the other: a gateway or a keeper, by its number.
Order = Sequence[tuple[str, int]]
ORDERS: dict[str, Order] = {
    "keepers first": [("keeper", 0), ("keeper", 1), ("gateway", 0), ("gateway", 1)],
    "gateways first": [("gateway", 0), ("gateway", 1), ("keeper", 0), ("keeper", 1)],
    "by turns": [("gateway", 0), ("keeper", 0), ("gateway", 1), ("keeper", 1)],
}


class Rollout:
    """Gateways and keepers of one program, replaced by those of another: of the next layout, or `trees`."""

    def __init__(
        self, folder: Path, redis_url: str, database: str, trees: tuple[Path, Path] | None = None,
        **environ: str,
    ) -> None:  # fmt: skip
        self.older, self.newer = trees or (
            newer.make(folder / "older", newer.SOONER),
            newer.make(folder / "newer", newer.CHANGES, newer.SOONER),
        )
        self.database = database
        self.deployment = Deployment(folder, redis_url, database, PYTHONPATH=str(self.older), **environ)
        self.keepers = [self.deployment.keeper]
        self.admin = self.deployment.admin
        for _ in range(KEEPERS - 1):
            self.keepers.append(self._keeper())
        self.gateways = Gateways(self.deployment, GATEWAYS)
        self.tenants = [self.admin.customer(None) for _ in range(2)]
        self.outcome = Outcome()

    @property
    def layout(self) -> int:
        """Of which layout all is that is written."""
        return int(self.admin.ask("GET", "/programs")["layout"])

    async def replace(self, order: Order, tree: Path) -> None:
        """One after the other, each by one of this program."""
        self.deployment.environ["PYTHONPATH"] = str(tree)
        for role, index in order:
            if role == "gateway":
                await self.gateways.replace(index)
                continue
            before = self.keepers[index]
            self.keepers[index] = await asyncio.to_thread(self._keeper)
            assert await asyncio.to_thread(before.stop) == 0

    async def has_current_history(self) -> None:
        """Wait until all is written in the newer layout."""
        await asyncio.to_thread(wait_until, lambda: self.layout == newer.NEWER, HUNG_S)

    @asynccontextmanager
    async def under(self, load: Load) -> AsyncIterator[None]:
        """Calls and streams, until it is left and all are answered."""
        (_, key), (_, streaming_key) = self.tenants
        began = asyncio.get_running_loop().time()
        async with self.gateways.balancer.listening(), asyncio.TaskGroup() as going:
            going.create_task(loaded(self.gateways, key, load, self.outcome))
            for _ in range(load.streams):
                going.create_task(streaming(self.gateways, streaming_key, load, self.outcome))
            try:
                yield
            finally:
                self.outcome.seconds = asyncio.get_running_loop().time() - began
                self.outcome.over = True

    def charged(self) -> tuple[list[Charged], list[Charged]]:
        """What calls and streams are charged once all gateways have ended, and what they should be."""
        for process in self.gateways.processes:
            assert process.stop() == 0
        counts = self.outcome.statuses[200], self.outcome.streams
        whose = [tenant for tenant, _ in self.tenants]
        for tenant, count in zip(whose, counts, strict=True):
            wait_until(lambda one=tenant, most=count: Charged.of(self.database, one).rows >= most, HUNG_S)
        found = [Charged.of(self.database, one) for one in whose]
        return found, [Charged(rows=one, calls=one, tokens=one * USED) for one in counts]

    def _keeper(self) -> Process:
        port = free_port()
        made = self.deployment.start("keeper", "--admin-port", str(port))
        until_ready(made, port)
        self.admin = Admin(port, ADMIN_TOKEN)
        return made
