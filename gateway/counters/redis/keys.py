"""The name of every Redis key. No other module spells one.

All keys of a partition share one hash tag, so a script that takes them runs in one hash slot. Identities,
owners of objects, and terms are in the slots of partitions, too. Keys about all data of a server are in the
slot of one of its partitions, the anchor. The other keys are global, and queried one by one. The list of all
keys with types, writers and lifetimes is in `lua/README.md`.
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
from gateway.core.network import PORT_MAX

CATALOGUE = "tk:catalogue"
# The last report of a keeper.
KEEPERS = "tk:keepers"
# Why a keeper cannot store rows.
UNSTORED = "tk:unstored"
# The running gateway workers and keepers.
PROGRAMS = "tk:programs"
COOLING = "tk:cooling"
LESSONS = "tk:call-lessons"
# Accounts of upstreams that are out of money or quota, by the time at which they are asked again.
EMPTY_ACCOUNTS = "tk:{p00}:empty"
# The newest control write that Redis was told of.
NEWEST_WRITE = "tk:newest"
PRICES = "tk:prices"
PRICES_HEAD = "tk:prices:head"
REFUSED = "tk:refused"
# Which part of the data a server has, of several that share it without a cluster.
SHARD = b"tk:{p00}:shard"
# The prefixes of all identities, and of all terms: Redis reports changes of these keys.
IDENTITIES, TERMS = b"tk:id:", b"tk:org:"
# The prefixes of a server's data name, and of the key that says that all of it was verified.
HISTORIES, VERIFIED = b"tk:history:", b"tk:verified:"


def partition_of(organization_id: int) -> int:
    """Return the partition of an organization, which never changes: CRC16 (XMODEM) of its decimal id."""
    return crc_hqx(str(organization_id).encode(), 0) % PARTITIONS


def partition_of_digest(digest: str) -> int:
    """Return the partition whose slot has a credential's identity or an object's owner; it never changes.

    All other keys of the same account are in the partition of its organization.
    """
    return crc_hqx(digest.encode(), 0) % PARTITIONS


def identity(digest: str) -> str:
    """Return the key of a credential's identity; the digest is hex HMAC-SHA-256."""
    return f"{IDENTITIES.decode()}{{p{partition_of_digest(digest):02d}}}:{digest}"


def object_owner(digest: str) -> str:
    """Return the key of the owner of an upstream's object; the digest of the object's id is hex."""
    return f"tk:{{p{partition_of_digest(digest):02d}}}:obj:{digest}"


def object_note(digest: str) -> str:
    """Return the key of a value that is stored with an upstream's object, in the slot of its owner."""
    return f"tk:{{p{partition_of_digest(digest):02d}}}:note:{digest}"


def organization_terms(organization_id: int) -> str:
    """Return the key of an organization's terms: its services, prices and budgets."""
    return f"{TERMS.decode()}{{p{partition_of(organization_id):02d}}}:{organization_id}"


def own_name(name: bytes) -> str:
    """Return the last part of the name of an identity or of terms: the digest, or the organization's id."""
    return name.rpartition(b":")[2].decode(errors="replace")


def activity(bucket: int) -> str:
    """Return the key of tenants' activity within one bucket of a few seconds, for people to look at."""
    return f"tk:busy:{bucket}"


def empty_account(digest: str) -> str:
    """Return the key of the first answer of an empty account; the digest is of its credential."""
    return f"{EMPTY_ACCOUNTS}:{digest}"


def empty_account_question(digest: str) -> str:
    """Return the key that exists while one worker asks such an account again."""
    return f"{EMPTY_ACCOUNTS}-asked:{digest}"


def _of_server(name: str) -> Callable[[int], str]:
    return lambda anchor: f"tk:{name}:{{p{anchor:02d}}}"


def _of_partition(letter: str) -> Callable[[int], str]:
    return lru_cache(PARTITIONS)(lambda partition: f"tk:{{p{partition:02d}}}:{letter}")


def _of_account(letter: str) -> Callable[[int, int], str]:
    return lambda partition, id_: f"tk:{{p{partition:02d}}}:{letter}:{id_}"


