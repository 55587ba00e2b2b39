"""How far accounts have moved by a log of acknowledged settlements: data that is not as far is older data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gateway.core.accounts.losses import Movement
from gateway.core.wait import in_task
from gateway.counters.layouts import states
from gateway.counters.redis import keys
from gateway.counters.redis.wire import Wire, encode

READ_BATCH_MAX = 500


class Positions:
    """The newest movement of each account, of those acknowledged under the present `epochs` of partitions.

    What was acknowledged before has another epoch than its partition, and is sent again for that.
    """

    def __init__(self, epochs: Sequence[int]) -> None:
        self._epochs = epochs
        self._newest: dict[int, dict[str, int]] = {}
        self._later: set[int] = set()

    def add(self, partition: int, epoch: int, moved: Iterable[Movement]) -> None:
        """Take up one acknowledged settlement; what earlier answers moved is of earlier epochs."""
        present = self._epochs[partition]
        if 0 < present < epoch:
            self._later.add(partition)
        if epoch == present:
            newest = self._newest.setdefault(partition, {})
            for one in (each for each in moved if each.epoch == epoch):
                newest[one.account] = max(newest.get(one.account, 0), one.last_seq)

    async def are_ahead(self, wire: Wire) -> bool:
        """Whether an account has moved less far in the data of a wire's server, or an epoch is to come there
        that has been.
        """
        mine = set(wire.part.partitions)
        for partition in self._newest.keys() & mine:
            newest = self._newest[partition]
            accounts = list(newest)
            for start in range(0, len(accounts), READ_BATCH_MAX):
                batch = accounts[start : start + READ_BATCH_MAX]
                names = [_state(partition, one).encode() for one in batch]
                found = await in_task(wire.send(encode(b"MGET", *names)))
                assert isinstance(found, list)
                if any(_seq(one, raw) < newest[one] for one, raw in zip(batch, found, strict=True)):
                    return True
        return not mine.isdisjoint(self._later)


def _state(partition: int, account: str) -> str:
    kind, _, number = account.partition(":")
    name = keys.tenant_state if kind == "tenant" else keys.organization_state
    return name(partition, int(number))


def _seq(account: str, packed: object) -> int:
    """How far an account has moved by its state; 0 where there is none."""
    if not isinstance(packed, bytes):
        return 0
    kind = account.partition(":")[0]
    if kind == "tenant":
        return states.unpack(states.TenantState, packed).seq
    found = states.unpack(states.OrganizationState, packed)
    return found.credit_seq if kind == "credits" else found.spend_seq
