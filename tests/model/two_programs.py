"""The scripts of another program beside those of now, and what differs in that which both know.

`python -m tests.model.two_programs TREE [--histories N] [--first SEED]` compares a tree of this version, with all that it has.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.conftest import ValkeyServer
from tests.model import script_player
from tests.tree import ROOT

STEPS = 30
# Names that the release before had for what has another name now.
RENAMED = {"raw_tokens": "budget_tokens", "weighed": "quota_tokens", "raw_held": "budget_tokens_held"}


class Program:
    """The scripts of one tree, and the python that plays histories on them in a process of its own."""

    def __init__(self, tree: Path, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", Path(script_player.__file__).read_text(), url],
            env=os.environ | {"PYTHONPATH": str(tree)}, cwd=tree,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, seed: int, *, looks: bool, is_newest: bool) -> None:
        """Have a history played; `answer` returns what came of it."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps([seed, STEPS, looks, is_newest]) + "\n")
        self._process.stdin.flush()

    def answer(self) -> list[Any]:
        assert self._process.stdout
        answer: list[Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        self._process.communicate()


class TwoPrograms:
    """Both, each in a database of one server; `is_newest` says that both have the features of this version."""

    def __init__(self, other: Path, url: str, *, is_newest: bool = False) -> None:
        base, self._is_newest = url.removesuffix("0"), is_newest
        self._programs = [Program(tree, f"{base}{at}") for at, tree in enumerate((other, ROOT), 1)]

    def play(self, seed: int, *, looks: bool = False) -> list[list[Any]]:
        """Return the steps of one history as both played it: what each answered, and what was stored."""
        for program in self._programs:
            program.ask(seed, looks=looks, is_newest=self._is_newest)
        return [program.answer() for program in self._programs]

    def compare(self, seeds: Iterable[int]) -> Iterator[tuple[str, Any]]:
        """Yield each verb with its answer; AssertionError at the first step that differs, with its seed."""
        for seed in seeds:
            old, new = self.play(seed)
            if any(differences(old, new)):
                for at, (before, now) in enumerate(zip(*self.play(seed, looks=True), strict=True)):
                    found = list(differences(before, now))
                    assert not found, f"seed {seed}, step {at}, {now[0]}\n" + "\n".join(found)
                raise AssertionError(f"seed {seed} differs in one of two runs alone")
            yield from ((verb, answer) for verb, answer, _ in new)

    def close(self) -> None:
        for program in self._programs:
            program.close()


def differences(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """Yield what differs between values of both: of rows only the fields that both have."""
    if isinstance(old, dict) and isinstance(new, dict):
        old = {RENAMED.get(name, name): value for name, value in old.items()}
        is_row = not any(":" in name for name in (*old, *new))
        for name in sorted(set(old) & set(new) if is_row else set(old) | set(new)):
            yield from differences(old.get(name), new.get(name), f"{place} {name}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for at, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, f"{place}[{at}]")
    elif old != new:
        yield f"{place}: {old} before, {new} now"


def main() -> None:
    """Compare many histories; print how many were equal."""
    parser = argparse.ArgumentParser(prog="tests.model.two_programs", description=__doc__)
    parser.add_argument("tree", type=Path)
    parser.add_argument("--histories", type=int, default=1_000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = ValkeyServer(Path(folder))
        server.start()
        try:
            programs = TwoPrograms(options.tree.resolve(), server.url, is_newest=True)
            steps = sum(1 for _ in programs.compare(range(options.first, options.first + options.histories)))
            programs.close()
        finally:
            server.stop()
    print(f"{options.histories} histories, {steps} steps: equal")


if __name__ == "__main__":
    main()
