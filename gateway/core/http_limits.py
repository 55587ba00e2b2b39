"""Maxima and deadlines of the data plane, with units in their names: a part of the settings.

A field made by `_setting` is the setting `TOLLKEEPER_<NAME>`. The other fields are fixed.
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
# Files of a worker besides connections of clients and upstreams: Redis, its log, DNS look-ups.
FILES_RESERVED = 64
# The most work per hour for an organization's people: `HourlyBudget` of `accounts/hourly_budget.py`.
HOUR_CPU_S, HOUR_ROWS, HOUR_WORK_S = 300.0, 5_000_000, 1800.0


def _setting(default: object, valid: object) -> Any:
    """Return a dataclass field that is a setting; `valid` is the annotated type of its values."""
    return field(default=default, metadata={"valid": valid})


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Limits of one worker: what it accepts, and how long it waits.

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
    # How often an upstream's name is looked up; how long its last addresses are used while that fails; how
    # long connections to an address are used after the name has lost it.
    upstream_resolve_s: float = _setting(10.0, Seconds)
    upstream_resolve_stale_s: float = _setting(300.0, Seconds)
    upstream_address_s: float = _setting(20.0, Seconds)
    upstream_attempt_s: float = 0.25  # then a second address is tried in parallel
    # The longest pause of calls to an upstream that refused some; 0: no pause.
    upstream_cooling_s_max: float = _setting(COOLING_S_MAX, Annotated[float, msgspec.Meta(ge=0, le=3600)])
    # How long a call waits for its upstream's stated capacity; the most bytes of waiting calls in one worker;
    # the most calls, half of them of batches; and one organization's share.
    capacity_wait_s: float = _setting(10.0, Seconds)
    capacity_waiting_bytes_max: int = _setting(64 * 1024 * 1024, Bytes)
    capacity_waiting_max: int = 8_000
    capacity_waiting_share: float = _setting(0.25, Share)
    drain_s: float = _setting(120.0, Seconds)
    # Wait for a small body before the call is reserved by its head alone. It has a separate timer.
    body_grace_s: float = 0.01
    # How often to check a client that is not read because its upstream does not read either.
    look_s: float = 1.0
    linger_s: float = 2.0
    # At shutdown: a client idle for so long will not send; the wait for all is at most five times that.
    quiet_s: float = 1.0
    client_write_s: float = 120.0
    counters_s: float = 5.0
    watch_after_s: float = 2.0
    tick_s: float = 0.1

    request_line_bytes_max: int = 8 * 1024
    head_bytes_max: int = _setting(64 * 1024, Annotated[int, msgspec.Meta(ge=1024, le=1 << 20)])
    head_fields_max: int = _setting(100, Annotated[int, msgspec.Meta(ge=8, le=10_000)])
    # Incomplete heads: bytes free for each connection, and beyond those bytes for all of one worker.
    head_free_bytes: int = 4 * 1024
    heads_bytes_max: int = _setting(16 * 1024 * 1024, Bytes)

    body_bytes_max: int = _setting(32 * 1024 * 1024, Bytes)
    body_bytes_per_s_min: int = 16 * 1024
    # A form whose one file is passed on as it arrives: at most `collected_bytes_max` of it is in memory.
    form_bytes_max: int = 1 << 31
    # A body that is passed on unread: so much is collected before the request is sent to an upstream.
    collected_bytes_max: int = 256 * 1024
    discarded_bytes_max: int = 256 * 1024
    # Reading of refused bodies, for clients that read an answer only after sending everything: bytes, pause,
    # and clients at once, of one organization and of all. Other clients are not read.
    lingered_bytes_max: int = 64 * 1024 * 1024
    lingered_pause_s: float = 0.003  # after each part that was read, of 256 KiB at most
    lingering_each_max: int = 2
    lingering_max: int = 16
    chunk_line_bytes_max: int = 256
    chunk_extension_bytes_max: int = 16 * 1024
    trailer_bytes_max: int = 16 * 1024
    small_chunks_max: int = 10_000

    connections_max: int = _setting(20_000, Count)
    turned_away_max: int = 256  # beyond that so many get an answer; further ones are closed
    tls_handshakes_max: int = _setting(1_000, Count)
    # WebSockets of a worker, and one organization's share; an idle one is closed.
    sockets_max: int = _setting(2_000, Count)
    sockets_share: float = _setting(0.25, Share)
    socket_idle_s: float = _setting(600.0, Seconds)
    # Messages that one WebSocket may send in a second, before it is read more slowly.
    live_messages_s: int = _setting(200, Count)
    socket_unasked_s: float = 5.0  # until a hold without a request is released
    # Bytes of responses that no upstream stores; one organization's part is `sockets_share` of them.
    sockets_kept_bytes_max: int = _setting(64 * 1024 * 1024, Bytes)
    socket_frames_max: int = 10_000  # of one message
    socket_event_bytes_max: int = 32 * 1024 * 1024  # of an answer
    upstream_connections_max: int = _setting(2_000, Count)
    upstream_connections_share: float = _setting(0.25, Share)  # the share of one organization
    upstream_idle_connections_max: int = _setting(256, Count)

    interim_answers_max: int = 16
    answer_head_bytes_max: int = 64 * 1024
    answer_held_bytes_max: int = 256 * 1024
    answer_uncounted_bytes_max: int = 8 * 1024  # of an answer, free of the shared buffer
    # Bytes of an answer ahead of a slow client: read from the upstream, and written to the client.
    relay_buffer_bytes_max: int = 8 * 1024
    client_buffer_bytes_max: int = 4 * 1024
    client_unsent_bytes_max: int = 128 * 1024  # kept by the kernel, besides bytes in transit
    # Bytes of bodies and answers buffered for slow peers in one worker, and one organization's share.
    buffered_bytes_max: int = _setting(64 * 1024 * 1024, Bytes)
    buffered_share: float = _setting(0.25, Share)
    # How much of an answer is still read after its client hung up.
    drain_tokens_max: int = _setting(200_000, Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)])
    drain_bytes_max: int = _setting(16 * 1024 * 1024, Bytes)
    # No limit: whether an answer names its upstream.
    show_upstream: bool = _setting(default=False, valid=bool)
    # No limit: the gateway's public URL; empty means the host that each client used.
    public_url: str = _setting(
        "",
        Annotated[
            str,
            msgspec.Meta(
                pattern=r'^(https?://[^\s"?#@]+[^\s"?#@/])?\Z',
                description="a URL such as https://llm.example.com, without a slash at its end",
            ),
        ],
    )

    def within(self, files: int, upstreams: int) -> HttpLimits:
        """Return limits for a worker that may have `files` open files, and calls that many `upstreams`.

        Half of the files are for clients, including TLS handshakes, and half for upstreams, since
        each call may need one of both. So no call, settlement or connection to Redis ever lacks a
        file.
        """
        half = max(0, files - FILES_RESERVED) // 2
        turned_away = min(self.turned_away_max, half // 8)
        handshakes = min(self.tls_handshakes_max, half // 4)
        connections = min(self.upstream_connections_max, max(1, half // max(1, upstreams)))
        return replace(
            self,
            connections_max=min(self.connections_max, max(1, half - turned_away - handshakes)),
            turned_away_max=turned_away,
            tls_handshakes_max=max(1, handshakes),
            upstream_connections_max=connections,
            upstream_idle_connections_max=min(self.upstream_idle_connections_max, connections),
        )


# The settings among these fields, with the types of their values.
SETTABLE = {one.name: one.metadata["valid"] for one in fields(HttpLimits) if one.metadata}
