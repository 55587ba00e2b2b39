"""Pools of connections to upstreams, and how connections are opened.

Each organization has a share of a pool, so that none can use up all of it. A pooled connection that its
upstream closed is never written to. Once a byte of a request was sent, it is not sent again: a second POST
would be a second charge upstream. Connections to addresses that a host name has lost are not used again.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any, Protocol
from urllib.parse import urlsplit

from gateway.core.calls.routes import UpstreamTarget
from gateway.core.certificates import end_of
from gateway.core.circuit_breaker import CONNECT_TIMEOUT, PROXY
from gateway.core.http_limits import HttpLimits
from gateway.core.network import ProxyFailed
from gateway.core.shares import FairShares
from gateway.core.wait import AwakeTimeout, Wait
from gateway.errors import Overloaded, Refusal, UpstreamTimeout, UpstreamUnreachable
from gateway.files import Seen, https_with, is_readable, require_regular, stat_files
from gateway.http.identity import key_digest
from gateway.http.ports import UpstreamLimiter
from gateway.http.protocol.answer import AnswerHead, UpstreamSide
from gateway.http.protocol.framing import AWAITED, BODY, COMPLETE, OWED, Malformed
from gateway.http.tally import NEVER, Tally, TickClock
from gateway.http.turns import FairQueue
from gateway.http.upstream.dialing import LookUp, UpstreamAddresses, by_system, dial
from gateway.outbound.cloud import CloudSigner, signer_of
from gateway.outbound.tunnel import Tunnel, cause_of, tls_with

# Address, proxy and TLS context of a target's connections; certificate files are read again after a change.
#
# Open connections are not affected; new ones use the new files. An unusable file changes nothing, and is
# logged once.

# Minimum interval between checks of the files.
LOOK_S = 5.0


class DialAddress:
    """The address of one target; `host` and `port` are its proxy's if it has one.

    `told` logs an event and its facts.
    """

    def __init__(self, target: UpstreamTarget, told: Callable[..., None]) -> None:
        self._target, self._log = target, told
        via = target.via
        files = (target.ca_file, target.cert_file, target.key_file, via.ca_file if via is not None else None)
        self._files = tuple(file for file in files if file)
        self._file_states = stat_files(self._files)
        self._dialled_place, self._of_proxy = place_of(target), tls_with(via)
        self._look_at = 0.0
        self._why = ""
        self.host = via.host if via is not None else str(self._dialled_place["host"])
        self.port = via.port if via is not None else int(self._dialled_place["port"])
        self.secured = self._dialled_place["ssl"] is not None

    def at(self, now: float) -> dict[str, Any]:
        """Return the arguments of a connection for asyncio; `now` is the time in seconds of any clock."""
        if self._files and now >= self._look_at:
            self._look_at = now + LOOK_S
            found = stat_files(self._files)
            if found != self._file_states:
                self._renew(found)
        return self._dialled_place

    def tunnel(self) -> Tunnel | None:
        """Return a tunnel for one connection; None if there is no proxy."""
        via, made = self._target.via, self._dialled_place
        return None if via is None else Tunnel(via, self._of_proxy, made["host"], made["port"])

    def _renew(self, seen: Seen) -> None:
        """Read the certificates again, or keep the present ones if the files are invalid."""
        try:
            self._dialled_place, self._of_proxy = place_of(self._target), tls_with(self._target.via)
        except OSError as error:  # `ssl.SSLError` is an OSError: not PEM, or not a pair
            why = "not PEM, or not a pair" if isinstance(error, ssl.SSLError) else str(error.strerror)
            if why != self._why:
                self._log("upstream_certificate_kept", why=why, level="error")
            self._why = why
            return
        self._file_states, self._why = seen, ""
        self._log("upstream_certificate_renewed")


def place_of(target: UpstreamTarget) -> dict[str, Any]:
    """Return the arguments with which asyncio connects to an upstream.

    TLS verifies the certificate and the host's name by the configured authority, or else the system's.
    """
    parts = urlsplit(target.base_url)
    host = parts.hostname or ""
    if parts.scheme != "https":
        return {"host": host, "port": parts.port or 80, "ssl": None}
    context = https_with(target.ca_file)
    if target.cert_file is not None:
        require_regular(target.cert_file, target.key_file)
        context.load_cert_chain(target.cert_file, target.key_file, password=lambda: b"")
    return {"host": host, "port": parts.port or 443, "ssl": context, "server_hostname": host}


FRESH_S = 0.25
# Header fields: names and values.
Fields = tuple[tuple[str, str], ...]


class Upstream:
    """All connections to one target, and the upstream's facts.

    `certificate_end` is the end of the last seen certificate as Unix time. `accounts` identify the owner of
    the upstream's limits, one for each key: targets with the same address and credential share one. `signer`
    signs requests if the target needs that. `contexts` are context lengths of models from the upstream's own
    list, which is read while `listed`. `other_fields` are header fields that it gets besides those that
    clients of its API send. Calls wait at the `limiter` for the capacity that the target states.

    A call that was admitted by `admit` may use one connection, idle or new; `release` ends that.
    """

    __slots__ = (
        "_clock", "_connecting", "_idle", "_is_removed", "_limits", "_links", "_names", "_place", "_shares",
        "_tally", "_turns", "accounts", "certificate_end", "contexts", "limiter", "listed", "name",
        "other_fields", "signer", "target",
    )  # fmt: skip

    def __init__(  # noqa: PLR0917  # what it is made of, in the order it is used
        self, target: UpstreamTarget, clock: TickClock, turns: FairQueue, limits: HttpLimits, tally: Tally,
        pepper: bytes, log: Callable[..., None], look_up: LookUp = by_system,
        limiter: UpstreamLimiter | None = None,
    ) -> None:  # fmt: skip
        self.name = target.name
        self.accounts = accounts_of(target, pepper)
        if target.first_byte_s is not None or target.idle_s is not None:
            limits = replace(
                limits,
                upstream_first_byte_s=target.first_byte_s or limits.upstream_first_byte_s,
                upstream_idle_s=target.idle_s or limits.upstream_idle_s,
            )
        self.target, self.limiter = target, limiter
        self.other_fields = target.other_fields
        self.signer: CloudSigner | None = signer_of(target)
        self.contexts: dict[str, int] = {}
        self.listed = target.facts is not None and target.facts.listed
        self._is_removed = False
        self._shares = FairShares()
        self._shares.bound_by_share(limits.upstream_connections_max, limits.upstream_connections_share)
        self.certificate_end: float | None = None
        told = partial(log, upstream=target.name)
        self._place = DialAddress(target, told)
        self._names = UpstreamAddresses(self._place.host, clock, limits, look_up, told, self._lookup_failed)
        self._clock = clock
        self._turns = turns
        self._limits = limits
        self._tally = tally
        self._idle: list[Link] = []
        self._links: set[Link] = set()
        self._connecting: set[asyncio.Task[None]] = set()

    @property
    def idle_connections(self) -> int:
        return len(self._idle)

    @property
    def connections(self) -> int:
        """The number of connections that are open or being opened."""
        return len(self._links) + len(self._connecting)

    def admit(self, organization_id: int) -> None:
        """Reserve one more connection for an organization; raise `Overloaded` if its share is used up.

        Raise `UpstreamSignedOut` if the upstream requires signed requests and the gateway has no credentials.
        """
        if self.signer is not None:
            self.signer.check()
        if not self._shares.acquire(organization_id):
            mine = self._shares.used_by(organization_id)
            whose = f"for this organization, which uses {mine}" if mine else "to spare"
            raise Overloaded(f"The upstream {self.name} has no connection {whose}.", retry_after_s=1)

    def idle(self) -> Link | None:
        """Return an open connection that no call uses, the most recently used one; None if there is none."""
        while self._idle:
            link = self._idle.pop()
            if self._clock.now - link.idle_since < FRESH_S or not is_readable(_descriptor(link)):
                return link
            link.abandon()
        return None

    async def connect(self) -> Link:
        """Open a connection, or raise `UpstreamUnreachable`, `UpstreamTimeout` or `Overloaded`."""
        if self.connections >= self._limits.upstream_connections_max:
            raise Overloaded(f"The upstream {self.name} has no connection to spare.", retry_after_s=1)
        wait: Wait[Link] = Wait()
        task = asyncio.get_running_loop().create_task(self._open(wait))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        try:
            return await wait
        except BaseException as error:
            wait.fail(error)  # the call is gone; the new connection goes to the pool
            raise

    async def _open(self, wait: Wait[Link]) -> None:
        """Open a connection and give it to `wait`, or the reason why it failed."""
        link, tunnel = Link(self._clock, self._turns, self._limits, self._forget_link), None
        try:
            place = self._place.at(self._clock.now)  # first, so that the tunnel uses the present files
            tunnel = self._place.tunnel()
            async with AwakeTimeout(self._limits.upstream_connect_s):
                await self._dialed(link, place, tunnel)
        except TimeoutError:
            wait.fail(_late(self.name, tunnel))
            return
        except (OSError, UnicodeError) as error:
            wait.fail(_failed(self.name, error if tunnel is None else tunnel.blamed(error)))
            return
        self._tally.upstream_connections += 1
        if self._place.secured:
            self.certificate_end = end_of(link.transport)
        if link.open:
            self._links.add(link)
            if wait.done:
                link.idle_since = self._clock.now
                self._idle.append(link)
        wait.set(link)

    async def _dialed(self, link: Link, place: dict[str, Any], tunnel: Tunnel | None) -> None:
        """Connect to the first address that answers; TLS verifies the host's name."""
        addresses = await self._names.addresses()
        made, link.address = await dial(addresses, self._place.port, self._limits.upstream_attempt_s)
        if tunnel is not None:
            await tunnel.through(link, place["ssl"], place.get("server_hostname"), sock=made)
            return
        context = {name: place[name] for name in ("ssl", "server_hostname") if place.get(name)}
        await asyncio.get_running_loop().create_connection(lambda: link, sock=made, **context)

    def _lookup_failed(self) -> None:
        self._tally.upstream_lookup_failures += 1

    def release(self, organization_id: int, link: Link | None) -> None:
        """Release the organization's share, and keep the connection `link` if it can be reused."""
        self._shares.release(organization_id)
        if link is None:
            return
        room = not self._is_removed and len(self._idle) < self._limits.upstream_idle_connections_max
        room = room and link.address in self._names.seen
        if room and link.release(self._clock.now):
            self._idle.append(link)
        else:
            link.abandon()

    def check(self, now: float) -> None:
        """Close connections past their deadline, and those idle for too long."""
        self._names.check(now, in_use=bool(self._links))
        if not self._links:
            return
        for link in [link for link in self._links if link.deadline < now]:
            link.expire()
        oldest, stands = now - self._limits.upstream_keep_alive_s, self._names.seen
        for link in [one for one in self._idle if one.idle_since < oldest or one.address not in stands]:
            self._idle.remove(link)
            link.abandon()

    def leave(self) -> None:
        """Close the idle connections of a removed target now, and the others after their call."""
        self._is_removed = True
        for link in self._idle[:]:
            link.abandon()
        self._idle.clear()

    def close(self) -> None:
        """Close every connection."""
        for task in self._connecting:
            task.cancel()
        for link in list(self._links):
            link.abandon()
        self._idle.clear()

    def _forget_link(self, link: Link) -> None:
        self._links.discard(link)
        if link in self._idle:
            self._idle.remove(link)


