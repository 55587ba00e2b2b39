"""A settlement in the log: the arguments of `settle`, byte for byte as they were sent.

Keys are not stored, because they follow from the arguments. So another process can settle a record again,
over another connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from gateway.core.accounts.holds import MovementRange, movements
from gateway.core.billing.money import ServicePricing, read_tiers
from gateway.core.model import Caller, Service, Settlement
from gateway.core.wait import in_task
from gateway.counters.layouts import states
from gateway.counters.layouts.accounts import FLAG_COUNTS, FLAG_ONE_TIME, FLAG_PAYS, FLAG_USES
from gateway.counters.layouts.packing import ACKNOWLEDGED, GONE, GRANTED, KEPT, SETTLED, read_paid
from gateway.counters.layouts.states import held_budgets, unpack_hold
from gateway.counters.redis import keys
from gateway.counters.redis.connection import RedisConnection, encode

_FLAGS_AT = KEPT.offset("flags")
_WHERE, _WHERE_AT = KEPT.part("organization_id", "organization_id"), KEPT.offset("organization_id")


def partition_of(arguments: bytes) -> int:
    """Return the partition of a record's accounts."""
    return keys.partition_of(int(_WHERE.unpack_from(KEPT.today(arguments), _WHERE_AT)[0]))


def unpack(arguments: bytes) -> Settlement:
    """Return the settlement of a record."""
    arguments = KEPT.today(arguments)
    user, attribution, metadata, *rest = _texts(arguments[KEPT.size :])
    tiers = rest.pop(0) if arguments[_FLAGS_AT] & FLAG_USES else b""
    return settlement_of(arguments[: KEPT.size], user, attribution, metadata, tiers, paid=b"".join(rest))


def record_of(late: Mapping[bytes, bytes]) -> bytes:
    """Return the settlement in a late queue's entry, encoded as a record of the log."""
    packed = KEPT.today(late[b"a"])
    names = (b"u", b"c", b"m", b"t", b"b") if packed[_FLAGS_AT] & FLAG_USES else (b"u", b"c", b"m", b"b")
    texts = [late.get(name, b"") for name in names]
    return packed + b"\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(text), text) for text in texts)


def settlement_of(
    packed: bytes, user: bytes, attribution: bytes, metadata: bytes, tiers: bytes, *, paid: bytes = b""
) -> Settlement:
    """Return the settlement in the arguments of `settle`, with its user and service."""
    kept = KEPT.read(KEPT.today(packed))
    organization_id = kept["organization_id"]
    budgets, money, budget_tokens = read_paid(paid)
    return Settlement(
        caller=Caller(organization_id, kept["tenant_id"], kept["key_id"], keys.partition_of(organization_id)),
        request_id=kept["request_id"].decode(),
        user=user.decode(),
        service=service_of(kept["service_id"], kept["flags"], tiers),
        charge=True,
        tokens=kept["tokens"],
        credits=kept["credits"],
        units=kept["units"],
        attribution=attribution.decode(),
        metadata=metadata,
        over=kept["over"],
        quota_tokens=None if kept["quota_tokens"] in {-1, kept["tokens"]} else kept["quota_tokens"],
        budgets=budgets,
        money=money,
        budget_tokens=budget_tokens,
    )


def release_of(request_id: str, packed: bytes) -> Settlement:
    """Return the settlement that ends a packed hold without a charge."""
    hold, user, tiers = unpack_hold(packed)
    budgets = tuple(name for name, _ in held_budgets(packed)) if hold.budgets else ()
    partition = keys.partition_of(hold.organization_id)
    caller = Caller(hold.organization_id, hold.tenant_id, hold.key_id, partition)
    return Settlement(
        caller, request_id, user, service_of(hold.service_id, hold.flags, tiers), charge=False,
        budgets=budgets,
    )  # fmt: skip


def service_of(service_id: int, flags: int, tiers: bytes) -> Service:
    """Return a service with what settling needs: the accounts that it moves, and its price tiers.

    `flags` are those of the call or of its hold, which have the same bits.
    """
    if flags & FLAG_USES:
        meter = "pay_per_use"
    elif flags & (FLAG_ONE_TIME | FLAG_PAYS):
        meter = "consumption"
    else:
        meter = "subscription"
    return Service(
        id=service_id,
        key="",
        meter=meter,
        counts_tokens=bool(flags & FLAG_COUNTS),
        one_time=bool(flags & FLAG_ONE_TIME),
        pricing=ServicePricing(read_tiers(tiers)),
    )


def _texts(encoded: bytes) -> list[bytes]:
    """Return the arguments after the packed one; each follows its length, as in RESP."""
    found, at = [], 2
    while at < len(encoded):
        begins = encoded.index(b"\r\n", at) + 2
        ends = begins + int(encoded[at + 1 : begins - 2])
        found.append(encoded[begins:ends])
        at = ends + 2
    return found


