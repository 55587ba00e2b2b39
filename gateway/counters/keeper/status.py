"""Where accounts stand in the counters, looked at only: balances, seqs, and what waits to be stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

from gateway.core.integrity.verified import AccountHead
from gateway.counters.keeper.control import PEEK_BATCH_MAX, Control
from gateway.counters.layouts import packing, states
from gateway.counters.redis import keys
from gateway.errors import CountersUnavailable

KIND_TENANT, KIND_ORGANIZATION = b"3", b"4"


class AccountHeads(Control):
    """The keeper's connection, with what billing looks at."""

    async def peek_balances(self, organizations: Sequence[tuple[int, int]]) -> Mapping[int, int | None]:
        """Read the credits of (partition, organization id) pairs; None for one that is not loaded."""
        found = await self._peek(KIND_ORGANIZATION, organizations)
        return {
            id_: states.unpack_organization(packed).balance if packed else None
            for id_, packed in found.items()
        }

    async def account_heads(
        self, tenants: Sequence[tuple[int, int]], organizations: Sequence[tuple[int, int]]
    ) -> dict[str, AccountHead | None]:
        """Read where accounts stand as they are stored, no due reset included, by account name.

        Pairs are (partition, id); None where the counters have no such account. CountersUnavailable
        where a partition is not verified: what is not there may only not be there yet.
        """
        run_id = self.run_id
        for partition in {partition for partition, _ in (*tenants, *organizations)}:
            if not run_id or packing.read_marker(await self.marker(partition))[0] != run_id:
                raise CountersUnavailable
        found: dict[str, AccountHead | None] = {}
        for (_, tenant_id), packed in await self._read(tenants, keys.tenant_state):
            if packed is None:
                found[f"tenant:{tenant_id}"] = None
                continue
            tenant = states.unpack_tenant(packed)
            remaining = None if tenant.unlimited else tenant.remaining
            found[f"tenant:{tenant_id}"] = AccountHead(tenant.seq, remaining)
        for (_, organization_id), packed in await self._read(organizations, keys.organization_state):
            organization = states.unpack_organization(packed) if packed else None
            credits_ = spend = None
            if organization is not None:
                credits_ = AccountHead(organization.credit_seq, organization.balance)
                spend = AccountHead(organization.spend_seq, organization.spent)
            found[f"credits:{organization_id}"], found[f"spend:{organization_id}"] = credits_, spend
        return found

    async def now_ms(self) -> int:
        """Redis' own clock."""
        time = await self.ask(b"TIME")
        assert isinstance(time, list)
        seconds, micros = (int(cast("bytes", part)) for part in time)
        return seconds * 1000 + micros // 1000

    async def _peek(self, kind: bytes, pairs: Iterable[tuple[int, int]]) -> dict[int, bytes | None]:
        name = keys.tenant_state if kind == KIND_TENANT else keys.organization_state
        found: dict[int, bytes | None] = {}
        for partition, ids in _by_partition(pairs).items():
            for start in range(0, len(ids), PEEK_BATCH_MAX):
                batch = ids[start : start + PEEK_BATCH_MAX]
                names = (keys.marker(partition), *(name(partition, one) for one in batch))
                call: packing.Call = (names, (self.run_id, kind))
                answer = await self.run("peek", call)
                assert isinstance(answer, list)
                if answer and not isinstance(answer[0], bytes | None):
                    raise CountersUnavailable
                found.update(zip(batch, cast("list[bytes | None]", answer), strict=True))
        return found

    async def _read(
        self, pairs: Sequence[tuple[int, int]], name: Callable[[int, int], str]
    ) -> list[tuple[tuple[int, int], bytes | None]]:
        found: list[tuple[tuple[int, int], bytes | None]] = []
        for partition, ids in _by_partition(pairs).items():
            for start in range(0, len(ids), PEEK_BATCH_MAX):
                batch = ids[start : start + PEEK_BATCH_MAX]
                packed = await self.states([name(partition, one) for one in batch])
                found += [((partition, one), raw) for one, raw in zip(batch, packed, strict=True)]
        return found


def _by_partition(pairs: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for partition, id_ in pairs:
        found.setdefault(partition, []).append(id_)
    return found
