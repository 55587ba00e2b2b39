"""Where a connection leads: to the address, or to the primary that its sentinels name, asked each time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from gateway.counters.redis.address import Address
from gateway.counters.redis.asking import ask_apart, first_known
from gateway.counters.redis.slots import Place
from gateway.errors import CountersUnavailable

# Who has not answered for so long may hang: whether it is the primary still is asked, so often.
NAMED_LOOK_S = 0.5


class Way:
    """To an address. `reach` leads there, `leads_elsewhere` says that it would lead to another by now."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._address = Address("", 0)
        self._place, self._elsewhere = ("", 0), False
        self._asking: asyncio.Task[None] | None = None

    async def reach(self, address: Address, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Connect a protocol, with TLS or without; OSError or CountersUnavailable where that fails."""
        self.close()
        self._address = address
        if address.path:
            await self._loop.create_unix_connection(protocol, address.path)
            return
        self._place = await primary(address) if address.sentinels else (address.host, address.port)
        host, port = self._place
        tls, name = (address.tls.context(), host) if address.tls else (None, None)
        try:
            await self._loop.create_connection(protocol, host, port, ssl=tls, server_hostname=name)
        except UnicodeError as error:
            raise CountersUnavailable(f"{host[:80]} is no name of a host: {error}") from error

    def leads_elsewhere(self, waited_s: float) -> bool:
        """Whether sentinels name another, now that whoever was reached has been waited for so long."""
        if not self._address.sentinels or waited_s < NAMED_LOOK_S:
            self.close()
            return False
        if self._asking is None or self._asking.done():
            self._asking = self._loop.create_task(self._look())
        return self._elsewhere

    def close(self) -> None:
        """Ask nobody any more."""
        self._elsewhere = False
        if self._asking is not None:
            self._asking.cancel()

    async def _look(self) -> None:
        with suppress(CountersUnavailable):
            self._elsewhere = await primary(self._address) != self._place
        await asyncio.sleep(NAMED_LOOK_S)


async def primary(address: Address) -> Place:
    """Host and port of the primary of that name, from the first sentinel that knows it.

    CountersUnavailable where none of them answers in time or knows the name. Why one does not answer is said
    where no other has answered.
    """
    who, faults = address.now(), list[CountersUnavailable]()
    login = who.sentinel_username, who.sentinel_password
    question = "SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.primary_name

    async def named_by(sentinel: Place) -> Place | None:
        try:
            match await ask_apart(address, sentinel, login, question):
                case [[bytes() as where, bytes() as number]]:
                    return where.decode(), int(number)
        except CountersUnavailable as error:
            faults.append(error)
        return None

    if found := await first_known(address.sentinels, named_by):
        return found
    unknown = f"no sentinel knows a primary named {address.primary_name}"
    if len(faults) < len(address.sentinels):
        raise CountersUnavailable(unknown)
    raise CountersUnavailable(f"{unknown}: {faults[-1]}") from faults[-1]