def _of_name(letter: str) -> Callable[[int, str], str]:
    return lambda partition, name: f"tk:{{p{partition:02d}}}:{letter}:{name}"


# By the anchor of a server: the name of its data's history, the last promotion before it was verified, the
# pulses of processes, the history that all of it was verified in, the workers' reports.
history, promotion, pulses = map(_of_server, ("history", "promotion", "pulses"))
verified, workers = map(_of_server, ("verified", "workers"))
# By the partition: its marker, the holds by deadline, the outbox, the numbers of parked entries by
# organization, settlements without a hold, and ids of control writes that are not in PostgreSQL.
marker, deadlines, outbox = _of_partition("m"), _of_partition("d"), _of_partition("x")
parked, late, control = _of_partition("w"), _of_partition("late"), _of_partition("g")
# The jobs of a partition's organizations, by the time of their next look; the present epoch and since when.
jobs, holds_since = _of_partition("jobs"), _of_partition("since")
# By the partition and an API key's id: its state, and the bucket of its queries of its own usage.
key_state, bucket = _of_account("k"), _of_account("q")
tenant_state = _of_account("t")
# By the partition and an organization's id: its state, its parked entries, digests of its objects, and of the
# ids in answers.
organization_state, parked_entries, objects = _of_account("o"), _of_account("w"), _of_account("own")
answers = _of_account("told")
# By the partition and a tenant's id: its runs. By an organization's id: its open jobs.
runs, open_jobs = _of_account("runs"), _of_account("open")
# By the partition and a tenant's id: its sessions that keep a model. By a digest: such a session.
model_sessions, model_session = _of_account("sessions"), _of_name("session")
# By the partition and an API key's id: the runs that it opened, and its open holds of the API.
opened_runs, key_holds = _of_account("opened"), _of_account("mine")
# By the partition and an organization's id: its open holds of the API, ended ones, and requests with an
# `Idempotency-Key`.
open_holds, ended_holds, idempotents = map(_of_account, ("holds", "ended", "idems"))
# By the partition and an account's name (`gateway/core/accounts/budgets.py`): the account of budgets; for a
# run's account, the run as it was opened, and its child runs.
budget_account, run, children = _of_name("b"), _of_name("run"), _of_name("children")
# By the partition and an id: the record of a hold of the API, and its end, written once. A job by the id of
# its hold; by its upstream's id, the id of its hold; and that a worker looks at it now.
caller_hold, hold_end, job, job_look = map(_of_name, ("hold", "end", "job", "look"))
# The answer to a request with an `Idempotency-Key`; the digest is of the API key and that header.
idempotent = _of_name("idem")


def listed_job(organization_id: int, hold_id: str) -> bytes:
    """Return the member of a list of jobs: the organization, and the id of the hold."""
    return f"{organization_id}:{hold_id}".encode()


def job_of(member: bytes) -> str:
    """Return the hold's id in a member of a list of jobs; in earlier versions, the member is the id alone."""
    return member.rpartition(b":")[2].decode()


def marked(partition: int) -> str:
    """Return the key written with each write of a partition's marker, which Redis reports to gateways."""
    return f"{HISTORIES.decode()}{{p{partition:02d}}}:m"


def never(partition: int) -> str:
    """Return a key that is never written: a server that gives the partition's slot away answers ASK for it."""
    return f"{HISTORIES.decode()}{{p{partition:02d}}}:never"


_MARKED = {marked(partition).encode(): partition for partition in range(PARTITIONS)}


def marked_partition(name: bytes) -> int | None:
    """Return the partition whose `marked` key has this name, or None."""
    return _MARKED.get(name)


def each_accounts(partition: int, name: str) -> str:
    """Return the index key of the accounts of a budget that has one for each owner.

    The names of these accounts differ only after the colon.
    """
    return f"tk:{{p{partition:02d}}}:each:{name.partition(':')[0]}"


