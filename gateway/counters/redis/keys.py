"""The name of every Redis key. Nothing else in the project spells one.

All keys of a partition share one hash tag, so a script that takes them runs on one hash slot. Identities,
owners of objects and terms stand in the slots of partitions too, and so does what is said of a server's whole
data: beside one of the partitions that it has, its anchor. The rest is of everybody, and asked for key by
key. The catalogue with types, writers and lifetimes is in `lua/README.md`.
"""

from __future__ import annotations

from binascii import crc_hqx
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from itertools import pairwise
from typing import Final

from gateway.core.model import PARTITIONS

CATALOGUE = "tk:catalogue"
# What the keeper that spoke last is.
KEEPERS = "tk:keepers"
# Which gateway workers and keepers run.
PROGRAMS = "tk:programs"
COOLING = "tk:cooling"
LESSONS = "tk:call-lessons"
PRICES = "tk:prices"
PRICES_HEAD = "tk:prices:head"
REFUSED = "tk:refused"
# What the names of all identities begin with, and those of all terms: their changes are told.
IDENTITIES, TERMS = b"tk:id:", b"tk:org:"
# The same of notes on servers' data: its name, and that all of it was verified.
HISTORIES, VERIFIED = b"tk:history:", b"tk:verified:"


def partition_of(organization_id: int) -> int:
    """Partition of an organization, for ever: CRC16 (XMODEM) of its decimal id."""
    return crc_hqx(str(organization_id).encode(), 0) % PARTITIONS


def partition_of_digest(digest: str) -> int:
    """Partition in whose slot a credential's identity, or an object's owner, stands, for ever.

    Whose it is decides of all else.
    """
    return crc_hqx(digest.encode(), 0) % PARTITIONS


def identity(digest: str) -> str:
    """Return whom a credential stands for; the digest is hex HMAC-SHA-256."""
    return f"{IDENTITIES.decode()}{{p{partition_of_digest(digest):02d}}}:{digest}"


def object_owner(digest: str) -> str:
    """Return whose an object of an upstream is; the digest of its id is hex."""
    return f"tk:{{p{partition_of_digest(digest):02d}}}:obj:{digest}"


def organization_terms(organization_id: int) -> str:
    """Return what services cost an organization and which it may use."""
    return f"{TERMS.decode()}{{p{partition_of(organization_id):02d}}}:{organization_id}"


def own_name(name: bytes) -> str:
    """Return what an identity or terms are called behind their slot: the digest, the organization's id."""
    return name.rpartition(b":")[2].decode(errors="replace")


def activity(bucket: int) -> str:
    """Return what tenants did within a few seconds, for people to look at."""
    return f"tk:busy:{bucket}"


def _of_server(name: str) -> Callable[[int], str]:
    return lambda anchor: f"tk:{name}:{{p{anchor:02d}}}"


def _of_partition(letter: str) -> Callable[[int], str]:
    return lru_cache(PARTITIONS)(lambda partition: f"tk:{{p{partition:02d}}}:{letter}")


def _of_account(letter: str) -> Callable[[int, int], str]:
    return lambda partition, id_: f"tk:{{p{partition:02d}}}:{letter}:{id_}"


def _of_name(letter: str) -> Callable[[int, str], str]:
    return lambda partition, name: f"tk:{{p{partition:02d}}}:{letter}:{name}"


# By the anchor of a server: the name of its data's history, the promotion it is verified behind, the pulses
# of processes, the history that all of it was verified under, the workers' reports.
history, promotion, pulses = map(_of_server, ("history", "promotion", "pulses"))
verified, workers = map(_of_server, ("verified", "workers"))
# By the partition: its marker, the holds by when they end, the outbox, how many movements wait apart by
# organization, settlements without a hold, and ids of control writes that are not in PostgreSQL.
marker, deadlines, outbox = _of_partition("m"), _of_partition("d"), _of_partition("x")
parked, late, control = _of_partition("w"), _of_partition("late"), _of_partition("g")
# The jobs of its organizations, by when they are looked at next.
jobs = _of_partition("jobs")
# By the partition and an API key's id: its state, and what it asked of its own usage lately.
key_state, bucket = _of_account("k"), _of_account("q")
tenant_state = _of_account("t")
# By the partition and an organization's id: its state, its movements that wait apart, digests of its objects,
# and of the ids in answers.
organization_state, parked_entries, objects = _of_account("o"), _of_account("w"), _of_account("own")
answers = _of_account("told")
# By the partition and a tenant's id: its runs that are remembered. By an organization's: its open jobs.
runs, open_jobs = _of_account("runs"), _of_account("open")
# By the partition and an API key's id: the runs that it opened, and its open holds by the API.
opened_runs, key_holds = _of_account("opened"), _of_account("mine")
# By the partition and an organization's id: its open holds by the API, those that have ended, and requests
# that have an `Idempotency-Key`.
open_holds, ended_holds, idempotents = map(_of_account, ("holds", "ended", "idems"))
# By the partition and an account's name (`gateway/core/accounts/budgets.py`): the account of budgets; of a
# run's, the run as it was made, and the runs that draw from it.
budget_account, run, children = _of_name("b"), _of_name("run"), _of_name("children")
# By the partition and an id: the record of a hold that a caller took by the API, and how a caller ended it:
# the first to say it writes it. A job by the id of its hold; by its upstream's id, the id of its hold; that a
# worker looks at it now.
caller_hold, hold_end, job, job_look = map(_of_name, ("hold", "end", "job", "look"))
# The answer to a request with an `Idempotency-Key`; the digest is of its API key and of that.
idempotent = _of_name("idem")


