"""The tree as the tests of the rules read it: every text file of the project, once."""

from __future__ import annotations

import gc
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("gateway", "persistence", "lua", "tests", "docs", "deploy", ".ci")
PLACES_SHOWN_MAX = 20  # where none of them stands in a changed file
GENERATED = frozenset(
    {"requirements.lock", "requirements-dev.lock", "gateway/run/bundled_prices.json", "LICENSE"}
)


def files(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield the path and the place of each file of the project, without caches."""
    places = [path for path in root.iterdir() if path.is_file() and path.name != ".git"]  # as in a worktree
    for folder in FOLDERS:
        places += [path for path in (root / folder).rglob("*") if path.is_file()]
    for path in sorted(places):
        name = path.relative_to(root).as_posix()
        if "__pycache__" not in name:
            yield name, path


@cache
def texts() -> dict[str, str]:
    """Every text file of the project by its path, but for caches and what is generated."""
    found = {}
    for name, path in files(ROOT):
        if name not in GENERATED:
            with suppress(UnicodeDecodeError):
                found[name] = path.read_text(encoding="utf-8")
    return found


def named(*suffixes: str) -> list[str]:
    return [name for name in texts() if name.endswith(suffixes)]


@contextmanager
def without_collector() -> Iterator[None]:
    """Pause the collector of garbage, which would walk millions of nodes again and again, four fifths of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def changed_files(root: Path = ROOT) -> list[str]:
    """Return the files that differ from the last commit, new ones too."""
    command = ["git", "status", "--porcelain", "--untracked-files=all", "--no-renames"]
    status = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    return [line[3:] for line in status.splitlines()]


def at_most(most: int, places: Iterable[str], advice: str) -> None:
    """Fail where more than `most` places break a rule, and name those in files that differ from the last commit."""
    whole = sorted(places)
    changed = tuple(changed_files()) if len(whole) > most else ()
    shown = [place for place in whole if place.startswith(changed)] or whole[:PLACES_SHOWN_MAX]
    assert len(whole) <= most, f"{len(whole)} for {most} at most: {advice}\n" + "\n".join(shown)


def offenders(found: Iterable[str]) -> None:
    """Fail with every place that breaks the rule, one a line."""
    places = sorted(found)
    assert not places, "\n" + "\n".join(places)