# Acknowledgements in the answers of `settle` and `grant`: the epoch, and the moved seqs by account.
#
# A settlement that is sent again gets another answer, and may be lost again before a keeper has seen its note
# of the first one. So the log notes the acknowledgements of earlier answers after the latest one.

# Earlier answers that are kept of one settlement: one for each time that it was sent again and lost again.
EARLIER_MAX = 4
_SEQS = tuple(field.name for field in ACKNOWLEDGED.fields)
# The layouts of answers that acknowledge, by size; no two have the same one.
_MOVING = {one.size: one for one in (SETTLED, GRANTED)}
# A note is one of these and some of ACKNOWLEDGED: its size tells which.
_NOTED = {one.size % ACKNOWLEDGED.size: one for one in (SETTLED, GONE)}


def epoch_of(noted: bytes) -> int:
    """Return the epoch of the latest answer in a note, which is Redis' answer as the log keeps it."""
    layout = _NOTED[len(noted) % ACKNOWLEDGED.size]
    epoch: int = layout.read(noted[: layout.size])["epoch"]
    return epoch


def noted(answer: bytes, before: bytes) -> bytes:
    """Return an answer of Redis with the movements in `before`, the settlement's earlier note, or b""."""
    return answer + _moves(before)[: EARLIER_MAX * ACKNOWLEDGED.size] if before else answer


def argument(noted: bytes) -> bytes:
    """Return the acknowledgements in a settlement's note as an argument of `settle`, the latest first.

    Each has the epoch, seq, moved amount, and the other seqs.
    """
    return _moves(noted) or ACKNOWLEDGED.pack(epoch_of(noted), 0, 0, 0, 0)


def acknowledged(caller: Caller, answer: bytes) -> tuple[MovementRange, ...]:
    """Return the account movements (ranges of seqs) in an answer of `settle` or `grant`; () for none."""
    layout = _MOVING.get(len(answer))
    return _movements(caller, layout.read(answer)) if layout else ()


def recovered(caller: Caller, argument: bytes) -> tuple[MovementRange, ...]:
    """Return the movements in an `argument`; () if it is unreadable."""
    size = ACKNOWLEDGED.size
    if len(argument) % size:
        return ()
    parts = (argument[at : at + size] for at in range(0, len(argument), size))
    return tuple(movement for part in parts for movement in _movements(caller, ACKNOWLEDGED.read(part)))


def _moves(noted: bytes) -> bytes:
    """Return the packed account movements of each answer in a settlement's note, the latest first."""
    layout = _NOTED[len(noted) % ACKNOWLEDGED.size]
    if layout is GONE:
        return noted[GONE.size :]
    found = SETTLED.read(noted[: SETTLED.size])
    latest = any(found[name] for name in _SEQS[2:])
    return (ACKNOWLEDGED.pack(*(found[name] for name in _SEQS)) if latest else b"") + noted[SETTLED.size :]


def _movements(caller: Caller, found: dict[str, int]) -> tuple[MovementRange, ...]:
    moved = {name: found[name] for name in _SEQS if name in found}
    return movements(caller.partition, caller.tenant_id, caller.organization_id, **moved)


# The position of accounts by a log of acknowledged settlements: data that is behind it is older.

READ_BATCH_MAX = 500


class Positions:
    """The newest seq of each account, by movements acknowledged under the present `epochs` of partitions.

    Records acknowledged under an earlier epoch do not count, because they are sent again.
    """

    def __init__(self, epochs: Sequence[int]) -> None:
        self._epochs = epochs
        self._newest: dict[int, dict[str, int]] = {}
        self._later: set[int] = set()

    def add(self, partition: int, epoch: int, moved: Iterable[MovementRange]) -> None:
        """Add the movements of one acknowledged settlement."""
        present = self._epochs[partition]
        if 0 < present < epoch:
            self._later.add(partition)
        if epoch == present:
            newest = self._newest.setdefault(partition, {})
            for one in (each for each in moved if each.epoch == epoch):
                newest[one.account] = max(newest.get(one.account, 0), one.last_seq)

    async def are_ahead(self, wire: RedisConnection) -> bool:
        """Return whether a connection's server has older data: a lower seq of an account, or lower epoch."""
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
    """Return the seq of an account in its packed state; 0 if it is missing."""
    if not isinstance(packed, bytes):
        return 0
    kind = account.partition(":")[0]
    if kind == "tenant":
        return states.unpack(states.TenantState, packed).seq
    found = states.unpack(states.OrganizationState, packed)
    return found.credit_seq if kind == "credits" else found.spend_seq
