"""The wires to where an address leads: one, or those to all primaries of a cluster."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from gateway.counters.redis.address import Address
from gateway.counters.redis.shards import Shards
from gateway.counters.redis.wire import CALL_S, Wire
from gateway.counters.redis.wires import Wires


def wires_to(
    address: Address,
    make: Callable[[Address], Wire],
    *,
    begun: Callable[[Wire], None] = lambda _: None,
    taken_up: Callable[[Wire, int], Awaitable[bool]] | None = None,
    call_s: float = CALL_S,
) -> Wires:
    """Not connected yet. `make` makes each wire, `begun` is told of it; `taken_up` is of `Shards`."""
    if address.members:
        return Shards(address, make, begun=begun, taken_up=taken_up, call_s=call_s)
    wire = make(address)
    begun(wire)
    return wire
