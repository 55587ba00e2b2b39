"""A primary, its replica and the sentinel that watches them: real servers on free ports."""

from __future__ import annotations

import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import redis

from tests.conftest import ANSWER_S_MAX, ValkeyServer, free_port, valkey_binary
from tests.waiting import HUNG_S, wait_until

PRIMARY = "main"
DOWN_AFTER_MS = 1000
# Twice this long no other failover is tried once one came to nothing. A sentinel begins one where the new
# primary is late with its first answer, and drops it when that comes. The default is three minutes.
FAILOVER_TIMEOUT_MS = 5000
# It finds out that who was the primary is back, and whose replica it has to be, within some ten seconds.


class SentinelPair:
    """Two servers, of which `primary` is the one by name until `struck` says otherwise."""

    scheme, host = "redis+sentinel", "127.0.0.1"

    def __init__(self, folder: Path) -> None:
        folders = [folder / name for name in ("primary", "replica", "sentinel")]
        for one in folders:
            one.mkdir(parents=True)
        kept = "--appendonly", "yes", "--replica-announce-ip", self.host, "--repl-diskless-sync-delay", "0"
        self.primary = self.server(folders[0], *kept)
        self.replica = self.server(folders[1], *kept, "--replicaof", f"{self.host} {self.primary.port}")
        self.port, self._folder = free_port(), folders[2]
        self._sentinel: subprocess.Popen[bytes] | None = None

    def server(self, folder: Path, *options: str) -> ValkeyServer:
        """One of the two; not started."""
        return ValkeyServer(folder, *options)

    def program(self) -> str:
        """What a sentinel is run by."""
        return str(valkey_binary())

    def lines(self) -> list[str]:
        """How a sentinel is reached."""
        return [f"port {self.port}"]

    def connect(self) -> redis.Redis:
        """A client of the sentinel."""
        return redis.Redis(port=self.port, socket_timeout=ANSWER_S_MAX)

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}/{PRIMARY}"

    def start(self) -> None:
        self.primary.start()
        self.replica.start()
        config = self._folder / "sentinel.conf"
        watched = [
            "bind 127.0.0.1", f"dir {self._folder}", "loglevel warning",
            f"sentinel monitor {PRIMARY} {self.host} {self.primary.port} 1",
            f"sentinel down-after-milliseconds {PRIMARY} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {PRIMARY} {FAILOVER_TIMEOUT_MS}",
        ]  # fmt: skip
        config.write_text("\n".join([*self.lines(), *watched]) + "\n")
        command = [self.program(), str(config), "--sentinel"]
        self._sentinel = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.wait_until_whole()

    def wait_until_whole(self) -> None:
        """Until the sentinel says that the replica follows."""
        wait_until(self._sees_the_replica, HUNG_S)

    def _sees_the_replica(self) -> bool:
        with suppress(redis.RedisError), self.connect() as client:
            found = client.sentinel_slaves(PRIMARY)
            return [(one["port"], one["master-link-status"]) for one in found] == [(self.replica.port, "ok")]
        return False

    def named(self) -> int:
        """The port of the primary that the sentinel names."""
        with self.connect() as client:
            return int(client.sentinel_get_master_addr_by_name(PRIMARY)[1])

    def mend(self) -> None:
        """Have who was struck come back as the replica of who took over."""
        self.primary, self.replica = self.replica, self.primary
        self.replica.start()
        self.wait_until_whole()

    def stop(self) -> None:
        if self._sentinel is not None:
            self._sentinel.terminate()
            self._sentinel.wait(HUNG_S)
        for one in (self.primary, self.replica):
            one.stop(signal.SIGKILL)
