"""The wire bytes that all calls of one caller share, made once: the hot path fills in what changes.

Whoever has a key may name any user, and each has bytes of its own: about 1 KB, kept for the callers that
came last, so that a key with many users does not push out another's that comes now and then.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from gateway.core.in_use import InUse, Kept, the_one
from gateway.core.model import BudgetAccount, Caller, HoldRequest, Service, Settlement
from gateway.counters.layouts import packing
from gateway.counters.layouts.accounts import tiers_of
from gateway.counters.layouts.budgets import need, need_packed, paid
from gateway.counters.layouts.flags import service_flags
from gateway.counters.layouts.table import NEED, PAID, RESERVE, SETTLEMENT
from gateway.counters.redis.calls import Form, Group, bulks

TOMBSTONE_MS = 3_600_000
NO_ID = "0" * 36
# What is given back leaves before what is taken.
RANKS = {"settle": 0, "reserve": 1}
# How the packed argument begins on the wire, and where in a settlement's begins what the log keeps.
RESERVE_HEAD = b"$%d\r\n" % RESERVE.size
SETTLE_HEAD = b"$%d\r\n" % SETTLEMENT.size
_NEED_HEAD = b"$%d\r\n" % NEED.size
KEPT_AT: Final = len(SETTLE_HEAD) + packing.BATCH_BYTES
NO_BUDGETS: Final[tuple[str, ...]] = ()


# Texts that frames share: of each organization in use, and of its budgets. Each has some hundred bytes.
TEXTS_MAX: Final = 4_096
# How many accounts of budgets a frame has room for that is no larger than most are.
FREE_ACCOUNTS: Final = 4


class Frames:
    """The frames of the last callers, by key, user, service and the budget accounts they take from.

    Callers say who they are, so what there may be is bounded by size: `most` frames of up to four accounts,
    of 7 KB each, and fewer of larger ones.
    """

    __slots__ = ("_known",)

    def __init__(self, most: int) -> None:
        self._known: InUse[tuple[int, str, int, tuple[str, ...]], Frame] = InUse(most * FREE_ACCOUNTS)

    def __len__(self) -> int:
        return len(self._known)

    def frame_of(
        self, caller: Caller, user: str, service: Service, budgets: tuple[str, ...] = NO_BUDGETS
    ) -> Frame:
        """The frame of these calls: a service that was resolved again has another one."""
        key = caller.key_id, user, service.id, budgets
        frame = self._known.find(key)
        if frame is None or frame.service is not service:
            frame = Frame(caller, user, service, budgets)
            self._known.put(key, frame, max(FREE_ACCOUNTS, len(budgets)))
        return frame


class Frame(Kept):
    """The wire bytes of one caller's calls: what they move, and what is before and behind that which changes.

    `names` are those of budgets' accounts, behind that which their windows count.
    """

    __slots__ = (
        "_defined",
        "_defined_of",
        "_reserve_end",
        "flags",
        "names",
        "reserve",
        "service",
        "settle",
        "settle_end",
        "settle_user",
        "who",
    )

    def __init__(
        self, caller: Caller, user: str, service: Service, budgets: tuple[str, ...] = NO_BUDGETS
    ) -> None:
        request = HoldRequest(caller, NO_ID, user, service, 0, 0)
        request.budgets = tuple(BudgetAccount(name, b"", False) for name in budgets)
        self.service = service
        self.flags = service_flags(request)
        keys, arguments = packing.reserve(b"0" * 40, 0, 0, request)
        self.reserve = _form("reserve", caller.partition, keys, len(arguments))
        # What budgets need, and their definitions, are the last arguments.
        end = b"\r\n" + bulks(*arguments[1 : len(arguments) - len(need(request))])
        self._reserve_end = end if user else _shared(end)
        release = Settlement(caller, NO_ID, user, service, charge=False, budgets=budgets)
        self.who = packing.settle_who(release, TOMBSTONE_MS)
        keys, arguments = packing.settle(b"0" * 40, TOMBSTONE_MS, release, packing.MODE_RELEASE)
        self.settle = _form("settle", caller.partition, keys, len(arguments), self.reserve)
        # What was last said of budgets' accounts: as they are defined, in one tuple, and that on the wire.
        self._defined_of: tuple[BudgetAccount, ...] = ()
        self._defined = b""
        # Attribution and metadata stand between the user and the tiers; last is what budgets count.
        named = b"\r\n" + bulks(arguments[1])
        self.settle_user = named if user else _shared(named)
        before, _, self.names = bulks(*paid(release)).partition(PAID.pack(0, 0, 0))
        self.settle_end = _shared(bulks(*tiers_of(release)) + before)

    def end_of(self, request: HoldRequest) -> bytes:
        """What stands behind that which changes: last what windows hold and what accounts are."""
        accounts = request.budgets
        if not accounts:
            return self._reserve_end
        if accounts is not self._defined_of:
            self._defined_of, self._defined = accounts, _shared(bulks(*[one.defined for one in accounts]))
        held = need_packed(
            request.money, request.money_most, request.money_least,
            request.raw_tokens, request.raw_most, request.raw_least,
        )  # fmt: skip
        return b"%b%b%b\r\n%b" % (self._reserve_end, _NEED_HEAD, held, self._defined)


def _shared(text: bytes) -> bytes:
    """The one text of these bytes: callers of one organization have the same definitions, one by one, and
    all callers without a user the same ends.
    """
    return the_one(_texts, text, text, TEXTS_MAX)


_texts: Final[dict[bytes, bytes]] = {}


def _form(
    verb: str, partition: int, keys: tuple[str, ...], arguments: int, other: Form | None = None
) -> Form:
    shared = packing.SHARED[verb]
    group = _group(verb, partition, keys[:shared], keys[-1].removesuffix(NO_ID))
    return Form(group, keys[shared:-1], arguments, other)


@cache
def _group(verb: str, partition: int, shared: tuple[str, ...], hold: str) -> Group:
    """One of each verb and partition."""
    return Group(verb, RANKS[verb], shared, hold, packing.ALONE[verb])
