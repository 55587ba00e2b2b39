"""Redis that speaks TLS alone and wants a certificate of everybody: a cluster, and what sentinels watch.

Debian's builds, since the embedded ones speak no TLS. Certificates have the name `localhost` alone, so it is
by that name that members are announced. Files are replaced where they are, as secrets are.
"""

from __future__ import annotations

from pathlib import Path

import redis
import trustme

from tests.certificates import write
from tests.conftest import ANSWER_S_MAX, ValkeyServer
from tests.deploy.programs import redis_server
from tests.sentinel_pair import SentinelPair
from tests.valkey_cluster import Member, ValkeyCluster

NAME = "localhost"


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


class SecuredPair(SentinelPair):
    """A primary, its replica, and the sentinel that watches them."""

    scheme, host = "rediss+sentinel", NAME

    def __init__(self, folder: Path, files: Files) -> None:
        self._files = files
        self._kind = type("ServerOfThese", (Secured,), {"files": files})
        super().__init__(folder)

    def server(self, folder: Path, *options: str) -> ValkeyServer:
        return self._kind(folder, *options)

    def program(self) -> str:
        return redis_server()

    def lines(self) -> list[str]:
        named = [word.removeprefix("--") for word in self._files.options]
        return [
            "port 0", f"tls-port {self.port}", "tls-replication yes", "tls-auth-clients yes",
            *(f"{name} {value}" for name, value in zip(named[::2], named[1::2], strict=True)),
            "sentinel resolve-hostnames yes", "sentinel announce-hostnames yes",
        ]  # fmt: skip

    def connect(self) -> redis.Redis:
        return client_of(self.port, self._files)
