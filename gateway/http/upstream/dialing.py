"""Connects to the first of several addresses that answers: happy eyeballs (RFC 8305, 5).

The next address is tried as soon as one fails, or has not answered after a while. The first connection is
used, the others are closed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import Any

from gateway.core.circuit_breaker import is_worth_a_line
from gateway.core.http_limits import HttpLimits
from gateway.http.tally import TickClock

# The addresses of an upstream's host name: looked up again while in use, kept for a while after failures.
#
# The system's resolver is used, so that /etc/hosts and search domains count. It may hang for half a minute,
# so it runs in a separate thread, one at a time for each name.

# Maximum of addresses in one answer, and of earlier addresses whose connections are still used.
ADDRESSES_MAX = 16
SEEN_MAX = 256
# Maximum wait for a look-up while earlier addresses exist, and the interval of look-ups after a failure.
PATIENCE_S_MAX = 1.0
RETRY_S = 1.0


# Returns the addresses of a host as text, the preferred one first; blocks; raises OSError.
LookUp = Callable[[str], Sequence[str]]


def by_system(host: str) -> Sequence[str]:
    """Return the addresses of a host from the system's resolver, in its order (RFC 6724)."""
    return [str(place[0]) for *_, place in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


class UpstreamAddresses:
    """The addresses of one upstream's host.

    `told` logs changes and failures, `failed` counts each failure. Connections to an address that the name no
    longer has are used for `upstream_address_s` after it was last seen.
    """

    __slots__ = (
        "_asked_at",
        "_asking",
        "_clock",
        "_failed",
        "_failing",
        "_failures",
        "_found_at",
        "_host",
        "_known",
        "_limits",
        "_log",
        "_look_up",
        "_next",
        "seen",
    )  # fmt: skip

    def __init__(  # noqa: PLR0917  # what it is made of, in the order it is used
        self, host: str, clock: TickClock, limits: HttpLimits, look_up: LookUp, told: Callable[..., None],
        failed: Callable[[], None],
    ) -> None:  # fmt: skip
        self._host, self._clock, self._limits = host, clock, limits
        self._look_up, self._log, self._failed = look_up, told, failed
        self._known: tuple[str, ...] = _literal(host)
        self._found_at = math.inf if self._known else -math.inf  # an address is never looked up
        self._asked_at = -math.inf
        self._failing = False
        self._failures = self._next = 0
        self._asking: asyncio.Future[None] | None = None
        self.seen: dict[str, float] = dict.fromkeys(self._known, math.inf)

    async def addresses(self) -> list[str]:
        """Return the host's addresses, IPv4 and IPv6 alternating (RFC 8305, 4); each call rotates them.

        Raises OSError if the host has no known address.
        """
        now = self._clock.now
        if not self._known or now - self._found_at > self._limits.upstream_resolve_s:
            await self._wait_for_look_up()
        if not self._known:
            raise socket.gaierror(f"{self._host} has no address")
        self._next += 1
        return in_turns(self._known, self._next)

    def check(self, now: float, in_use: bool) -> None:
        """Look up the addresses of a host in use again when due; drop addresses that are long outdated."""
        if in_use and now - self._found_at >= self._limits.upstream_resolve_s:
            self._ask(now)
        if self._failing and now - self._found_at > self._limits.upstream_resolve_stale_s:
            self._known = ()
        if len(self.seen) > len(self._known):
            oldest = now - self._limits.upstream_address_s
            for address in [each for each, at in self.seen.items() if at < oldest]:
                if address not in self._known:
                    del self.seen[address]

    async def _wait_for_look_up(self) -> None:
        """Wait for the look-up of the host. Known addresses shorten the wait to a moment.

        After a failed look-up, known addresses are used without a wait.
        """
        asking = self._ask(self._clock.now)
        if asking is None or (self._known and self._failing):
            return
        await asyncio.wait({asking}, timeout=PATIENCE_S_MAX if self._known else None)
        if not asking.done():
            self._failing = True

    def _ask(self, now: float) -> asyncio.Future[None] | None:
        """Start a look-up of the host's addresses in a thread, or return the one that is running."""
        if self._asking is not None:
            return self._asking
        if self._failing and now - self._asked_at < RETRY_S:  # the last look-up failed a moment ago
            return None
        self._asked_at = now
        loop = asyncio.get_running_loop()
        self._asking = asking = loop.create_future()

        def ask() -> None:
            found: Sequence[str] | Exception
            try:
                found = self._look_up(self._host)
            except Exception as error:  # noqa: BLE001  # passed to the event loop, which reports it
                found = error
            with suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(self._take_answer, asking, found)

        threading.Thread(target=ask, name="look-up", daemon=True).start()
        return asking

    def _take_answer(self, asking: asyncio.Future[None], found: Sequence[str] | Exception) -> None:
        """Use the addresses of a look-up that has ended, or keep the known ones if it failed."""
        self._asking = None
        if isinstance(found, Exception) or not found:
            self._failing = True
            self._failures += 1
            self._failed()
            if is_worth_a_line(self._failures):
                why = str(found) if isinstance(found, Exception) else "no address"
                kept = list(self._known)
                self._log("upstream_lookup_failed", host=self._host, why=why, kept=kept, level="warning")
        else:
            self._take_over(tuple(dict.fromkeys(found))[:ADDRESSES_MAX])
        if not asking.done():
            asking.set_result(None)

    def _take_over(self, found: tuple[str, ...]) -> None:
        """Use new addresses of the host, and log a change of them."""
        now = self._clock.now
        before, self._known, self._found_at = self._known, found, now
        self._failing, self._failures = False, 0
        for address in found:
            self.seen.pop(address, None)
            self.seen[address] = now
        for address in list(self.seen)[: max(0, len(self.seen) - SEEN_MAX)]:
            del self.seen[address]
        if before and set(before) != set(found):
            self._log("upstream_addresses", host=self._host, addresses=list(found), before=list(before))


def in_turns(addresses: Sequence[str], turn: int) -> list[str]:
    """Return the addresses with IPv4 and IPv6 alternating, the preferred family first.

    Within a family the addresses are rotated by `turn`.
    """
    families: dict[bool, list[str]] = {}  # the family of the first address begins
    for address in addresses:
        families.setdefault(":" in address, []).append(address)
    turned = [family[turn % len(family) :] + family[: turn % len(family)] for family in families.values()]
    return [address for row in zip_longest(*turned, fillvalue="") for address in row if address]


def _literal(host: str) -> tuple[str, ...]:
    try:
        return (str(ipaddress.ip_address(host)),)
    except ValueError:
        return ()


def place_of(address: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """Return family and socket address of an IP address; a link-local one has its interface after a `%`."""
    plain, _, scope = address.partition("%")
    if ":" not in plain:
        return socket.AF_INET, (plain, port)
    return socket.AF_INET6, (plain, port, 0, _interface(scope))


def _interface(scope: str) -> int:
    if not scope or scope.isdecimal():
        return int(scope or 0)
    return socket.if_nametoindex(scope)


async def dial(addresses: Sequence[str], port: int, delay_s: float) -> tuple[socket.socket, str]:
    """Return the first connected socket and its address; raise the last OSError if none connects.

    The next address is tried after `delay_s` seconds without an answer.
    """
    waiting = list(addresses)
    running: dict[asyncio.Task[socket.socket], str] = {}
    last = OSError("it has no address")
    try:
        while waiting or running:
            if waiting:
                address = waiting.pop(0)
                running[asyncio.create_task(_connect_address(address, port))] = address
            done, _ = await asyncio.wait(
                running, timeout=delay_s if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                error = task.exception()
                if error is None:
                    return task.result(), running.pop(task)
                del running[task]
                last = error if isinstance(error, OSError) else last
        raise last
    finally:
        for task in running:
            task.cancel()
            task.add_done_callback(_drop)


async def _connect_address(address: str, port: int) -> socket.socket:
    family, place = place_of(address, port)
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(made, place)
    except BaseException:
        made.close()
        raise
    return made


def _drop(task: asyncio.Task[socket.socket]) -> None:
    """Close a socket that was connected after another one was chosen."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()
