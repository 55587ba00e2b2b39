"""The wire bytes that all calls of one caller share, made once: the hot path fills in what changes.

Whoever has a key may name any user, and each has bytes of its own: about 1 KB, kept for the callers that
came last, so that a key with many users does not push out another's that comes now and then.
"""

from __future__ import annotations

from collections import OrderedDict

from gateway.core.model import Caller, HoldRequest, Service, Settlement
from gateway.counters.layouts import packing
from gateway.counters.layouts.flags import service_flags
from gateway.counters.redis.wire import encode_script

TOMBSTONE_MS = 3_600_000
NO_ID = "0" * 36


class Frames:
    """The frames of the last `most` callers, by key, user and service."""

    __slots__ = ("_known", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: OrderedDict[tuple[int, str, int], Frame] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def frame_of(self, caller: Caller, user: str, service: Service) -> Frame:
        """The frame of these calls: a service that was resolved again has another one."""
        key = caller.key_id, user, service.id
        frame = self._known.get(key)
        if frame is not None and frame.service is service:
            self._known.move_to_end(key)
            return frame
        if frame is None and len(self._known) >= self._most:
            self._known.popitem(last=False)
        frame = self._known[key] = Frame(caller, user, service)
        return frame


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
