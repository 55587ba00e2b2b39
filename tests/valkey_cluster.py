"""A real cluster: three primaries and a replica of each, made by hand: the wheel brings no valkey-cli.

Servers keep their data in folders of their own, so one that was killed comes back under its name. A shard
that is away leaves the others serving (`cluster-require-full-coverage no`).
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from redis.crc import key_slot

from gateway.core.model import PARTITIONS
from gateway.counters.redis import keys
from tests.conftest import ValkeyServer, free_port
from tests.waiting import wait_until

SHARDS = 3
SLOTS = 16_384
NODE_TIMEOUT_MS = 1000
# A primary waits so long for its replicas to know whose a slot is, which a busy machine takes.
SETSLOT_MS_MAX = 8_000


class Member(ValkeyServer):
    """One server of the cluster, and a client that asks it alone."""

    def __init__(self, folder: Path, node_timeout_ms: int, *options: str) -> None:
        folder.mkdir()
        bus = free_port()
        super().__init__(
            folder, *options, "--cluster-enabled", "yes", "--cluster-port", str(bus),
            "--cluster-node-timeout", str(node_timeout_ms), "--cluster-require-full-coverage", "no",
            "--cluster-allow-replica-migration", "no", "--cluster-replica-validity-factor", "0",
            "--repl-diskless-sync-delay", "0",
        )  # fmt: skip
        self.bus = bus
        self.announced, self.announced_bus = self.port, bus
        self.client = self.connect()
        self.id = ""

    def announce(self, port: int, bus: int, source: str) -> None:
        """Have others come to these ports, and go to them from an address of its own, once it starts."""
        self.announced, self.announced_bus = port, bus
        said = {"announce-ip": "127.0.0.1", "announce-port": str(port), "announce-bus-port": str(bus)}
        self.options += tuple(word for name, value in said.items() for word in (f"--cluster-{name}", value))
        self.options += ("--bind-source-addr", source)

    def do(self, *words: str | int | bytes) -> Any:
        """What the client has no name for, or reads too much into."""
        return self.client.execute_command(*words)  # type: ignore[no-untyped-call]  # untyped in redis-py

    @property
    def lives(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def info(self) -> dict[str, str]:
        """What it says of the cluster, and of its own part in it."""
        cluster: dict[str, str] = self.do("CLUSTER INFO")
        return cluster | {"role": str(self.client.info("replication")["role"])}


class ValkeyCluster:
    """Six servers: the first three begin as primaries, and a failover changes who is one."""

    scheme, host = "redis+cluster", "127.0.0.1"

    def __init__(self, folder: Path, node_timeout_ms: int = NODE_TIMEOUT_MS, *options: str) -> None:
        folders = [folder / f"member{number}" for number in range(2 * SHARDS)]
        self.members = [self.member(one, node_timeout_ms, *options) for one in folders]
        self.removed: list[Member] = []

    def member(self, folder: Path, node_timeout_ms: int, *options: str) -> Member:
        """One of its servers; not started."""
        return Member(folder, node_timeout_ms, *options)

    @property
    def primaries(self) -> list[Member]:
        """Who is a primary now, by its own word."""
        return [one for one in self.members if one.lives and one.info()["role"] == "master"]

    @property
    def url(self) -> str:
        """The address of all, as a setting has it."""
        return f"{self.scheme}://" + ",".join(f"{self.host}:{one.announced}" for one in self.members)

    def start(self) -> None:
        for one in self.members:
            one.start()
            one.id = one.do("CLUSTER MYID").decode()
        bounds = [SLOTS * number // SHARDS for number in range(SHARDS + 1)]
        for number, one in enumerate(self.members[:SHARDS]):
            one.do("CLUSTER SET-CONFIG-EPOCH", number + 1)
            one.do("CLUSTER ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
        for one in self.members[1:]:
            self.members[0].do("CLUSTER MEET", "127.0.0.1", one.announced, one.announced_bus)
        wait_until(lambda: all(self._knows_all(one) for one in self.members))
        for primary, replica in zip(self.members, self.members[SHARDS:], strict=False):
            replica.do("CLUSTER REPLICATE", primary.id)
        self.wait_until_whole()

    def _knows_all(self, one: Member) -> bool:
        return int(one.info()["cluster_known_nodes"]) == len(self.members)

    def wait_until_whole(self) -> None:
        """Until each slot has its primary, each primary its replica, and everybody says so."""
        wait_until(lambda: all(one.info()["cluster_state"] == "ok" for one in self.members))
        wait_until(lambda: all(map(self._has_its_part, self.members)))

    def _has_its_part(self, one: Member) -> bool:
        said = one.client.info("replication")
        if said["role"] == "master":
            return bool(said["connected_slaves"] >= 1 and said["slave0"]["state"] == "online")
        return bool(said["master_link_status"] == "up")

    def mend(self) -> None:
        """Have who was stopped come back, and everybody be whole again."""
        for one in self.members:
            if not one.lives:
                one.start()
        self.wait_until_whole()

    def empty(self) -> None:
        """Remove every key of every shard."""
        for one in self.primaries:
            one.client.flushall()
            one.do("FUNCTION FLUSH")

    def stop(self) -> None:
        for one in [*self.members, *self.removed]:
            one.client.close()
            one.stop(signal.SIGKILL)

    # --- who has what ---------------------------------------------------------------------

    def owner(self, partition: int) -> Member:
        """The primary that has a partition, by what most of those who live say."""
        said = [port for one in self.members if one.lives for port in _owners(one, slot_of(partition))]
        port = max(set(said), key=said.count)
        return next(one for one in self.members if one.announced == port)

    def replica_of(self, primary: Member) -> Member:
        """The replica of a primary."""
        living = (one for one in self.members if one.lives)
        (found,) = (
            one
            for one in living
            if int(one.client.info("replication").get("master_port", 0)) == primary.announced
        )
        return found

    def partitions_of(self, one: Member) -> list[int]:
        """The partitions that a server has as their primary, by its own word."""
        port = one.announced
        return [partition for partition in range(PARTITIONS) if port in _owners(one, slot_of(partition))]

    # --- moving slots -----------------------------------------------------------------------

    def move(self, partition: int, to: Member) -> None:
        """Move a partition's slot at once, as Valkey does from 9.0 on."""
        slot = slot_of(partition)
        self.owner(partition).do("CLUSTER MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", to.id)
        wait_until(lambda: all(self._says(one, partition, to) for one in self.members if one.lives))

    def remove(self, primary: Member, to: Member) -> None:
        """Move all slots of a primary at once, and have it and its replica forgotten as `del-node` does.

        Both go on, each alone and without slots.
        """
        leaving = [self.replica_of(primary), primary]
        for first, last in _ranges(primary):
            primary.do("CLUSTER MIGRATESLOTS", "SLOTSRANGE", first, last, "NODE", to.id)
        wait_until(lambda: not any(_ranges(one, primary) for one in self.members if one.lives))
        for one in leaving:
            self.members.remove(one)
            for other in self.members:
                other.do("CLUSTER FORGET", one.id)
            self.removed.append(one)
        for one in leaving:
            one.do("CLUSTER RESET")

    def begin_move(self, partition: int, to: Member) -> Callable[[int], bool]:
        """Begin to move a slot key by key, as any Redis does; what is answered moves so many keys more.

        It says whether that was all, and then the slot is the other's.
        """
        slot, source = slot_of(partition), self.owner(partition)
        to.do("CLUSTER SETSLOT", slot, "IMPORTING", source.id)
        source.do("CLUSTER SETSLOT", slot, "MIGRATING", to.id)

        def go_on(count: int) -> bool:
            names: Iterable[bytes] = source.do("CLUSTER GETKEYSINSLOT", slot, count)
            found = list(names)
            if found:
                source.do("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *found)
                return False
            for one in (to, source, *self.primaries):
                one.do("CLUSTER SETSLOT", slot, "NODE", to.id, "TIMEOUT", SETSLOT_MS_MAX)
            wait_until(lambda: all(self._says(one, partition, to) for one in self.members if one.lives))
            return True

        return go_on

    def open_slot(self, partition: int, to: Member) -> Callable[[], None]:
        """Begin to move a slot, move the first half of its keys by name, and stop there.

        What is answered moves them back, and closes the slot.
        """
        slot, source = slot_of(partition), self.owner(partition)
        self.begin_move(partition, to)
        names = sorted(source.do("CLUSTER GETKEYSINSLOT", slot, 10_000))
        moved = names[: (len(names) + 1) // 2]
        if moved:
            source.do("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *moved)

        def close() -> None:
            source.do("CLUSTER SETSLOT", slot, "STABLE")  # before that it takes no key that it has not
            if moved:
                to.do("MIGRATE", "127.0.0.1", source.port, "", 0, 5000, "REPLACE", "KEYS", *moved)
            to.do("CLUSTER SETSLOT", slot, "STABLE")

        return close

    def _says(self, one: Member, partition: int, owner: Member) -> bool:
        return _owners(one, slot_of(partition)) == [owner.announced]


def slot_of(partition: int) -> int:
    """The slot of a partition's keys, by redis-py."""
    return int(key_slot(keys.marker(partition).encode()))  # type: ignore[no-untyped-call]  # untyped in redis-py


def _ranges(one: Member, owner: Member | None = None) -> list[tuple[int, int]]:
    """Return the first and last slots of a primary's ranges, by what a server says: itself by default."""
    port = (owner or one).announced
    return [(int(first), int(last)) for first, last, (_, at, *_), *_ in one.do("CLUSTER SLOTS") if at == port]


def _owners(one: Member, slot: int) -> list[int]:
    """The announced port of the primary of a slot, by what a server says; none where it knows none."""
    found = one.do("CLUSTER SLOTS")
    return [int(primary[1]) for first, last, primary, *_ in found if first <= slot <= last]
