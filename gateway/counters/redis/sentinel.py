"""Where a connection leads: to the address, or to the primary that its sentinels name, asked each time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import hiredis

from gateway.core.wait import Within
from gateway.counters.redis.address import Address
from gateway.errors import CountersUnavailable

SENTINEL_S_MAX = 0.5


async def reach(
    address: Address, loop: asyncio.AbstractEventLoop, protocol: Callable[[], asyncio.Protocol]
) -> None:
    """Connect a protocol by socket, with TLS or without; OSError or CountersUnavailable where that fails."""
    if address.path:
        await loop.create_unix_connection(protocol, address.path)
        return
    host, port = await primary(address) if address.sentinels else (address.host, address.port)
    name = host if address.tls else None
    await loop.create_connection(protocol, host, port, ssl=address.tls, server_hostname=name)


async def primary(address: Address) -> tuple[str, int]:
    """Host and port of the primary of that name, from the first sentinel that knows it.

    CountersUnavailable where none of them answers within `SENTINEL_S_MAX` or knows the name.
    """
    for host, port in address.sentinels:
        with suppress(OSError, TimeoutError, hiredis.ProtocolError):
            async with Within(SENTINEL_S_MAX):
                found = await _ask(address, host, port)
            if found is not None:
                return found
    raise CountersUnavailable(f"no sentinel knows a primary named {address.primary_name}")


async def _ask(address: Address, host: str, port: int) -> tuple[str, int] | None:
    name = address.tls and host
    reader, writer = await asyncio.open_connection(host, port, ssl=address.tls, server_hostname=name or None)
    parser = hiredis.Reader()
    try:
        commands: list[tuple[str, ...]] = []
        if address.sentinel_password:
            user = [address.sentinel_username] if address.sentinel_username else []
            commands.append(("AUTH", *user, address.sentinel_password))
        commands.append(("SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.primary_name))
        # Its type is written as that of a single word.
        writer.write(b"".join(hiredis.pack_command(cast("tuple[str]", command)) for command in commands))
        answers: list[object] = []
        while len(answers) < len(commands):
            data = await reader.read(4096)
            if not data:
                return None
            parser.feed(data)
            while (answer := parser.gets()) is not False:
                answers.append(answer)
        match answers[-1]:
            case [bytes() as where, bytes() as number]:
                return where.decode(), int(number)
        return None
    finally:
        writer.close()
