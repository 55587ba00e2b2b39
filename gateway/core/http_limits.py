"""Every maximum and every deadline of the data plane, with its unit in its name: a part of the settings.

What `_setting` makes is a setting of that name, `TOLLKEEPER_<NAME>`; the other fields are fixed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any

import msgspec

from gateway.core.circuit_breaker import COOLING_S_MAX

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
Bytes = Annotated[int, msgspec.Meta(ge=1024, le=1 << 32)]
# Files of a worker that are neither a client's nor an upstream's: Redis, its log, names that are looked up.
FILES_RESERVED = 64
# What an organization's people may have done in an hour: `HourlyBudget` of `accounts/administration.py`.
HOUR_CPU_S, HOUR_ROWS, HOUR_WORK_S = 300.0, 5_000_000, 1800.0


def _setting(default: object, valid: object) -> Any:
    """Return a field that people may set; `valid` is the type that says to what."""
    return field(default=default, metadata={"valid": valid})


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What one worker accepts and how long it waits. Nothing in that door is unlimited.

    Deadlines are checked by one sweep every `tick_s`, so each may be late by that much.
    """

    head_s: float = _setting(10.0, Seconds)
    tls_handshake_s: float = _setting(10.0, Seconds)
    body_s: float = _setting(120.0, Seconds)
    keep_alive_s: float = _setting(75.0, Seconds)
    upstream_connect_s: float = _setting(5.0, Seconds)
    upstream_first_byte_s: float = _setting(120.0, Seconds)
    upstream_idle_s: float = _setting(120.0, Seconds)
    upstream_keep_alive_s: float = _setting(30.0, Seconds)
    # An upstream's name is looked up so often; the last addresses are kept while that fails, for so long; and
    # connections to an address that the name has left are used for so long after it was seen last.
    upstream_resolve_s: float = _setting(10.0, Seconds)
    upstream_resolve_stale_s: float = _setting(300.0, Seconds)
    upstream_address_s: float = _setting(20.0, Seconds)
    upstream_attempt_s: float = 0.25  # then another address is tried beside one that does not answer
    # For so long at most nobody asks an upstream that said it has enough; 0: it is asked all the same.
    upstream_cooling_s_max: float = _setting(COOLING_S_MAX, Annotated[float, msgspec.Meta(ge=0, le=3600)])
    # For so long a call waits at most until its upstream's stated capacity has room for it; so many bytes of
    # such calls are kept in one worker, and so many calls, half of them of batches; one organization's part.
    capacity_wait_s: float = _setting(10.0, Seconds)
    capacity_waiting_bytes_max: int = _setting(64 * 1024 * 1024, Bytes)
    capacity_waiting_max: int = 8_000
    capacity_waiting_share: float = _setting(0.25, Share)
    drain_s: float = _setting(120.0, Seconds)
    # For a small body on its way, before its call is asked about by its head. It has a timer of its own.
    body_grace_s: float = 0.01
    # Until a client is looked after that is not read since its upstream does not read either; and again.
    look_s: float = 1.0
    linger_s: float = 2.0
    # At the end: who has been idle for so long is not about to send; five times that is waited at most.
    quiet_s: float = 1.0
    client_write_s: float = 120.0
    counters_s: float = 5.0
    watch_after_s: float = 2.0
    tick_s: float = 0.1

    request_line_bytes_max: int = 8 * 1024
    head_bytes_max: int = _setting(64 * 1024, Annotated[int, msgspec.Meta(ge=1024, le=1 << 20)])
    head_fields_max: int = _setting(100, Annotated[int, msgspec.Meta(ge=8, le=10_000)])
    # Of heads that are not complete: what each connection may keep, and beyond that all of one worker.
    head_free_bytes: int = 4 * 1024
    heads_bytes_max: int = _setting(16 * 1024 * 1024, Bytes)

    body_bytes_max: int = _setting(32 * 1024 * 1024, Bytes)
    body_bytes_per_s_min: int = 16 * 1024
    # Of a form whose one file passes as it comes: never more of it is kept than `collected_bytes_max`.
    form_bytes_max: int = 1 << 31
    # Of a body that passes unread: so much is here before an upstream hears of the request.
    collected_bytes_max: int = 256 * 1024
    discarded_bytes_max: int = 256 * 1024
    # Of a refused body, for clients that read no answer before they have sent everything: so much, so fast,
    # of so many clients of an organization at once, and of all. Others are not read.
    lingered_bytes_max: int = 64 * 1024 * 1024
    lingered_pause_s: float = 0.003  # after each part that was read, of 256 KiB at most
    lingering_each_max: int = 2
    lingering_max: int = 16
    chunk_line_bytes_max: int = 256
    chunk_extension_bytes_max: int = 16 * 1024
    trailer_bytes_max: int = 16 * 1024
    small_chunks_max: int = 10_000

    connections_max: int = _setting(20_000, Count)
    turned_away_max: int = 256  # above them so many are told that there are too many; more are broken off
    tls_handshakes_max: int = _setting(1_000, Count)
    # WebSockets of a worker, and one organization's part of them; one that asks for nothing is closed.
    sockets_max: int = _setting(2_000, Count)
    sockets_share: float = _setting(0.25, Share)
    socket_idle_s: float = _setting(600.0, Seconds)
    socket_unasked_s: float = 5.0  # until a turn without a request gives its hold back
    # Of responses that no upstream stores; one organization's part of that is as large.
    sockets_kept_bytes_max: int = _setting(64 * 1024 * 1024, Bytes)
    socket_frames_max: int = 10_000  # of one message
    socket_event_bytes_max: int = 32 * 1024 * 1024  # of an answer
    upstream_connections_max: int = _setting(2_000, Count)
    upstream_connections_share: float = _setting(0.25, Share)  # of those, what one organization may use
    upstream_idle_connections_max: int = _setting(256, Count)

    interim_answers_max: int = 16
    answer_head_bytes_max: int = 64 * 1024
    answer_held_bytes_max: int = 256 * 1024
    answer_uncounted_bytes_max: int = 8 * 1024  # of an answer, kept without asking for a share
    # Of an answer, ahead of a client that reads slowly: read of the upstream, and written to the client.
    relay_buffer_bytes_max: int = 8 * 1024
    client_buffer_bytes_max: int = 4 * 1024
    client_unsent_bytes_max: int = 128 * 1024  # that the kernel keeps of them, beyond what is on its way
    # Of bodies and answers that are kept for a slow end, in one worker; of that, one organization's part.
    buffered_bytes_max: int = _setting(64 * 1024 * 1024, Bytes)
    buffered_share: float = _setting(0.25, Share)
    # Of an answer whose client hung up.
    drain_tokens_max: int = _setting(200_000, Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)])
    drain_bytes_max: int = _setting(16 * 1024 * 1024, Bytes)
    # Not a bound: whether an answer names its upstream.
    show_upstream: bool = _setting(default=False, valid=bool)
    # Nor this: what clients call the gateway; empty is as each of them does.
    public_url: str = _setting(
        "", Annotated[str, msgspec.Meta(pattern=r'^(https?://[^\s"?#@]+[^\s"?#@/])?$')]
    )

    def within(self, files: int, upstreams: int) -> HttpLimits:
        """Return the same for a worker that may have so many open files, with so many upstreams.

        Half are for clients, whose TLS may not have begun yet, and half for upstreams, since each call may
        need one of both. So no call, no settlement and no connection to Redis ever finds that none is left.
        """
        half = max(0, files - FILES_RESERVED) // 2
        turned_away = min(self.turned_away_max, half // 8)
        handshakes = min(self.tls_handshakes_max, half // 4)
        each = min(self.upstream_connections_max, max(1, half // max(1, upstreams)))
        return replace(
            self,
            connections_max=min(self.connections_max, max(1, half - turned_away - handshakes)),
            turned_away_max=turned_away,
            tls_handshakes_max=max(1, handshakes),
            upstream_connections_max=each,
            upstream_idle_connections_max=min(self.upstream_idle_connections_max, each),
        )


# Each setting among them, with the type that says what is valid.
SETTABLE = {one.name: one.metadata["valid"] for one in fields(HttpLimits) if one.metadata}
