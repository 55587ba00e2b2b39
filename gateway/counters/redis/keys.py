"""The name of every Redis key. Nothing else in the project spells one.

All keys of a partition share one hash tag, so a script that takes them runs on one slot.
The catalogue with types, writers and lifetimes is in `lua/README.md`.
"""

from __future__ import annotations

from binascii import crc_hqx
from hashlib import sha256

from gateway.core.model import PARTITIONS

CATALOGUE = "tk:catalogue"
HISTORY = "tk:history"
PULSES = "tk:pulses"
VERIFIED = "tk:verified"
WORKERS = "tk:workers"


def partition_of(organization_id: int) -> int:
    """Partition of an organization, for ever: CRC16 (XMODEM) of its decimal id."""
    return crc_hqx(str(organization_id).encode(), 0) % PARTITIONS


def identity(digest: str) -> str:
    """Whom a credential stands for; the digest is hex HMAC-SHA-256."""
    return f"tk:id:{digest}"


def organization_terms(organization_id: int) -> str:
    """What services cost an organization and which it may use."""
    return f"tk:org:{organization_id}"


def activity(bucket: int) -> str:
    """What tenants did within a few seconds, for people to look at."""
    return f"tk:busy:{bucket}"


def marker(partition: int) -> str:
    """Run id, epoch and catalogue version the keeper verified the partition under."""
    return f"tk:{{p{partition:02d}}}:m"


def key_state(partition: int, key_id: int) -> str:
    """State of an API key."""
    return f"tk:{{p{partition:02d}}}:k:{key_id}"


def bucket(partition: int, key_id: int) -> str:
    """What an API key has asked of its own usage lately."""
    return f"tk:{{p{partition:02d}}}:q:{key_id}"


def user_state(partition: int, tenant_id: int, user: str) -> str:
    """State of a tenant's user; the caller's own id is hashed, since it is any string."""
    return f"tk:{{p{partition:02d}}}:u:{tenant_id}:{sha256(user.encode()).hexdigest()[:24]}"


def tenant_state(partition: int, tenant_id: int) -> str:
    """State of a tenant: limits and token account."""
    return f"tk:{{p{partition:02d}}}:t:{tenant_id}"


def organization_state(partition: int, organization_id: int) -> str:
    """State of an organization: limits, credit account, spend account."""
    return f"tk:{{p{partition:02d}}}:o:{organization_id}"


def hold(partition: int, request_id: str) -> str:
    """The hold of one request."""
    return f"tk:{{p{partition:02d}}}:h:{request_id}"


def deadlines(partition: int) -> str:
    """Sorted set of request ids by the time their hold ends."""
    return f"tk:{{p{partition:02d}}}:d"


def outbox(partition: int) -> str:
    """Stream of movements not yet in PostgreSQL."""
    return f"tk:{{p{partition:02d}}}:x"


def parked(partition: int) -> str:
    """Hash of how many movements wait behind accounts in quarantine, by organization."""
    return f"tk:{{p{partition:02d}}}:w"


def parked_entries(partition: int, organization_id: int) -> str:
    """Stream of an organization's movements that wait behind its accounts in quarantine."""
    return f"tk:{{p{partition:02d}}}:w:{organization_id}"


def late(partition: int) -> str:
    """Stream of settlements whose hold is unknown."""
    return f"tk:{{p{partition:02d}}}:late"


def activation(partition: int, organization_id: int, service_id: int) -> str:
    """One-Time state of an organization's service."""
    return f"tk:{{p{partition:02d}}}:a:{organization_id}:{service_id}"


def control(partition: int) -> str:
    """Hash of control-write ids applied here and not yet in PostgreSQL."""
    return f"tk:{{p{partition:02d}}}:g"


def objects(partition: int, organization_id: int) -> str:
    """Sorted set of an organization's stored objects: digests of their ids by when they are forgotten."""
    return f"tk:{{p{partition:02d}}}:own:{organization_id}"
