"""What `up` is asked to do, and what it runs for that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway.background.flushing.share import HELD_S
from gateway.run.schema import admit_writer, migrate
from gateway.run.serving import command
from gateway.settings.settings import Settings

# So long a keeper is still listed that was killed; with room.
LISTED_S = HELD_S + 1.0


def _migrate(url: str) -> object:
    return migrate(url, wait_s=LISTED_S)


@dataclass(frozen=True, slots=True)
class Options:
    """What a person asked for. Empty URLs mean "embedded", of the owner "the same"; port 0 is any free one.

    `demo_upstream` starts one unless `upstream` is given, the base URL of every upstream. `command` makes
    the command line of a process of ours; `migrate` and `admit_writer` block, and may raise anything.
    `read` reads the settings again, for secrets that change.
    """

    settings: Settings
    upstream: str
    demo: bool
    demo_upstream: bool
    command: Callable[..., tuple[str, ...]] = command
    migrate: Callable[[str], object] = _migrate
    admit_writer: Callable[[str, str], str] = admit_writer
    read: Callable[[], Settings] | None = None
