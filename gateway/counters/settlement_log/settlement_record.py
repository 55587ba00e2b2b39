"""A settlement as the log keeps it: the arguments of `settle`, byte for byte as they went over the wire.

Keys are not kept: they follow from the arguments. So a record can be settled again, by another
process and on another connection.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.core.billing.pricing import Pricing
from gateway.core.billing.tiers import read_tiers
from gateway.core.model import Caller, Service, Settlement
from gateway.counters.layouts.budgets import read_paid
from gateway.counters.layouts.flags import FLAG_COUNTS, FLAG_ONE_TIME, FLAG_PAYS, FLAG_USES
from gateway.counters.layouts.states import held_budgets, unpack_hold
from gateway.counters.layouts.table import KEPT
from gateway.counters.redis import keys

_FLAGS_AT = KEPT.offset("flags")
_WHERE, _WHERE_AT = KEPT.part("organization_id", "organization_id"), KEPT.offset("organization_id")


def partition_of(arguments: bytes) -> int:
    """Where a record's accounts are."""
    return keys.partition_of(int(_WHERE.unpack_from(KEPT.today(arguments), _WHERE_AT)[0]))


def unpack(arguments: bytes) -> Settlement:
    """The settlement of a record."""
    arguments = KEPT.today(arguments)
    user, attribution, metadata, *rest = _texts(arguments[KEPT.size :])
    tiers = rest.pop(0) if arguments[_FLAGS_AT] & FLAG_USES else b""
    return settlement_of(arguments[: KEPT.size], user, attribution, metadata, tiers, paid=b"".join(rest))


def record_of(late: Mapping[bytes, bytes]) -> bytes:
    """The record of what an entry of the late queue says was used."""
    packed = KEPT.today(late[b"a"])
    names = (b"u", b"c", b"m", b"t", b"b") if packed[_FLAGS_AT] & FLAG_USES else (b"u", b"c", b"m", b"b")
    texts = [late.get(name, b"") for name in names]
    return packed + b"\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(one), one) for one in texts)


def settlement_of(
    packed: bytes, user: bytes, attribution: bytes, metadata: bytes, tiers: bytes, *, paid: bytes = b""
) -> Settlement:
    """What the arguments of `settle` say was used, by whom and of what."""
    kept = KEPT.read(KEPT.today(packed))
    organization_id = kept["organization_id"]
    budgets, money, raw_tokens = read_paid(paid)
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
        weighed=None if kept["weighed"] in {-1, kept["tokens"]} else kept["weighed"],
        budgets=budgets,
        money=money,
        raw_tokens=raw_tokens,
    )


def release_of(request_id: str, packed: bytes) -> Settlement:
    """What ends a hold without a charge."""
    hold, user, tiers = unpack_hold(packed)
    budgets = tuple(name for name, _ in held_budgets(packed)) if hold.budgets else ()
    partition = keys.partition_of(hold.organization_id)
    caller = Caller(hold.organization_id, hold.tenant_id, hold.key_id, partition)
    return Settlement(
        caller, request_id, user, service_of(hold.service_id, hold.flags, tiers), charge=False,
        budgets=budgets,
    )  # fmt: skip


def service_of(service_id: int, flags: int, tiers: bytes) -> Service:
    """The service as far as settling needs it: which accounts it moves, and at which tiers.

    The flags are those of the call, or of its hold: they are the same bits.
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
        pricing=Pricing(read_tiers(tiers)),
    )


def _texts(encoded: bytes) -> list[bytes]:
    """The arguments after the packed one: each after its length, as RESP has it."""
    found, at = [], 2
    while at < len(encoded):
        begins = encoded.index(b"\r\n", at) + 2
        ends = begins + int(encoded[at + 1 : begins - 2])
        found.append(encoded[begins:ends])
        at = ends + 2
    return found