async def reach(target: UpstreamTarget, within_s: float) -> float | None:
    """Connect to an upstream as a call would; return the expiry of its certificate in Unix time.

    Return None without TLS. Raise OSError or TimeoutError if a call would fail; an untrusted certificate is
    an OSError.
    """
    place = DialAddress(target, _untold)
    how, made = place.at(0.0), asyncio.Protocol()
    tunnel: Tunnel | None = None
    try:
        tunnel = place.tunnel()
        async with asyncio.timeout(within_s):
            if tunnel is None:
                transport, _ = await asyncio.get_running_loop().create_connection(lambda: made, **how)
            else:
                there = {"host": place.host, "port": place.port}
                transport, _ = await tunnel.through(made, how["ssl"], how.get("server_hostname"), **there)
    except TimeoutError as error:
        raise TimeoutError(tunnel.late if tunnel is not None else "") from error
    except (OSError, UnicodeError) as error:
        failure = error if tunnel is None else tunnel.blamed(error)
        raise (failure if isinstance(failure, OSError) else OSError(cause_of(failure)[1])) from None
    end = end_of(transport)
    transport.close()
    return end


def _untold(event: str, **facts: object) -> None:
    """Ignore an event: the default log, which writes nothing."""


def accounts_of(target: UpstreamTarget, pepper: bytes) -> tuple[str, ...]:
    """Return the account of each key of a target, as a digest of the base URL and the credential."""
    return tuple([_account(target, key, pepper) for key in target.keys or ((),)])


