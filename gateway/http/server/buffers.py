"""Bytes a worker holds for ends that are slow: bodies not all here, answers not all taken.

What may be refused is asked for (`acquire`), what cannot be is only counted (`add`); while a worker, an
organization or a key has used its budget up, new calls are refused and what has begun goes on.
"""

from __future__ import annotations

from gateway.core.http_limits import HttpLimits
from gateway.core.model import Caller
from gateway.http.budget import Budget


class Buffers:
    """The budgets of one worker: all of it, an organization's part, a key's part of that.

    `pressed` is set while anybody may have to be refused, so that the usual call asks no further.
    `shed` counts what was refused. `heads` are bytes of heads that are not complete: nobody is known yet.
    """

    __slots__ = ("_head_free", "_heads_max", "_keys", "_organizations", "heads", "pressed", "shed")

    def __init__(self, limits: HttpLimits) -> None:
        self._organizations, self._keys = Budget(0, 0), Budget(0, 0)
        self.heads = self.shed = 0
        self.pressed = False
        self.renew(limits)

    def renew(self, limits: HttpLimits) -> None:
        """Go by these limits from now on; what is kept is kept."""
        organizations, keys, largest = self._organizations, self._keys, limits.body_bytes_max
        # The largest body must fit into every part.
        organizations.most = keys.most = max(limits.buffered_bytes_max, largest)
        organizations.each = max(largest, int(limits.buffered_bytes_max * limits.buffered_share))
        keys.each = max(largest, organizations.each // 2)
        self._heads_max, self._head_free = limits.heads_bytes_max, limits.head_free_bytes
        self._press()

    @property
    def used(self) -> int:
        """Bytes held now, heads apart."""
        return self._organizations.used

    def acquire(self, caller: Caller, size: int) -> bool:
        """Whether so many bytes more may be kept for a caller; then they are, until `release`."""
        organizations, keys = self._organizations, self._keys
        if organizations.allows(caller.organization_id, size) and keys.allows(caller.key_id, size):
            self.add(caller, size)
            return True
        self.shed += 1
        return False

    def add(self, caller: Caller, size: int) -> None:
        """So many bytes are kept for a caller already."""
        self._organizations.add(caller.organization_id, size)
        self._keys.add(caller.key_id, size)
        self._press()

    def release(self, caller: Caller, size: int) -> None:
        """So many bytes are kept no longer."""
        self._organizations.release(caller.organization_id, size)
        self._keys.release(caller.key_id, size)
        self._press()

    def sheds(self, caller: Caller) -> bool:
        """Whether a new call of this caller is to be refused."""
        if self.has_room(caller):
            return False
        self.shed += 1
        return True

    def has_room(self, caller: Caller) -> bool:
        """Whether this caller may have more."""
        return self._organizations.allows(caller.organization_id, 1) and self._keys.allows(caller.key_id, 1)

    def keep_head(self, size: int, before: int) -> int | None:
        """Keep a head of so many bytes, in place of those that counted before; how many count now.

        None where that is too much. What any connection may keep does not count: nobody can use it up.
        """
        counted = max(0, size - self._head_free)
        self.heads -= before
        if counted and self.heads + counted > self._heads_max:
            self.shed += 1
            return None
        self.heads += counted
        return counted

    def _press(self) -> None:
        self.pressed = self._organizations.used * 2 >= self._keys.each
