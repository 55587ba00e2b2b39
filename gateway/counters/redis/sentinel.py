"""Where a connection leads: to the address, or to the primary that its sentinels name, asked each time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.counters.redis.address import Address
from gateway.counters.redis.asking import ask_apart
from gateway.errors import CountersUnavailable


async def reach(
    address: Address, loop: asyncio.AbstractEventLoop, protocol: Callable[[], asyncio.Protocol]
) -> None:
    """Connect a protocol by socket, with TLS or without; OSError or CountersUnavailable where that fails."""
    if address.path:
        await loop.create_unix_connection(protocol, address.path)
        return
    host, port = await primary(address) if address.sentinels else (address.host, address.port)
    tls, name = (address.tls.context(), host) if address.tls else (None, None)
    await loop.create_connection(protocol, host, port, ssl=tls, server_hostname=name)


async def primary(address: Address) -> tuple[str, int]:
    """Host and port of the primary of that name, from the first sentinel that knows it.

    CountersUnavailable where none of them answers in time or knows the name. Why one does not answer is said
    where no other has answered.
    """
    who, has_answered, fault = address.now(), False, None
    login = who.sentinel_username, who.sentinel_password
    for sentinel in address.sentinels:
        try:
            question = "SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.primary_name
            match await ask_apart(address, sentinel, login, question):
                case [[bytes() as where, bytes() as number]]:
                    return where.decode(), int(number)
            has_answered = True
        except CountersUnavailable as error:
            fault = error
    unknown = f"no sentinel knows a primary named {address.primary_name}"
    if fault is None or has_answered:
        raise CountersUnavailable(unknown)
    raise CountersUnavailable(f"{unknown}: {fault}") from fault
