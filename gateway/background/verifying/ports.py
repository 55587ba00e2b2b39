"""What the verifier asks of PostgreSQL and of the counters."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from gateway.background.verifying.budgets import Source as BudgetSource
from gateway.background.verifying.budgets import Target as BudgetTarget
from gateway.core.accounts.definitions import (
    AccountDefinition,
    CatalogueDefinition,
    KeyDefinition,
    OrganizationAccount,
    OrganizationDefinition,
    PricesDefinition,
    TenantAccount,
)
from gateway.core.integrity.recovery import Markers, Report
from gateway.core.integrity.verified import Compared, Everybodys, Places, Truth


class Source(BudgetSource, Protocol):
    """PostgreSQL."""

    async def settled(self, held: Mapping[str, int]) -> list[str]:
        """Which of these requests have a row, or may have had one, by the deadlines of their holds in ms."""

    async def push_again(self, ids: Sequence[str]) -> None:
        """Have these applied control writes wait again."""

    async def everybodys(self) -> Everybodys:
        """What is of no partition."""

    async def places(self, partitions: Collection[int], known: Mapping[int, int]) -> Places:
        """Who is to be looked at in these partitions: of those `known` up to a position, who changed."""

    async def compared(self) -> Mapping[int, Compared]:
        """What partitions were compared as last, but for those that rows were lost of."""

    async def note_compared(self, run_id: bytes, epochs: Mapping[int, int], position: int) -> None:
        """Keep that partitions' data has all that is defined up to a position, as they are verified now."""

    async def truth(self, organizations: Mapping[int, Sequence[int]]) -> Mapping[int, Truth]:
        """What is known of partitions, by which they are, whose organizations these are."""

    async def credentials(self, keys: Sequence[int]) -> Sequence[KeyDefinition]:
        """These keys."""

    async def note(self, run_id: bytes, epochs: Mapping[int, int]) -> Collection[int]:
        """Keep what partitions are verified as: no later epoch is ever one of these. Answers which are.

        An epoch is one history's: where another one has it, or a later one, that stays. Flushes that are
        under way have ended then: the truth that is read next is not older.
        """

    async def noted(self) -> Mapping[int, tuple[bytes, int]]:
        """The last run id and epoch of each partition; absent: never verified."""


class Target(BudgetTarget, Protocol):
    """The counters."""

    async def behind(
        self, partition: int, organizations: Sequence[OrganizationAccount], tenants: Sequence[TenantAccount]
    ) -> tuple[list[OrganizationAccount], list[TenantAccount]]:
        """Accounts whose state is missing or whose seq lags."""

    async def unknown(self, partition: int, known: Sequence[KeyDefinition]) -> list[KeyDefinition]:
        """Keys that have no state."""

    async def restore(self, partition: int, marker: bytes, lost: Truth) -> bool:
        """Write these accounts and keys as PostgreSQL has them; False where the marker moved on."""

    async def held(self, partition: int) -> Mapping[str, int]:
        """The deadlines of all holds of a partition by request id, in ms of the counters' clock."""

    async def let_go(self, partition: int, before: bytes, epoch: int, ids: Sequence[str]) -> bytes | None:
        """End these holds without a charge; answers the marker that is there now, None where it moved on."""

    async def forgotten(self, partition: int, ids: Sequence[str]) -> list[str]:
        """Control writes among these that the counters do not remember."""

    async def mark(
        self, run_id: bytes, partition: int, before: bytes, epoch: int, catalogue: int | None
    ) -> bool:
        """Vouch for a partition, without a catalogue admitting nobody; False where the marker moved on."""

    async def define_all(
        self, definitions: Sequence[AccountDefinition], version: int
    ) -> list[tuple[AccountDefinition, Exception]]:
        """Bring definitions of one partition into the counters, but for terms and identities; which of them
        are refused, and why.
        """

    async def write_terms(self, organizations: Sequence[OrganizationDefinition], version: int) -> None:
        """Write the terms of organizations of one partition."""

    async def identities(self, definitions: Sequence[KeyDefinition]) -> None:
        """Write whom credentials stand for."""

    @property
    def run_id(self) -> bytes:
        """The server's run id on this connection; empty while there is none."""

    async def markers(self) -> Markers:
        """The partitions as their markers stand."""

    async def close_again(self, run_id: bytes, partitions: Collection[int]) -> None:
        """Have nobody go by these as they were verified under this run id."""

    async def last_verified(self) -> bytes:
        """Under which run id it was last said that whatever is not here does not exist."""

    async def reports(self) -> Mapping[str, Report]:
        """What workers reported last, by worker number."""

    async def publish(self, everybodys: CatalogueDefinition | PricesDefinition, version: int) -> None:
        """Write the catalogue, or the prices."""

    async def all_verified(self, run_id: bytes) -> None:
        """Say that whatever is not here does not exist."""

    async def said_verified(self, run_id: bytes, unverified: Sequence[object]) -> bool:
        """Whether a keeper has said so under this run id; where any is unverified, it is said no more."""
