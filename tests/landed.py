"""Migrations that have landed, frozen by a digest: `landed.txt` has a line of each, oldest first.

A database that ran one never runs it again, so a change of it would reach new databases alone.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from tests.tree import ROOT

MIGRATIONS = ROOT / "persistence" / "schema" / "migrations"
LANDED = MIGRATIONS / "landed.txt"


def parts(migrations: Path = MIGRATIONS) -> dict[str, list[Path]]:
    """The files of each migration by its version: its module, then the SQL in its folder."""
    found = {}
    for module in sorted((migrations / "versions").glob("v????_*.py")):
        version = module.name[1:5]
        folder = migrations / f"v{version}"
        found[version] = [module, *sorted(path for path in folder.rglob("*") if path.is_file())]
    return found


def digest(files: list[Path], migrations: Path = MIGRATIONS) -> str:
    """Of their names and contents."""
    whole = sha256()
    for path in files:
        name, content = path.relative_to(migrations).as_posix().encode(), path.read_bytes()
        whole.update(b"%d %b %d %b" % (len(name), name, len(content), content))
    return whole.hexdigest()


def digests(migrations: Path = MIGRATIONS) -> dict[str, str]:
    return {version: digest(files, migrations) for version, files in parts(migrations).items()}


def frozen(landed: Path = LANDED) -> dict[str, str]:
    return dict(line.split() for line in landed.read_text().splitlines())  # type: ignore[misc]  # two words


def wrong(now: dict[str, str], frozen_: dict[str, str]) -> list[str]:
    """What is to be done about it, a line each: the newest one alone may still be without a line."""
    gone = [f"{one} has landed and is gone" for one in frozen_ if one not in now]
    changed = [
        f"{one} has landed and was changed: undo that, and add a migration"
        for one, digest_ in frozen_.items()
        if now.get(one, digest_) != digest_
    ]
    older = [one for one in list(now)[:-1] if one not in frozen_]
    missing = [f"add this line to landed.txt: {one} {now[one]}" for one in older]
    return gone + changed + missing


if __name__ == "__main__":
    LANDED.write_text("".join(f"{version} {one}\n" for version, one in digests().items()))