def capacity(upstream: str, model: str) -> tuple[int, tuple[str, str]]:
    """Return the partition and the two keys of an upstream's capacity: rates, and calls in flight."""
    partition = partition_of_digest(upstream)
    digest = sha256(f"{upstream} {model}".encode()).hexdigest()[:24]
    return partition, (f"tk:{{p{partition:02d}}}:cap:{digest}", f"tk:{{p{partition:02d}}}:caps:{digest}")


def user_state(partition: int, tenant_id: int, user: str) -> str:
    """Return the key of a tenant's user; the caller's own id is hashed, since it may be any string."""
    return f"tk:{{p{partition:02d}}}:u:{tenant_id}:{sha256(user.encode()).hexdigest()[:24]}"


def hold(partition: int, request_id: str) -> str:
    """Return the key of one request's hold."""
    return f"tk:{{p{partition:02d}}}:h:{request_id}"


def activation(partition: int, organization_id: int, service_id: int, *, in_money: bool = False) -> str:
    """Return the key of an organization's stored use of a service; units of money have another key."""
    return f"tk:{{p{partition:02d}}}:a:{organization_id}:{service_id}{':money' if in_money else ''}"


# The hash slot of a key, and the partitions of one server of a cluster. Pure.
#
# The rule is that of https://valkey.io/topics/cluster-spec/: CRC16 of the bytes between the first braces, or
# of the whole name.

SLOTS: Final = 16_384
MEMBERS_MAX: Final = 256
PRIMARIES_MAX: Final = 64


def slot_of(name: bytes) -> int:
    """Return the hash slot of a key."""
    start = name.find(b"{") + 1
    end = name.find(b"}", start) if start else -1
    return crc_hqx(name[start:end] if end > start else name, 0) % SLOTS


# The slot of each partition.
SLOT_OF_PARTITION: Final = tuple(slot_of(marker(one).encode()) for one in range(PARTITIONS))


@dataclass(frozen=True, slots=True)
class ServerPartitions:
    """The partitions of a server; keys about all of them are in the slot of its `anchor` partition.

    `moving` are the partitions whose slot it gives away, key by key.
    """

    partitions: tuple[int, ...]
    anchor: int
    moving: frozenset[int] = frozenset()


WHOLE: Final = ServerPartitions(tuple(range(PARTITIONS)), 0)
NOTHING: Final = ServerPartitions((), -1)


def part_of(partitions: tuple[int, ...], moving: frozenset[int] = frozenset()) -> ServerPartitions:
    """Return a server's partitions with their anchor, which has the keys of the whole server.

    It is the lowest that is not `moving`, or the lowest if all are.
    """
    anchor = min(set(partitions) - moving or partitions, default=NOTHING.anchor)
    return ServerPartitions(partitions, anchor, moving.intersection(partitions))


# --- who has what -----------------------------------------------------------------------

Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class SlotRange:
    """The slots from `first` to `last`, and the address of their primary."""

    first: int
    last: int
    place: Place


@dataclass(frozen=True, slots=True)
class SlotMap:
    """The owners of slots, as one member of the cluster reports them. A later `epoch` has later changes.

    `members` are all addresses in the report, including replicas, and `ids` the members' node ids.
    """

    epoch: int = 0
    owned: tuple[SlotRange, ...] = ()
    members: tuple[Place, ...] = ()
    ids: frozenset[bytes] = frozenset()

    def is_of(self, other: SlotMap) -> bool:
        """Return whether both maps may be of one cluster; epochs of different clusters are not comparable."""
        return not self.ids or not other.ids or not self.ids.isdisjoint(other.ids)

    def place_of(self, slot: int) -> Place | None:
        """Return the address of a slot's primary; None if it has none."""
        at = bisect_right(self.owned, slot, key=lambda one: one.first) - 1
        return self.owned[at].place if at >= 0 and slot <= self.owned[at].last else None

    def partitions_of(self, place: Place) -> tuple[int, ...]:
        """Return the partitions of a primary."""
        return tuple(one for one, slot in enumerate(SLOT_OF_PARTITION) if self.place_of(slot) == place)


