"""The data directory of one `tollkeeper up`: its lock, its secrets, and files for other programs.

lock            locked by the running `up`
secrets.json    generated once, 0600: admin token, pepper, database passwords, demo key
up.json         0600: the address of the Admin API, for commands on this machine
pids.json       the current process ids, rewritten at each restart
processes.json  process ids with start times, to identify left-over processes for certain
redis/ redis-2/ … postgres/ metrics/ logs/ state/
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.errors import StartError

SECRET_BYTES = 24
GENERATED = ("admin_token", "key_pepper", "redis_password", "database_password", "writer_password")


@dataclass(frozen=True, slots=True)
class DataDirectory:
    path: Path

    @property
    def redis(self) -> Path:
        """The directory of Valkey's append-only file."""
        return self.path / "redis"

    def redis_folders(self, count: int) -> list[Path]:
        """Return the directories of so many Valkeys that share the data."""
        return [self.redis, *(self.path / f"{self.redis.name}-{number}" for number in range(2, count + 1))]

    @property
    def postgres(self) -> Path:
        return self.path / "postgres"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def secrets(self) -> dict[str, str]:
        """Return the secrets of this directory; missing ones are generated and stored."""
        kept = self.read("secrets.json")
        missing = [name for name in GENERATED if not kept.get(name)]
        if missing:
            kept |= {name: secrets.token_urlsafe(SECRET_BYTES) for name in missing}
            self.write("secrets.json", kept)
        return kept

    def remember(self, **values: str) -> None:
        self.write("secrets.json", self.read("secrets.json") | values)

    def read(self, name: str) -> dict[str, Any]:
        """Return the JSON object in a file of this directory; empty if there is none."""
        try:
            document = json.loads((self.path / name).read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise StartError(f"{self.path / name} cannot be read: {error}") from error
        if not isinstance(document, dict):
            raise StartError(f"{self.path / name} is not a JSON object")
        return document

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Replace the JSON object in a file of this directory, atomically, readable by its owner only."""
        descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=self.path)
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(content, file)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path / name)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def forget(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)


@contextmanager
def open_directory(path: Path) -> Iterator[DataDirectory]:
    """Create and lock a data directory; raise `StartError` if another `up` uses it."""
    path = path.absolute()
    # The unprivileged user of PostgreSQL needs to reach its cluster; secret files have mode 0600.
    mode = 0o711 if os.geteuid() == 0 else 0o700
    try:
        if not path.exists():
            path.mkdir(mode=mode, parents=True)
            path.chmod(mode)
        for name in ("redis", "metrics", "logs"):
            (path / name).mkdir(mode=0o700, exist_ok=True)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(f"the data directory {path} cannot be used: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StartError(
                f"the data directory {path} is in use by another `tollkeeper up` (process {_holder(lock)})"
            ) from error
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        yield DataDirectory(path)
    finally:
        os.close(lock)


def _holder(lock: int) -> str:
    return os.pread(lock, 20, 0).decode(errors="replace") or "unknown"


def known_values(path: Path, given: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that the last `up` stored in the data directory `path`, except those in `given`.

    `database_url` has the keeper's database user, `database_owner_url` the owner of the database.
    """
    data = DataDirectory(path.absolute())
    if not (data.path / "up.json").exists():
        return {}
    try:
        kept = {
            name: str(value or "")
            for name, value in (data.read("secrets.json") | data.read("up.json")).items()
        }
    except StartError:
        return {}
    if not given.get("database_url"):
        kept["database_owner_url"] = kept.get("database_url", "")
    kept["database_url"] = kept.get("keeper_database_url") or kept.get("database_url", "")
    wanted = ("redis_url", "database_url", "database_owner_url", "upstream_url", "admin_token", "key_pepper")
    return {name: kept[name] for name in wanted if kept.get(name) and not given.get(name)}
