"""Changes of keys that Redis tells on the connection they were asked for on.

They come as pushes of RESP 3 (https://valkey.io/topics/client-side-caching/, broadcasting mode), in the same
read as the answer to what is asked after a change, at the latest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

from gateway.counters.redis.greeting import Ask
from gateway.errors import CountersRefused

# The name that is told where anything may have changed.
ANYTHING = b""
# Of all wires of a process: no time of one has the number of another's.
_times = count(1)


class Hearing:
    """Of one wire: `listeners` are told the name of each key that changed and begins like one of `prefixes`,
    and ANYTHING where nobody knows what changed.

    `since` numbers the time from which they were told all of them; 0 while they are not.
    """

    __slots__ = ("listeners", "prefixes", "since")

    def __init__(self, prefixes: Sequence[bytes]) -> None:
        self.listeners: list[Callable[[bytes], None]] = []
        self.prefixes = prefixes
        self.since = 0

    async def begin(self, ask: Ask) -> None:
        """Ask for it on a new connection; a proxy may refuse, and a server whose user lacks the right."""
        if not self.prefixes:
            return
        wanted = [part for prefix in self.prefixes for part in (b"PREFIX", prefix)]
        try:
            await ask(b"HELLO", b"3")
            await ask(b"CLIENT", b"TRACKING", b"ON", b"BCAST", *wanted)
        except CountersRefused:
            return
        self.since = next(_times)
        self._tell(ANYTHING)

    def again(self) -> None:
        """What was heard until now says nothing of the data that is there."""
        if self.since:
            self.since = next(_times)
            self._tell(ANYTHING)

    def end(self) -> None:
        """The connection is lost."""
        self.since = 0

    def told(self, push: list[object]) -> None:
        """Pass the names on; where there are none, everything changed."""
        if push[0] != b"invalidate":
            return
        if not isinstance(push[1], list):
            self.again()
        else:
            for name in push[1]:
                self._tell(name)

    def _tell(self, name: bytes) -> None:
        for changed in self.listeners:
            changed(name)