def shard_map(places: Sequence[Place]) -> SlotMap:
    """Return the slots of servers that share the data without a cluster, each with an equal part."""
    slots, owned, first = sorted(SLOT_OF_PARTITION), list[SlotRange](), 0
    for number, place in enumerate(places, 1):
        last = SLOTS - 1 if number == len(places) else slots[PARTITIONS * number // len(places) - 1]
        owned.append(SlotRange(first, last, place))
        first = last + 1
    return SlotMap(0, tuple(owned), tuple(places))


def newest(views: Sequence[SlotMap], known: SlotMap) -> SlotMap | None:
    """Return the map of the latest epoch: of several the most frequent, and of equally frequent the known
    one.

    A slot may move without a new epoch, so a member that has not heard of the move reports an older map of
    the same epoch. Maps of another cluster count only if there is none of the known one.
    """
    ours = [view for view in views if view.is_of(known)] or views
    epoch = max((slot_map.epoch for slot_map in ours), default=0)
    latest = [slot_map for slot_map in ours if slot_map.epoch == epoch]
    counter = Counter(one.owned for one in latest)
    return max(latest, key=lambda one: (counter[one.owned], one.owned == known.owned), default=None)


def are_doubtful(views: Sequence[SlotMap], known: SlotMap) -> bool:
    """Return whether to ask more members for maps: none answered, or a single one contradicts `known`."""
    view = views[0] if views else known
    return not views or (len(views) == 1 and view.epoch == known.epoch and view.owned != known.owned)


def read_slots(epoch: int, value: object, asked: Place) -> SlotMap:
    """Return the answer of CLUSTER SLOTS (https://valkey.io/commands/cluster-slots/); ValueError if invalid.

    `asked` is the address of the member that answered: it may give itself no host.
    """
    if not isinstance(value, list) or len(value) > SLOTS:
        raise ValueError("no list of slots")
    owned, members, ids = list[SlotRange](), dict[Place, None](), set[bytes]()
    for line in value:
        match line:
            case [int() as first, int() as last, primary, *replicas] if 0 <= first <= last < SLOTS:
                places = [_place(node, asked) for node in (primary, *replicas)]
                owned.append(SlotRange(first, last, places[0]))
                members.update(dict.fromkeys(places))
                ids.update(
                    id_ for node in (primary, *replicas) for id_ in node[2:3] if isinstance(id_, bytes)
                )
            case _:
                raise ValueError(f"no range of slots: {line!r}"[:200])
    owned.sort(key=lambda slots: slots.first)
    if any(one.last >= other.first for one, other in pairwise(owned)):
        raise ValueError("a slot has two primaries")
    primaries = len({slots.place for slots in owned})
    if primaries > PRIMARIES_MAX:
        raise ValueError(f"{primaries} primaries have slots: expected at most {PRIMARIES_MAX}")
    return SlotMap(epoch, tuple(owned), tuple(members)[:MEMBERS_MAX], frozenset(ids))


def _place(value: object, asked: Place) -> Place:
    """Return host and port of a member; an unknown host is that of the member that answered."""
    match value:
        case [bytes() | None as host, int() as port, *_] if 0 < port <= PORT_MAX:
            name = (host or b"").decode()
            return (asked[0] if name in ("", "?") else name), port
    raise ValueError(f"no place of a member: {value!r}"[:200])


@dataclass(frozen=True, slots=True)
class Redirection:
    """A member's answer about keys that it has not, or not all of: `word` is MOVED, ASK or TRYAGAIN.

    `slot` is theirs, which TRYAGAIN does not say.
    """

    word: str
    place: Place = ("", 0)
    slot: int | None = None


def read_redirection(message: str, asked: Place) -> Redirection | None:
    """Return the redirection in an error message; None if it is another error."""
    word, _, rest = message.partition(" ")
    if word == "TRYAGAIN":
        return Redirection(word)
    if word not in ("MOVED", "ASK"):
        return None
    slot, _, where = rest.partition(" ")
    host, _, port = where.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) <= PORT_MAX or not slot.isdecimal():
        return None
    place = asked[0] if host in ("", "?") else host.strip("[]"), int(port)
    return Redirection(word, place, int(slot))
