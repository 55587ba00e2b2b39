"""The name of every Redis key. Nothing else in the project spells one.

All keys of a partition share one hash tag, so a script that takes them runs on one hash slot. Identities,
owners of objects and terms stand in the slots of partitions too, and so does what is said of a server's whole
data: beside one of the partitions that it has, its anchor. What is left is of everybody, and asked for key by
key.
The catalogue with types, writers and lifetimes is in `lua/README.md`.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Callable
from hashlib import sha256

from gateway.core.model import PARTITIONS

CATALOGUE = "tk:catalogue"
# What the keeper that spoke last is.
KEEPERS = "tk:keepers"
# Which gateway workers and keepers run.
PROGRAMS = "tk:programs"
COOLING = "tk:cooling"
PRICES = "tk:prices"
PRICES_HEAD = "tk:prices:head"
REFUSED = "tk:refused"
# What the names of all identities begin with, and those of all terms: their changes are told.
IDENTITIES, TERMS = b"tk:id:", b"tk:org:"
# The same of what is said of servers' data: its name, and that all of it was verified.
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
    """Whom a credential stands for; the digest is hex HMAC-SHA-256."""
    return f"{IDENTITIES.decode()}{{p{partition_of_digest(digest):02d}}}:{digest}"


def object_owner(digest: str) -> str:
    """Whose an object of an upstream is; the digest of its id is hex."""
    return f"tk:{{p{partition_of_digest(digest):02d}}}:obj:{digest}"


def organization_terms(organization_id: int) -> str:
    """What services cost an organization and which it may use."""
    return f"{TERMS.decode()}{{p{partition_of(organization_id):02d}}}:{organization_id}"


def own_name(name: bytes) -> str:
    """What an identity or terms are called behind their slot: the digest, the organization's id."""
    return name.rpartition(b":")[2].decode(errors="replace")


def activity(bucket: int) -> str:
    """What tenants did within a few seconds, for people to look at."""
    return f"tk:busy:{bucket}"


def _of_server(name: str) -> Callable[[int], str]:
    return lambda anchor: f"tk:{name}:{{p{anchor:02d}}}"


def _of_partition(letter: str) -> Callable[[int], str]:
    return lambda partition: f"tk:{{p{partition:02d}}}:{letter}"


def _of_account(letter: str) -> Callable[[int, int], str]:
    return lambda partition, id_: f"tk:{{p{partition:02d}}}:{letter}:{id_}"


# By the anchor of a server: the name of its data's history, the promotion it is verified behind, the pulses
# of processes, the history under which all that it has was verified, what workers report.
history, promotion, pulses = map(_of_server, ("history", "promotion", "pulses"))
verified, workers = map(_of_server, ("verified", "workers"))
# By the partition: its marker, the holds by when they end, the outbox, how many movements wait apart by
# organization, settlements without a hold, and ids of control writes that are not in PostgreSQL.
marker, deadlines, outbox = _of_partition("m"), _of_partition("d"), _of_partition("x")
parked, late, control = _of_partition("w"), _of_partition("late"), _of_partition("g")
# By the partition and an API key's id: its state, and what it asked of its own usage lately.
key_state, bucket = _of_account("k"), _of_account("q")
tenant_state = _of_account("t")
# By the partition and an organization's id: its state, its movements that wait apart, digests of its objects.
organization_state, parked_entries, objects = _of_account("o"), _of_account("w"), _of_account("own")


def marked(partition: int) -> str:
    """How often the marker of a partition was written: its name begins like one that is told of."""
    return f"{HISTORIES.decode()}{{p{partition:02d}}}:m"


_MARKED = {marked(partition).encode(): partition for partition in range(PARTITIONS)}


def marked_partition(name: bytes) -> int | None:
    """The partition whose marker was written, where that is what a name tells."""
    return _MARKED.get(name)


def budget_account(partition: int, name: str) -> str:
    """An account of budgets, by its name (`gateway/core/accounts/budgets.py`)."""
    return f"tk:{{p{partition:02d}}}:b:{name}"


def each_accounts(partition: int, name: str) -> str:
    """Those accounts for each that are like this one; the part of its name before the colon names them."""
    return f"tk:{{p{partition:02d}}}:each:{name.partition(':')[0]}"


def user_state(partition: int, tenant_id: int, user: str) -> str:
    """State of a tenant's user; the caller's own id is hashed, since it is any string."""
    return f"tk:{{p{partition:02d}}}:u:{tenant_id}:{sha256(user.encode()).hexdigest()[:24]}"


def hold(partition: int, request_id: str) -> str:
    """The hold of one request."""
    return f"tk:{{p{partition:02d}}}:h:{request_id}"


def activation(partition: int, organization_id: int, service_id: int, *, in_money: bool = False) -> str:
    """What is kept of an organization's service; units that are money are counted apart."""
    return f"tk:{{p{partition:02d}}}:a:{organization_id}:{service_id}{':money' if in_money else ''}"
