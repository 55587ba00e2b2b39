"""Redis and PostgreSQL as a careful operator runs them: TLS only, certificates of an own authority, users
that may do what Tollkeeper needs and nothing else. Debian's builds, since the embedded ones speak no TLS.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import redis
import trustme

from gateway.local.embedded.unprivileged import borrow
from tests.conftest import free_port
from tests.deploy.programs import program, redis_server, run
from tests.tree import ROOT
from tests.waiting import HUNG_S, wait_until

PASSWORD = "correct-horse"
USERS = ROOT / "deploy" / "users.acl"


def write_users(folder: Path, text: str = "") -> Path:
    """A file of users with passwords: those of deploy/users.acl, or of a text; and `test`, who may do all."""
    written = re.sub(r"\$\{REDIS_\w+_PASSWORD\}", PASSWORD, text or USERS.read_text())
    (file := folder / "users.acl").write_text(f"{written}user test on >test ~* &* +@all\n")
    return file


class Authority:
    """An authority of our own; certificates as PEM files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA()
        self._folder = folder
        self.file = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(str(self.file))

    def issue(self, name: str, *, days: float = 30.0) -> tuple[Path, Path]:
        """Certificate and key for localhost, valid for so many days from now (negative: ended)."""
        until = datetime.now(UTC) + timedelta(days=days)
        made = self._authority.issue_cert("localhost", not_before=until - timedelta(days=90), not_after=until)
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}-key.pem"
        certificate.write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))
        key.write_bytes(made.private_key_pem.bytes())
        key.chmod(0o600)
        return certificate, key


class SecuredRedis:
    """Redis that speaks TLS alone, with the users of deploy/users.acl."""

    def __init__(self, folder: Path, authority: Authority, *, clients: bool = False) -> None:
        folder.mkdir(exist_ok=True)
        self.port = free_port()
        self.url = f"rediss://tollkeeper-keeper:{PASSWORD}@localhost:{self.port}/0"
        self.gateway_url = f"rediss://tollkeeper-gateway:{PASSWORD}@localhost:{self.port}/0"
        self._folder = folder
        self._authority = authority
        self._clients = clients
        self._users = write_users(folder)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, days: float = 30.0) -> None:
        """Start with a certificate that is valid for so many days."""
        binary = redis_server()
        certificate, key = self._authority.issue("redis", days=days)
        options = {
            "port": "0", "tls-port": str(self.port), "bind": "127.0.0.1", "dir": str(self._folder),
            "tls-cert-file": str(certificate), "tls-key-file": str(key),
            "tls-ca-cert-file": str(self._authority.file),
            "tls-auth-clients": "yes" if self._clients else "no", "aclfile": str(self._users),
            "maxmemory": "64mb", "maxmemory-policy": "noeviction", "appendonly": "yes", "save": "",
        }  # fmt: skip
        command = [binary, *(word for name, value in options.items() for word in (f"--{name}", value))]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(self._answers)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def client(self) -> redis.Redis:
        """A connection of an all-powerful user, which verifies nothing."""
        certificate, key = self._authority.issue("test-client")
        return redis.Redis(
            port=self.port, username="test", password="test", ssl=True, ssl_cert_reqs="none",
            ssl_check_hostname=False, ssl_certfile=str(certificate), ssl_keyfile=str(key),
        )  # fmt: skip

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(HUNG_S)


class SecuredPostgres:
    """PostgreSQL that takes password users over TLS alone, with `clients` those with a certificate."""

    def __init__(self, folder: Path, authority: Authority, *, clients: bool = False) -> None:
        folder.mkdir(exist_ok=True)
        self.port = free_port()
        self._folder = folder
        self._authority = authority
        self._data = folder / "data"
        self._clients = clients
        installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
        where = ":".join(str(path) for path in installed)
        self._tools = {
            name: program(name, "postgresql-15", "libpq5", "libllvm14", places=where)
            for name in ("initdb", "postgres")
        }
        self._borrowed = borrow(None, [Path(path).resolve().parent for path in self._tools.values()])
        self.process: subprocess.Popen[bytes] | None = None
        self.url = (
            f"postgresql://postgres:{PASSWORD}@localhost:{self.port}/postgres"
            f"?sslmode=verify-full&sslrootcert={authority.file}"
        )

    def start(self, *, days: float = 30.0) -> None:
        """Start with a certificate that is valid for so many days."""
        command = self._borrowed.command if self._borrowed else list
        secret = self._folder / "password"
        secret.write_text(PASSWORD)
        self._own(self._folder, secret)
        if not self._data.exists():
            making = [self._tools["initdb"], "-D", str(self._data), "-U", "postgres", "-A", "scram-sha-256"]
            run(*command([*making, "-E", "UTF8", "--no-sync", "--pwfile", str(secret)]), cwd=self._folder)
            shown = " clientcert=verify-ca" if self._clients else ""
            (self._data / "pg_hba.conf").write_text(f"hostssl all all 127.0.0.1/32 scram-sha-256{shown}\n")
        certificate, key = self._authority.issue("postgres", days=days)
        for path in (certificate, key):
            shutil.copy(path, self._folder)
        certificate, key = self._folder / certificate.name, self._folder / key.name
        key.chmod(0o600)
        self._own(certificate, key)
        settings = {
            "port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": self._folder,
            "ssl": "on", "ssl_cert_file": certificate, "ssl_key_file": key, "fsync": "off",
            "log_min_messages": "fatal",
        }  # fmt: skip
        if self._clients:
            settings["ssl_ca_file"] = self._folder / shutil.copy(self._authority.file, self._folder)
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self.process = subprocess.Popen(
            command([self._tools["postgres"], "-D", str(self._data), *options]),
            cwd=self._folder, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(self._speaks_tls)
        # Its last line says when it has started up: until then it lets nobody in.
        wait_until(lambda: b"\nready" in (self._data / "postmaster.pid").read_bytes())

    def _own(self, *paths: Path) -> None:
        if self._borrowed:
            for path in paths:
                os.chown(path, self._borrowed.uid, self._borrowed.gid)

    def _speaks_tls(self) -> bool:
        try:
            with socket.create_connection(("localhost", self.port), 1) as probe:
                probe.sendall((8).to_bytes(4) + (80_877_103).to_bytes(4))
                return probe.recv(1) == b"S"
        except OSError:
            return False

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(HUNG_S)
