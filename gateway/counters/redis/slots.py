"""Which hash slot a key stands in, and what one server of a cluster has of all partitions. Pure.

The rule is that of https://valkey.io/topics/cluster-spec/: CRC16 of what stands between the first braces, or
of the whole name.
"""

from __future__ import annotations

from binascii import crc_hqx
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from gateway.core.model import PARTITIONS
from gateway.counters.redis import keys

SLOTS: Final = 16_384
MEMBERS_MAX: Final = 256
PRIMARIES_MAX: Final = 64
PORT_MAX: Final = 65_535


def slot_of(name: bytes) -> int:
    """The slot of a key."""
    start = name.find(b"{") + 1
    end = name.find(b"}", start) if start else -1
    return crc_hqx(name[start:end] if end > start else name, 0) % SLOTS


# Of each partition: where all that is its own stands.
SLOT_OF_PARTITION: Final = tuple(slot_of(keys.marker(one).encode()) for one in range(PARTITIONS))


@dataclass(frozen=True, slots=True)
class Part:
    """The partitions that a server has; beside its `anchor` stands what is said of all of them."""

    partitions: tuple[int, ...]
    anchor: int


WHOLE: Final = Part(tuple(range(PARTITIONS)), 0)
NOTHING: Final = Part((), -1)


def part_of(partitions: tuple[int, ...]) -> Part:
    """What a server has now. Its anchor is the lowest: so it is the same one for every process."""
    return Part(partitions, partitions[0]) if partitions else NOTHING


# --- who has what -----------------------------------------------------------------------

Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Owned:
    """Slots from `first` to `last`, and where their primary is."""

    first: int
    last: int
    place: Place


@dataclass(frozen=True, slots=True)
class SlotMap:
    """Who has which slots, as one member of the cluster says. A later `epoch` knows of later changes.

    `members` are all places that were named, replicas too, and `ids` what the cluster itself calls them.
    """

    epoch: int = 0
    owned: tuple[Owned, ...] = ()
    members: tuple[Place, ...] = ()
    ids: frozenset[bytes] = frozenset()

    def is_of(self, other: SlotMap) -> bool:
        """Whether both may be of one cluster. Epochs of two say nothing of each other."""
        return not self.ids or not other.ids or not self.ids.isdisjoint(other.ids)

    def place_of(self, slot: int) -> Place | None:
        """Where the primary of a slot is; None where nobody has it."""
        at = bisect_right(self.owned, slot, key=lambda one: one.first) - 1
        return self.owned[at].place if at >= 0 and slot <= self.owned[at].last else None

    def partitions_of(self, place: Place) -> tuple[int, ...]:
        """The partitions that a primary has."""
        return tuple(one for one, slot in enumerate(SLOT_OF_PARTITION) if self.place_of(slot) == place)


def newest(views: Sequence[SlotMap], known: SlotMap) -> SlotMap | None:
    """The map of the latest epoch, that of most where they differ, and of as many the one that is known.

    A slot may move without a new epoch. So who has not heard of it yet says an older map of the same epoch.
    Maps of another cluster count where there is none of the known one.
    """
    ours = [one for one in views if one.is_of(known)] or views
    epoch = max((one.epoch for one in ours), default=0)
    latest = [one for one in ours if one.epoch == epoch]
    said = Counter(one.owned for one in latest)
    return max(latest, key=lambda one: (said[one.owned], one.owned == known.owned), default=None)


def are_doubtful(views: Sequence[SlotMap], known: SlotMap) -> bool:
    """Whether others are to be asked too: nobody said anything, or one alone another map of this epoch."""
    one = views[0] if views else known
    return not views or (len(views) == 1 and one.epoch == known.epoch and one.owned != known.owned)


def read_slots(epoch: int, said: object, asked: Place) -> SlotMap:
    """What CLUSTER SLOTS answers (https://valkey.io/commands/cluster-slots/); ValueError where it is none.

    `asked` is whom it was asked: that is who names itself without a host.
    """
    if not isinstance(said, list) or len(said) > SLOTS:
        raise ValueError("no list of slots")
    owned, members, ids = list[Owned](), dict[Place, None](), set[bytes]()
    for line in said:
        match line:
            case [int() as first, int() as last, primary, *replicas] if 0 <= first <= last < SLOTS:
                places = [_place(one, asked) for one in (primary, *replicas)]
                owned.append(Owned(first, last, places[0]))
                members.update(dict.fromkeys(places))
                ids.update(id_ for one in (primary, *replicas) for id_ in one[2:3] if isinstance(id_, bytes))
            case _:
                raise ValueError(f"no range of slots: {line!r}"[:200])
    owned.sort(key=lambda one: one.first)
    if any(one.last >= other.first for one, other in pairwise(owned)):
        raise ValueError("a slot has two primaries")
    primaries = len({one.place for one in owned})
    if primaries > PRIMARIES_MAX:
        raise ValueError(f"{primaries} primaries have slots: expected at most {PRIMARIES_MAX}")
    return SlotMap(epoch, tuple(owned), tuple(members)[:MEMBERS_MAX], frozenset(ids))


def _place(said: object, asked: Place) -> Place:
    """Host and port of a member; an unknown host is that of who was asked."""
    match said:
        case [bytes() | None as host, int() as port, *_] if 0 < port <= PORT_MAX:
            name = (host or b"").decode()
            return (asked[0] if name in ("", "?") else name), port
    raise ValueError(f"no place of a member: {said!r}"[:200])


@dataclass(frozen=True, slots=True)
class Redirection:
    """What a member says of keys that it does not have, or not all: `word` is MOVED, ASK or TRYAGAIN."""

    word: str
    place: Place = ("", 0)


def read_redirection(message: str, asked: Place) -> Redirection | None:
    """The redirection that an error is; None where it is another error."""
    word, _, rest = message.partition(" ")
    if word == "TRYAGAIN":
        return Redirection(word)
    if word not in ("MOVED", "ASK"):
        return None
    host, _, port = rest.partition(" ")[2].rpartition(":")
    if not port.isdecimal() or not 0 < int(port) <= PORT_MAX:
        return None
    return Redirection(word, (asked[0] if host in ("", "?") else host.strip("[]"), int(port)))