def _account(target: UpstreamTarget, key: Fields, pepper: bytes) -> str:
    fields = (*target.headers, *key)
    if target.auth != "header":  # its credential is in no header
        fields += (("auth", target.auth), ("file", str(target.credentials_file)), ("project", target.project))
    message = "\0".join((target.base_url, *(part for field in fields for part in field)))
    return key_digest(message.encode(errors="surrogatepass"), pepper)[:16]


def _descriptor(link: Link) -> int:
    return int(link.transport.get_extra_info("socket").fileno())


def _failed(name: str, error: Exception) -> UpstreamUnreachable:
    failure = UpstreamUnreachable(_render_failure(name, error))
    failure.cause, failure.detail = cause_of(error)
    return failure


def _late(name: str, tunnel: Tunnel | None) -> UpstreamTimeout:
    late = UpstreamTimeout(f"The upstream {name} did not accept a connection in time.")
    late.detail = tunnel.late if tunnel is not None else ""
    late.cause = PROXY if late.detail else CONNECT_TIMEOUT
    return late


def _render_failure(name: str, error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"The certificate of the upstream {name} cannot be verified."
    if isinstance(error, socket.gaierror):
        return f"The name of the upstream {name} cannot be looked up."
    if isinstance(error, ProxyFailed):
        return f"The proxy before the upstream {name} lets nobody through."
    return f"The upstream {name} cannot be reached."


# One connection to an upstream: one request, one answer, and nothing left over.
#
# The handler waits here twice: for the final head, then for body bytes. Bytes after a complete answer close
# the connection; they never reach the next client. Knows no callers, meters or limits.
class _BodySource(Protocol):
    """The client's connection that streams a body into a link, paused while the link is full."""

    def pause_body(self) -> None: ...
    def resume_body(self) -> None: ...


def _unnoticed(link: Link) -> None:
    """Ignore the close of a link that is in no pool."""


# All connections read through this buffer, whose size limits the bytes of one read.
_BYTES = bytearray(16 * 1024)
_BUFFER = memoryview(_BYTES)
# Copying its first bytes: once in C, twice in Python.
_take: Callable[[bytearray, int], bytes]
try:
    _take = import_module("gateway.http.protocol._heads").first_of
except ImportError:

    def _take(buffer: bytearray, size: int) -> bytes:
        return bytes(buffer[:size])


class Link(asyncio.BufferedProtocol):
    """A pooled connection to an upstream for one exchange at a time; its `UpstreamSide` does the framing.

    `answer` is the final head once it has arrived. `failure` is set if the answer cannot be completed: before
    the head the client is refused with it, afterwards the answer is cut. If the failure is a passed deadline,
    `silent_s` is the length of the silence, and the exchange may continue to wait.
    """

    __slots__ = (
        "_clean_end", "_clock", "_gone", "_limits", "_on_gone", "_patient", "_paused", "_payload",
        "_payload_bytes", "_queued", "_turns", "_wait", "address", "answer", "deadline", "failure",
        "idle_since", "side", "silent_s", "source", "transport",
    )  # fmt: skip

    def __init__(
        self, clock: TickClock, turns: FairQueue, limits: HttpLimits, on_gone: Callable[[Link], None]
    ) -> None:
        self._clock = clock
        self._turns = turns
        self._limits = limits
        self._on_gone = on_gone
        self.side = UpstreamSide(limits)
        self.transport: Any = None
        self.address = ""
        self.deadline = NEVER
        self.idle_since = 0.0
        self.silent_s = 0.0
        self._gone = self._clean_end = self._paused = self._queued = self._patient = False
        self._payload: list[bytes] = []
        self._payload_bytes = 0
        self._wait: Wait[None] | None = None
        self.answer: AnswerHead | None = None
        self.failure: Refusal | None = None
        self.source: _BodySource | None = None

    def beside(self) -> Link:
        """Return a second link, without a transport, for the protocol that takes over this connection."""
        return Link(self._clock, self._turns, self._limits, _unnoticed)

    @property
    def open(self) -> bool:
        """Whether the connection is open, as far as known."""
        return not self._gone

    @property
    def complete(self) -> bool:
        """Whether the whole answer has arrived, though its last bytes may still wait in the link's buffer."""
        return self.side.answering == COMPLETE

    # the interface for the handler

    def begin_request(self, request: bytes, body: bytes = b"") -> None:
        """Send the first bytes of a request; a large `body` is sent after the head without copying."""
        self.answer, self._patient = None, False
        self.deadline = self._clock.now + self._limits.upstream_first_byte_s
        if self._gone:
            self._fail(UpstreamUnreachable("The upstream closed its connection."))
        elif body:
            self.transport.writelines((request, body))
        else:
            self.transport.write(request)

    def begin_stream(self) -> None:
        """Begin an answer whose events come by another protocol, one by one by `add_event`."""
        self._patient = False
        self.side.open_stream()
        self.answer = self.side.answer
        self.deadline = self._clock.now + self._limits.upstream_idle_s

    def add_event(self, event: bytes, last: bool) -> None:
        """Add an event to the answer that `begin_stream` began; the `last` one ends it."""
        if last:
            self.side.end_stream()
        self._take(event, len(event), True)

    def send_part(self, part: bytes) -> None:
        """Send more of the request's body, unless the upstream no longer expects it."""
        side = self.side
        if not self._gone and side.request == OWED:
            self.deadline = self._clock.now + self._limits.upstream_first_byte_s
            self.transport.write(side.more(part))

    def end_request(self) -> None:
        """End the request: its body is complete."""
        side = self.side
        if not self._gone and side.request == OWED:
            last = side.end()
            if last:
                self.transport.write(last)

    def arrival(self) -> Wait[None]:
        """Wait for the next part of the answer: its head, later bytes of its body, or its end or failure."""
        wait: Wait[None] = Wait()
        self._wait = wait
        if self.failure is not None or self._payload or self.side.answering == COMPLETE:
            wait.set(None)
        return wait

    def next_turn(self) -> Wait[None]:
        """Wait for a turn in the worker's queue, so that other calls run before more data is processed."""
        wait: Wait[None] = Wait()
        self._turns.wait_for(lambda: wait.set(None))
        return wait

    def take_payload(self) -> bytes:
        """Return the body bytes that have arrived since the last call, perhaps none."""
        payload = self._payload
        if not payload:
            return b""
        self._payload = []
        self._payload_bytes = 0
        if self._paused:
            self.go_on()
        return payload[0] if len(payload) == 1 else b"".join(payload)

    def put_back(self, payload: bytes) -> None:
        """Put back body bytes that `take_payload` returned, before those that have arrived since."""
        if payload:
            self._payload.insert(0, payload)
            self._payload_bytes += len(payload)

    def hold(self) -> None:
        """Stop reading the answer until `go_on`, as the client reads slowly; no deadline runs meanwhile."""
        if not self._paused and not self._gone:
            self._paused = True
            self.transport.pause_reading()
            self.deadline = NEVER

    def go_on(self) -> None:
        if self._paused:
            self._paused = False
            if not self._gone:
                self.transport.resume_reading()
                self.deadline = self._clock.now + self._limits.upstream_idle_s

    def release(self, now: float) -> bool:
        """Prepare the connection for another exchange; return False if data of the present one is left."""
        if self._gone or self._payload or not self.side.be_ready():
            return False
        self.deadline = NEVER
        self.idle_since = now
        self._wait = self.source = None
        return True

    def abandon(self) -> None:
        """Close the connection, whatever its state."""
        self._wait = self.source = None
        self.side.give_up()
        self.deadline = NEVER
        if not self._gone and self.transport is not None:
            self.transport.abort()

    def expire(self) -> None:
        """Fail the wait for an answer whose deadline has passed; the connection itself stays open."""
        self.deadline, answering = NEVER, self.side.answering
        if self._patient or answering not in {AWAITED, BODY}:
            return
        begun, limits = answering == BODY, self._limits
        self.silent_s = limits.upstream_idle_s if begun else limits.upstream_first_byte_s
        late = "The upstream stopped in the middle of its answer." if begun else None
        self.failure = UpstreamTimeout(late)
        self.wake()

    @property
    def is_late(self) -> bool:
        """Whether the link failed by a passed deadline alone, so that an answer may still come."""
        return not self._gone and isinstance(self.failure, UpstreamTimeout)

    def go_past(self) -> None:
        """Clear the failure of a passed deadline, and wait for the rest of the answer without one."""
        self.failure, self._patient, self.deadline = None, True, NEVER

    # asyncio.BufferedProtocol

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer, shared by all connections, for the next bytes, which are copied at once."""
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        """Process the bytes that were read."""
        self.data_received(_take(_BYTES, nbytes))

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Process bytes of the answer.

        The handler is woken at once for the beginning of an answer, and for later bytes when it is its turn.
        """
        side = self.side
        begun = side.answering == BODY
        try:
            payload = side.receive(data)
        except Malformed as error:
            self._fail(UpstreamUnreachable(f"The upstream's answer is not HTTP: {error}."))
            return
        self.answer = side.answer
        self._take(payload, len(data), begun)

    def _take(self, payload: bytes, size: int, begun: bool) -> None:
        """Store a part of the answer, which came as `size` bytes, and wake the handler."""
        side = self.side
        answering = side.answering
        if payload:
            self._payload.append(payload)
            self._payload_bytes += len(payload)
        if answering == BODY:
            self.deadline = self._clock.now + self._limits.upstream_idle_s
        elif answering == COMPLETE:
            self.source = None
        if side.surplus:
            self._gone = True
            self.transport.abort()
        wait = self._wait
        if wait is not None and answering != AWAITED:
            if not begun or self._turns.take_now(size):
                self._wait = None
                wait.set(None)
            elif not self._queued:
                self._queued = True
                self._turns.wait_for(self._take_turn)
        if self._payload_bytes > self._limits.relay_buffer_bytes_max and answering == BODY:
            self.hold()

    def eof_received(self) -> bool:
        """Note that the upstream will send nothing more, and closed its side without an error."""
        self._clean_end = True
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """End an answer that has no stated length, or fail an incomplete one (RFC 9112, 8)."""
        self._gone = True
        self.source = None
        side = self.side
        if side.close(self._clean_end and error is None):
            self.wake()
        elif side.answering == AWAITED:
            self._fail(UpstreamUnreachable("The upstream closed its connection without an answer."))
        elif side.answering == BODY:
            self._fail(UpstreamUnreachable("The upstream's answer broke off."))
        self._on_gone(self)

    def pause_writing(self) -> None:
        """Pause the client's body: the upstream reads slowly."""
        if self.source is not None:
            self.source.pause_body()

    def resume_writing(self) -> None:
        """Continue the client's body: the upstream has caught up."""
        if self.source is not None:
            self.source.resume_body()

    def _fail(self, failure: Refusal) -> None:
        self.failure = failure
        self.side.give_up()
        self.source = None
        self.deadline = NEVER
        if not self._gone:
            self.transport.abort()
        self.wake()

    def _take_turn(self) -> None:
        """Wake the handler for received bytes, unless it has read them."""
        self._queued = False
        if self._payload or self.side.answering == COMPLETE:
            self.wake()

    def wake(self) -> None:
        """End the handler's wait for an arrival, if it waits."""
        wait, self._wait = self._wait, None
        if wait is not None:
            wait.set(None)
