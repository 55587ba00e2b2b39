"""What `up` is asked to do, what it found, and what it runs without knowing it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """What a person asked for. Empty URLs mean "embedded", of the owner "the same"; port 0 is any free one.

    `demo_upstream` starts one unless `upstream` is given; `grace_s` is how long a gateway may
    take to finish its calls.
    """

    data_dir: Path
    gateway_host: str
    gateway_port: int
    admin_host: str
    admin_port: int
    workers: int
    redis_url: str
    database_url: str
    upstream: str
    admin_token: str
    readonly_token: str
    key_pepper: str
    demo: bool
    demo_upstream: bool
    grace_s: float
    database_owner_url: str = ""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What the started parts are reached by, secrets included."""

    redis_url: str
    database_url: str
    upstream_url: str | None
    admin_token: str
    readonly_token: str
    key_pepper: str
    gateway_port: int
    admin_port: int
    data_dir: Path

    def __repr__(self) -> str:
        return f"Endpoints(gateway_port={self.gateway_port}, admin_port={self.admin_port})"


@dataclass(frozen=True, slots=True)
class Parts:
    """What `up` runs but does not know: command lines, the settings line, the schema and its users.

    `settings_line` is what a gateway worker or keeper reads first from its standard input.
    `prepare` loads what `migrate` needs while the databases start; both block, and `migrate` may
    raise anything. `admit_writer` gives the keeper's user of our own PostgreSQL a password, and
    answers the database's URL for it.
    """

    gateway: Sequence[str]
    keeper: Sequence[str]
    demo_upstream: Callable[[int], Sequence[str]]
    settings_line: Callable[[Endpoints], bytes]
    prepare: Callable[[], object]
    migrate: Callable[[str], object]
    admit_writer: Callable[[str, str], str] = lambda url, _: url
