"""A settlement as the log keeps it: the arguments of `settle`, byte for byte as they went over the wire.

Keys are not kept: they follow from the arguments. So a record can be settled again, by another
process and on another connection.
"""

from __future__ import annotations

import struct

from gateway.core.billing.pricing import Pricing
from gateway.core.billing.tiers import read_tiers
from gateway.core.model import Caller, Service, Settlement
from gateway.counters.layouts import packing
from gateway.counters.layouts.flags import FLAG_COUNTS, FLAG_ONE_TIME, FLAG_PAYS, FLAG_USES
from gateway.counters.redis import keys

_WHERE = struct.Struct("<d")
_ORGANIZATION_AT = struct.calcsize("<40sB3d2d")


def partition_of(arguments: bytes) -> int:
    """Where a record's accounts are."""
    return keys.partition_of(int(_WHERE.unpack_from(arguments, _ORGANIZATION_AT)[0]))


def unpack(arguments: bytes) -> Settlement:
    """The settlement of a record."""
    packed = arguments[: packing.SETTLE.size]
    (
        _, _, tokens, credits_, units, service_id, tenant_id, organization_id, key_id, flags, _, request,
    ) = packing.SETTLE.unpack(packed)  # fmt: skip
    user, attribution, metadata, *tiers = _texts(arguments[packing.SETTLE.size :])
    organization = int(organization_id)
    caller = Caller(organization, int(tenant_id), int(key_id), keys.partition_of(organization))
    return Settlement(
        caller=caller,
        request_id=request.decode(),
        user=user.decode(),
        service=service_of(int(service_id), flags, tiers[0] if tiers else b""),
        charge=True,
        tokens=int(tokens),
        credits=int(credits_),
        units=int(units),
        attribution=attribution.decode(),
        metadata=metadata,
    )


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
    """The arguments behind the packed one: each behind its length, as RESP has it."""
    found, at = [], 2
    while at < len(encoded):
        begins = encoded.index(b"\r\n", at) + 2
        ends = begins + int(encoded[at + 1 : begins - 2])
        found.append(encoded[begins:ends])
        at = ends + 2
    return found