def listed_job(organization_id: int, hold_id: str) -> bytes:
    """Return the member of a list of jobs: the organization, and the id of the hold."""
    return f"{organization_id}:{hold_id}".encode()


def job_of(member: bytes) -> str:
    """Return the id of the hold of a member; earlier versions wrote that alone."""
    return member.rpartition(b":")[2].decode()


def marked(partition: int) -> str:
    """Return how often the marker of a partition was written: its name begins like one that is told of."""
    return f"{HISTORIES.decode()}{{p{partition:02d}}}:m"


_MARKED = {marked(partition).encode(): partition for partition in range(PARTITIONS)}


def marked_partition(name: bytes) -> int | None:
    """Return the partition whose marker was written, where that is what a name tells."""
    return _MARKED.get(name)


def each_accounts(partition: int, name: str) -> str:
    """Those accounts for each that are like this one; the part of its name before the colon names them."""
    return f"tk:{{p{partition:02d}}}:each:{name.partition(':')[0]}"


def capacity(upstream: str, model: str) -> tuple[int, tuple[str, str]]:
    """Which partition has an account of an upstream's capacity; its name, and that of its calls at once."""
    partition = partition_of_digest(upstream)
    digest = sha256(f"{upstream} {model}".encode()).hexdigest()[:24]
    return partition, (f"tk:{{p{partition:02d}}}:cap:{digest}", f"tk:{{p{partition:02d}}}:caps:{digest}")


def user_state(partition: int, tenant_id: int, user: str) -> str:
    """State of a tenant's user; the caller's own id is hashed, since it is any string."""
    return f"tk:{{p{partition:02d}}}:u:{tenant_id}:{sha256(user.encode()).hexdigest()[:24]}"


def hold(partition: int, request_id: str) -> str:
    """Return the hold of one request."""
    return f"tk:{{p{partition:02d}}}:h:{request_id}"


def activation(partition: int, organization_id: int, service_id: int, *, in_money: bool = False) -> str:
    """Return the stored use of an organization's service; units that are money are counted apart."""
    return f"tk:{{p{partition:02d}}}:a:{organization_id}:{service_id}{':money' if in_money else ''}"


# Which hash slot a key stands in, and what one server of a cluster has of all partitions. Pure.
#
# The rule is that of https://valkey.io/topics/cluster-spec/: CRC16 of the bytes between the first braces,
# or of the whole name.

SLOTS: Final = 16_384
MEMBERS_MAX: Final = 256
PRIMARIES_MAX: Final = 64
PORT_MAX: Final = 65_535


def slot_of(name: bytes) -> int:
    """Return the slot of a key."""
    start = name.find(b"{") + 1
    end = name.find(b"}", start) if start else -1
    return crc_hqx(name[start:end] if end > start else name, 0) % SLOTS


# Of each partition: where all that is its own stands.
SLOT_OF_PARTITION: Final = tuple(slot_of(marker(one).encode()) for one in range(PARTITIONS))


@dataclass(frozen=True, slots=True)
class ServerPartitions:
    """The partitions that a server has; beside its `anchor` stands what is said of all of them."""

    partitions: tuple[int, ...]
    anchor: int


WHOLE: Final = ServerPartitions(tuple(range(PARTITIONS)), 0)
NOTHING: Final = ServerPartitions((), -1)


def part_of(partitions: tuple[int, ...]) -> ServerPartitions:
    """Return what a server has now. Its anchor is the lowest: so it is the same one for every process."""
    return ServerPartitions(partitions, partitions[0]) if partitions else NOTHING


# --- who has what -----------------------------------------------------------------------

Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class SlotRange:
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
    owned: tuple[SlotRange, ...] = ()
    members: tuple[Place, ...] = ()
    ids: frozenset[bytes] = frozenset()

    def is_of(self, other: SlotMap) -> bool:
        """Return whether both may be of one cluster. Epochs of two say nothing of each other."""
        return not self.ids or not other.ids or not self.ids.isdisjoint(other.ids)

    def place_of(self, slot: int) -> Place | None:
        """Return where the primary of a slot is; None where nobody has it."""
        at = bisect_right(self.owned, slot, key=lambda one: one.first) - 1
        return self.owned[at].place if at >= 0 and slot <= self.owned[at].last else None

    def partitions_of(self, place: Place) -> tuple[int, ...]:
        """Return the partitions that a primary has."""
        return tuple(one for one, slot in enumerate(SLOT_OF_PARTITION) if self.place_of(slot) == place)


def newest(views: Sequence[SlotMap], known: SlotMap) -> SlotMap | None:
    """Return the map of the latest epoch, that of most where they differ, and of as many the one that is
    known.

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
    """Return what CLUSTER SLOTS answers (https://valkey.io/commands/cluster-slots/); ValueError where it is
    none.

    `asked` is whom it was asked: that is who names itself without a host.
    """
    if not isinstance(said, list) or len(said) > SLOTS:
        raise ValueError("no list of slots")
    owned, members, ids = list[SlotRange](), dict[Place, None](), set[bytes]()
    for line in said:
        match line:
            case [int() as first, int() as last, primary, *replicas] if 0 <= first <= last < SLOTS:
                places = [_place(one, asked) for one in (primary, *replicas)]
                owned.append(SlotRange(first, last, places[0]))
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
    """Return the redirection that an error is; None where it is another error."""
    word, _, rest = message.partition(" ")
    if word == "TRYAGAIN":
        return Redirection(word)
    if word not in ("MOVED", "ASK"):
        return None
    host, _, port = rest.partition(" ")[2].rpartition(":")
    if not port.isdecimal() or not 0 < int(port) <= PORT_MAX:
        return None
    return Redirection(word, (asked[0] if host in ("", "?") else host.strip("[]"), int(port)))
