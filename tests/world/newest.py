"""Play the newest releases of programs and clients, and print how they differ from the pinned ones.

pip and npm name these releases. Their packages are in `build/world/newest/`, and no page changes by them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from tests.world import page
from tests.world.clients import CLIENTS, Client
from tests.world.programs import PROGRAMS, Program, at_release, split_release

UNDER = "newest"
LOOK_S_MAX = 120.0
REASON_CHARS, WRONG_MAX = 200, 4
HEADS = ("Name", "Pinned", "Newest", "What differs")
HEAD = "## Newest releases beside the pinned ones\n\n"
Newest = Program | Client
Played = tuple[list[str], list[str]]  # what is wrong, and what differs


@dataclass(frozen=True)
class Outcome:
    """One line of the table; `fails` where the ledger is wrong, or where nothing could be played."""

    name: str
    pinned: str
    newest: str
    differences: list[str]
    fails: bool = False


def newest_package(package: str) -> str:
    """Return a package in the newest version that its registry has for this machine, if it is pinned."""
    name, _ = split_release(package)
    if not name:
        return package
    if "==" not in package:
        return f"{name}@{_asked(['npm', 'view', name, 'version']).strip()}"
    said = _asked([sys.executable, "-m", "pip", "index", "versions", name.partition("[")[0]])
    found = re.match(r"\S+ \((\S+)\)", said)
    assert found, said
    return f"{name}=={found[1]}"


def _asked(words: list[str]) -> str:
    return subprocess.run(words, check=True, timeout=LOOK_S_MAX, stdout=subprocess.PIPE, text=True).stdout


def report(
    names: Iterable[str], play: Callable[[Newest], Played], look: Callable[[str], str] = newest_package
) -> int:
    """Play these, print the table, add it to the summary of a workflow, and return the exit status.

    `look` returns a package in its newest version.
    """
    pinned = [PROGRAMS.get(name) or CLIENTS[name] for name in names]
    found = [_outcome(one, play, look) for one in pinned if isinstance(one, Client) or not one.before]
    lines = [
        f"| **{one.name}** | {one.pinned} | {one.newest} | {'<br>'.join(one.differences) or 'nothing'} |"
        for one in found
    ]
    table = HEAD + page.table(HEADS, lines)
    print(table)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a") as file:
            file.write(table)
    return 1 if any(one.fails for one in found) else 0


def _outcome(pinned: Newest, play: Callable[[Newest], Played], look: Callable[[str], str]) -> Outcome:
    """Return what came of one, where it is newer than the pinned one."""
    step, release = "not found", ""
    try:
        newest = newest_release(pinned, look)
        step, release = "not played", newest.version
        if release == pinned.version:
            return Outcome(pinned.name, pinned.version, release, ["is pinned"])
        print(f"{pinned.name}: playing {release}", file=sys.stderr, flush=True)
        wrong, differences = play(newest)
    except (subprocess.SubprocessError, AssertionError, OSError) as error:
        why = " ".join(str(error).split()).replace("|", "/")[-REASON_CHARS:]
        return Outcome(pinned.name, pinned.version, release, [f"**{step}**: {why}"], fails=True)
    told = [f"**WRONG** {one}" for one in wrong[:WRONG_MAX]]
    told += [f"**WRONG** {len(wrong) - WRONG_MAX} more"] if len(wrong) > WRONG_MAX else []
    told += differences
    return Outcome(pinned.name, pinned.version, release, told, fails=bool(wrong))


def remove_others(program: Program) -> None:
    """Remove the environments of other programs, of some gigabytes each: rows of them stay."""
    for folder in program.environment.parent.glob("*==*"):
        if folder != program.environment:
            shutil.rmtree(folder)


def newest_release(pinned: Newest, look: Callable[[str], str]) -> Newest:
    """Return the newest release of a program or client; what a program needs besides stays as it is."""
    if isinstance(pinned, Program):
        return at_release(pinned, split_release(look(pinned.packages[0]))[1], under=UNDER)
    more = tuple(map(look, pinned.more))
    return replace(pinned, package=look(pinned.package), more=more, under=UNDER)
