"""Groups: named sets of users, tenants, API keys or projects, and those that a call is in. Pure.

Gateways get hashes of members in one sorted table, so that a member of ten thousand is found by bisection, without
an object for each. A table is only as old as the terms that it came with.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from gateway.core.model import Caller

USER, TENANT, API_KEY, PROJECT = KINDS = ("user", "tenant", "api_key", "project")
# An id as text: of a member, or of a value of `each`.
ID: Final = re.compile(r"0|[1-9][0-9]{0,15}", re.ASCII)
# In the table besides: users whose sign-in named a claim of the group, for calls of their own keys.
OWN: Final = "own"
# Most members that a group has, and all groups of an organization have; most groups of an organization. Each
# gateway worker has those of the organizations that call.
MEMBERS_MAX: Final = 10_000
ORGANIZATION_MEMBERS_MAX: Final = 100_000
GROUPS_MAX: Final = 500
# A row of the table: the first bytes of a member's SHA-256, and the group's id (big-endian).
DIGEST_BYTES: Final = 12
ROW_BYTES: Final = DIGEST_BYTES + 8
# Callers of an organization whose groups a worker keeps.
CALLERS_MAX: Final = 1_024


@dataclass(frozen=True, slots=True)
class GroupTerms:
    """All groups of an organization: the `kinds` with members, the `table` of these, and groups by `claims`.

    The table has a row for each member of each group, sorted.
    """

    kinds: tuple[str, ...] = ()
    table: bytes = b""
    claims: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


NO_GROUPS: Final = GroupTerms()
Ids = tuple[int, ...]


def row_of(kind: str, member: str, group_id: int) -> bytes:
    """Return the row of a member in the table, as `persistence/keeper/definitions.py` makes it in SQL."""
    return _digest(kind, member) + group_id.to_bytes(8)


def members_of(terms: GroupTerms) -> Mapping[int, frozenset[object]]:
    """Return the members of groups by id: digests of the table's rows, and claims."""
    members = defaultdict[int, set[object]](set)
    for at in range(0, len(terms.table), ROW_BYTES):
        digest, group_id = _read_row(terms.table, at)
        members[group_id].add(digest)
    for claim, ids in terms.claims.items():
        for group_id in ids:
            members[group_id].add(claim)
    return {group_id: frozenset(its) for group_id, its in members.items()}


def _read_row(table: bytes, at: int) -> tuple[bytes, int]:
    """Return the digest of the member, and the group, in the row that begins at `at`."""
    return table[at : at + DIGEST_BYTES], int.from_bytes(table[at + DIGEST_BYTES : at + ROW_BYTES])


def _digest(kind: str, member: str) -> bytes:
    return hashlib.sha256(f"{kind}:{member}".encode("utf-8", "surrogatepass")).digest()[:DIGEST_BYTES]


class Groups:
    """The groups of an organization's callers, by its terms, with those found last."""

    __slots__ = ("_known", "_terms", "by_project")

    def __init__(self, terms: GroupTerms) -> None:
        self._terms = terms
        self._known: dict[tuple[int, int, str, int | None, tuple[str, ...]], Ids] = {}
        self.by_project = PROJECT in terms.kinds

    def of(self, caller: Caller, user: str, project_id: int | None) -> Ids:
        """Return the ids of the groups that a call is in, ascending.

        They are those of its user, tenant, key and project, and those that its caller's `claims`, or the sign-in of
        its key's own user, name.
        """
        name = caller.tenant_id, caller.key_id, user, project_id, caller.claims
        known = self._known.get(name)
        if known is None:
            known = self._find(caller, user, project_id)
            if len(self._known) >= CALLERS_MAX:
                del self._known[next(iter(self._known))]
            self._known[name] = known
        return known

    def __len__(self) -> int:
        return len(self._known)

    def _find(self, caller: Caller, user: str, project_id: int | None) -> Ids:
        """Return the groups that a caller is in, by claims and by each kind of member."""
        members = {
            USER: user, OWN: caller.user, TENANT: str(caller.tenant_id), API_KEY: str(caller.key_id),
            PROJECT: "" if project_id is None else str(project_id),
        }  # fmt: skip
        ids = {group for claim in caller.claims for group in self._terms.claims.get(claim, ())}
        for kind in self._terms.kinds:
            if members[kind]:
                ids.update(self._groups_of(_digest(kind, members[kind])))
        return tuple(sorted(ids))

    def _groups_of(self, digest: bytes) -> Iterable[int]:
        """Yield the groups of the member with this digest, by a binary search of the table."""
        table = self._terms.table
        rows = range(0, len(table), ROW_BYTES)
        place = bisect_left(rows, digest, key=lambda at: table[at : at + DIGEST_BYTES])
        for at in rows[place:]:
            member, group_id = _read_row(table, at)
            if member != digest:
                return
            yield group_id
