"""What a meeting is: a program that stands beside Tollkeeper, how the two are played, and what was found.

A program of PyPI or npm has a place of its own in `build/clients`. All meetings of a run share one
Tollkeeper, which sends its usage feed and its webhooks to one receiver.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.journey.clients import node_with, python_with
from tests.journey.stack import Stack
from tests.journey.test_budget_alerts import Receiver
from tests.world.programs import HERE, split_release

if TYPE_CHECKING:
    from tests.world.meet_servers import Rule

RUN_S_MAX = 900.0
RIGHT, TO_SET, WRONG = "right", "what to set", "WRONG"


@dataclass
class MeetingCell:
    """What was done with a program, what was found, and the verdict."""

    done: str
    found: str
    verdict: str = RIGHT


def compared(done: str, found: object, wanted: object, words: str) -> MeetingCell:
    """Return a cell that is right if `found` is `wanted`; `words` say what that means."""
    return MeetingCell(done, words) if found == wanted else MeetingCell(done, f"{found!r}"[:300], WRONG)


@dataclass
class MeetingRow:
    """All cells of one program in one version."""

    name: str
    version: str
    date: str
    cells: list[MeetingCell] = field(default_factory=list)


@dataclass(frozen=True)
class Meeting:
    """One program: its packages with versions, and how it is played: by a function, or by rules of tests.

    `version` asks a program that has no such packages. `by_pip`: uv refuses them.
    """

    name: str
    play: Callable[[Lab], Iterator[MeetingCell]] | None
    packages: tuple[str, ...] = ()
    rules: Callable[[], Sequence[Rule]] = tuple
    version: Callable[[], str] | None = None
    by_pip: bool = False

    def seen_version(self) -> str:
        """Return the version, and where it is from."""
        if self.version is not None:
            return self.version()
        package = self.packages[0]
        name, version = split_release(package)
        return f"{version}, {name} of {'PyPI' if '==' in package else 'npm'}"


class Shared:
    """The Tollkeeper of a run, started when it is first asked for, and its receiver."""

    def __init__(self, folder: Path, ends: ExitStack) -> None:
        self._folder, self._ends = folder, ends

    @cached_property
    def receiver(self) -> Receiver:
        one = Receiver()
        self._ends.callback(one.server_close)
        self._ends.callback(one.shutdown)
        return one

    @cached_property
    def stack(self) -> Stack:
        settings = {"USAGE_FEED": "webhook", "USAGE_FEED_URL": f"{self.receiver.url}feed"}
        settings |= {"WEBHOOK_PRIVATE_ADDRESSES": "true"}
        one = Stack(self._folder / "data", **{f"TOLLKEEPER_{name}": said for name, said in settings.items()})
        self._ends.callback(one.stop)
        return one


class Lab:
    """What a meeting has: its packages, a folder of its own, and what is shared."""

    def __init__(self, meeting: Meeting, folder: Path, shared: Shared) -> None:
        self._meeting, self.folder, self._shared = meeting, folder, shared

    @cached_property
    def python(self) -> Path:
        """Return the interpreter that has the packages."""
        return python_with(*self._meeting.packages, by_pip=self._meeting.by_pip)

    @cached_property
    def node(self) -> Path:
        """Return the folder that has the packages of Node."""
        return node_with(*self._meeting.packages)

    @property
    def stack(self) -> Stack:
        return self._shared.stack

    @property
    def receiver(self) -> Receiver:
        return self._shared.receiver

    def bin(self, name: str) -> str:
        """Return the path of a command of the packages of Python."""
        return str(self.python.with_name(name))

    def run(self, *words: str, said: object = None, cwd: Path | None = None, well: bool = True) -> str:
        """Return what a program prints, with `said` as JSON on its standard input."""
        done = subprocess.run(
            words, input=json.dumps(said), cwd=cwd or self.folder, capture_output=True, text=True,
            check=False, timeout=RUN_S_MAX,
        )  # fmt: skip
        assert done.returncode == 0 or not well, f"{words[0]}: {done.stdout[-500:]} {done.stderr[-1500:]}"
        return done.stdout + done.stderr if not well else done.stdout

    def read_by(self, name: str, said: object) -> Any:
        """Return what a function of `meet_calls.py` makes of `said`, run by the packages' interpreter."""
        return json.loads(self.run(str(self.python), str(HERE / "meet_calls.py"), name, said=said))

    def read_by_node(self, name: str, said: object) -> Any:
        """Return what a function of `meet_calls.mjs` makes of `said`, beside the packages of Node."""
        script = self.node / "meet_calls.mjs"
        script.write_bytes((HERE / script.name).read_bytes())
        return json.loads(self.run("node", str(script), name, said=said))
