"""Redis that speaks TLS alone and wants a certificate of everybody: a cluster, and what sentinels watch.

Debian's builds, since the embedded ones speak no TLS. Certificates have the name `localhost` alone, so it is
by that name that members are announced. Files are replaced where they are, as secrets are.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import redis
import trustme

from tests.certificates import write
from tests.conftest import ANSWER_S_MAX, STOP_S_MAX, ValkeyServer, free_port
from tests.deploy.programs import program
from tests.valkey_cluster import Member, ValkeyCluster
from tests.waiting import wait_until

NAME = "localhost"
PRIMARY = "main"
DOWN_AFTER_MS = 1000


def redis_server() -> str:
    """Debian's Redis; the test is skipped where there is none to be had."""
    return program("redis-server", "redis-server", "redis-tools", "libjemalloc2", "liblzf1")


class Files:
    """A certificate, its key and whom its owner trusts, as files; one authority has signed them."""

    def __init__(self, folder: Path) -> None:
        self.authority, self.certificate, self.key = (
            folder / f"{name}.pem" for name in ("ca", "cert", "key")
        )

    def put(self, signer: trustme.CA, *trusted: trustme.CA) -> None:
        """Replace certificate and key, and trust these."""
        made = signer.issue_cert(NAME)
        write(self.key, made.private_key_pem.bytes())
        write(self.certificate, b"".join(each.bytes() for each in made.cert_chain_pems))
        self.trust(*trusted)

    def trust(self, *trusted: trustme.CA) -> None:
        """Trust these and nobody else."""
        write(self.authority, b"".join(one.cert_pem.bytes() for one in trusted))

    @property
    def options(self) -> tuple[str, ...]:
        """As options of a server."""
        found = {"cert-file": self.certificate, "key-file": self.key, "ca-cert-file": self.authority}
        return tuple(word for name, value in found.items() for word in (f"--tls-{name}", str(value)))

    @property
    def environ(self) -> dict[str, str]:
        """As settings of ours."""
        found = {"CA": self.authority, "CERT": self.certificate, "KEY": self.key}
        return {f"TOLLKEEPER_REDIS_{name}_FILE": str(value) for name, value in found.items()}


class Secured(ValkeyServer):
    """What makes a server speak TLS alone. Set before it is made: `files`, of all servers of a test."""

    files: Files

    def program(self) -> tuple[str, ...]:
        return (
            redis_server(), "--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "yes",
            "--tls-replication", "yes", *self.files.options,
        )  # fmt: skip

    def connect(self) -> redis.Redis:
        return client_of(self.port, self.files)


def client_of(port: int, files: Files) -> redis.Redis:
    """A client with the servers' own certificate, which verifies theirs."""
    return redis.Redis(
        host=NAME, port=port, socket_timeout=ANSWER_S_MAX, ssl=True, ssl_ca_certs=str(files.authority),
        ssl_certfile=str(files.certificate), ssl_keyfile=str(files.key),
    )  # fmt: skip


class SecuredMember(Secured, Member):
    """A server of a cluster."""

    def program(self) -> tuple[str, ...]:
        named = "--cluster-announce-hostname", NAME, "--cluster-preferred-endpoint-type", "hostname"
        return *super().program(), "--tls-cluster", "yes", *named

    def read_again(self) -> None:
        """Have it go by its files as they are now."""
        words = [word.removeprefix("--") for word in self.files.options]
        self.do("CONFIG SET", *words)


class SecuredCluster(ValkeyCluster):
    """Three primaries and a replica of each, which speak TLS to everybody and to each other."""

    scheme, host = "rediss+cluster", NAME

    def __init__(self, folder: Path, files: Files) -> None:
        self._kind = type("MemberOfThese", (SecuredMember,), {"files": files})
        super().__init__(folder)

    def member(self, folder: Path, node_timeout_ms: int, *options: str) -> Member:
        return self._kind(folder, node_timeout_ms, *options)

    def read_again(self) -> None:
        """Have all members go by their files as they are now."""
        for one in self.members:
            assert isinstance(one, SecuredMember)
            one.read_again()


class SecuredPair:
    """A primary, its replica, and the sentinel that watches them."""

    def __init__(self, folder: Path, files: Files) -> None:
        kind = type("ServerOfThese", (Secured,), {"files": files})
        folders = [folder / name for name in ("primary", "replica", "sentinel")]
        for one in folders:
            one.mkdir(parents=True)
        kept = "--appendonly", "yes", "--replica-announce-ip", NAME, "--repl-diskless-sync-delay", "0"
        self.primary: ValkeyServer = kind(folders[0], *kept)
        self.replica: ValkeyServer = kind(folders[1], *kept, "--replicaof", f"{NAME} {self.primary.port}")
        self.port, self._folder, self._files = free_port(), folders[2], files
        self._sentinel: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"rediss+sentinel://{NAME}:{self.port}/{PRIMARY}"

    def start(self) -> None:
        self.primary.start()
        self.replica.start()
        options = [word.removeprefix("--") for word in self._files.options]
        lines = [
            "port 0", f"tls-port {self.port}", "bind 127.0.0.1", f"dir {self._folder}", "tls-replication yes",
            "tls-auth-clients yes", *(f"{a} {b}" for a, b in zip(options[::2], options[1::2], strict=True)),
            "sentinel resolve-hostnames yes", "sentinel announce-hostnames yes",
            f"sentinel monitor {PRIMARY} {NAME} {self.primary.port} 1",
            f"sentinel down-after-milliseconds {PRIMARY} {DOWN_AFTER_MS}",
        ]  # fmt: skip
        config = self._folder / "sentinel.conf"
        config.write_text("\n".join(lines) + "\n")
        command = [redis_server(), str(config), "--sentinel"]
        self._sentinel = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(self._sees_the_replica)

    def _sees_the_replica(self) -> bool:
        try:
            with client_of(self.port, self._files) as client:
                found = client.sentinel_slaves(PRIMARY)
        except redis.RedisError:
            return False
        return [(one["port"], one["master-link-status"]) for one in found] == [(self.replica.port, "ok")]

    def stop(self) -> None:
        if self._sentinel is not None:
            self._sentinel.terminate()
            self._sentinel.wait(STOP_S_MAX)
        for one in (self.primary, self.replica):
            one.stop()
