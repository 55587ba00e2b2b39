"""The wire bytes that all calls of one caller share, made once: the hot path fills in what changes."""

from __future__ import annotations

from gateway.core.model import Caller, HoldRequest, Service, Settlement
from gateway.counters import packing
from gateway.counters.flags import service_flags
from gateway.counters.wire import encode_script

TOMBSTONE_MS = 3_600_000
NO_ID = "0" * 36


class Frame:
    """The wire bytes of one caller's calls, cut where request id and packed arguments go."""

    __slots__ = ("arguments_at", "flags", "reserve", "service", "settle", "who")

    def __init__(self, caller: Caller, user: str, service: Service) -> None:
        request = HoldRequest(caller, NO_ID, user, service, 0, 0)
        self.service = service
        self.flags = service_flags(request)
        keys, arguments = packing.reserve(b"0" * 40, 0, 0, request)
        whole = encode_script("reserve", keys, arguments)
        head, tail = whole.split(NO_ID.encode(), 1)
        middle, end = tail.split(arguments[0], 1)
        self.reserve = head, middle, end
        release = Settlement(caller, NO_ID, user, service, charge=False)
        self.who = packing.settle_who(release, TOMBSTONE_MS)
        keys, arguments = packing.settle(b"0" * 40, TOMBSTONE_MS, release, packing.MODE_RELEASE)
        whole = encode_script("settle", keys, arguments)
        head, tail = whole.split(NO_ID.encode(), 1)
        middle, end = tail.split(arguments[0], 1)
        # Attribution and metadata, empty here, stand before whatever follows them.
        last = b"".join(b"$%d\r\n%b\r\n" % (len(one), one) for one in arguments[4:])
        filled = b"$0\r\n\r\n$0\r\n\r\n" + last
        assert end.endswith(filled)
        self.settle = head, middle, end[: -len(filled)], last
        # Where in the whole command begins what the log keeps of it.
        self.arguments_at = len(head) + len(NO_ID) + len(middle) + packing.BATCH_BYTES
