"""PostgreSQL's own programs, of a server's major version: those of another write what it cannot read."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from gateway.errors import BackupFailed, StartError
from gateway.local.embedded import postgres

# Where systems keep several versions beside each other: Debian, Red Hat, Homebrew, Alpine.
PLACES = (
    "/usr/lib/postgresql/{}/bin", "/usr/pgsql-{}/bin", "/opt/homebrew/opt/postgresql@{}/bin",
    "/usr/libexec/postgresql{}",
)  # fmt: skip
ANSWER_S_MAX = 20.0
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)")


def major_of(server_version: str) -> int:
    """The major version of a server: 15 of `15.18 (Debian 15.18-1)`."""
    return int(re.split(r"\D", server_version, maxsplit=1)[0] or 0)


def program(name: str, major: int, places: Sequence[str] = PLACES) -> str:
    """Where a program of this major version is; `BackupFailed` says which ones are there instead."""
    seen: list[int] = []
    for path in _candidates(name, major, places):
        found = _version_of(path)
        if found == major:
            return str(path)
        if found:
            seen.append(found)
    there = f", and not {', '.join(map(str, sorted(set(seen))))}" if seen else ""
    said = f"{name} {major} is needed, as the server is{there}"
    raise BackupFailed(f"{said}: install the client programs of PostgreSQL {major}")


def _candidates(name: str, major: int, places: Sequence[str]) -> Iterator[Path]:
    for place in places:
        yield Path(place.format(major)) / name
    on_path = shutil.which(name)
    if on_path is not None:
        yield Path(on_path)
    try:
        yield postgres.binaries() / name
    except StartError:
        return


def _version_of(path: Path) -> int:
    """The major version a program says it has; 0 where it is not there or says none."""
    try:
        said = subprocess.run(  # noqa: S603  # a program of PostgreSQL, by its place
            [str(path), "--version"], capture_output=True, text=True, timeout=ANSWER_S_MAX, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    found = _VERSION.search(said.stdout)
    return int(found[1]) if found else 0
