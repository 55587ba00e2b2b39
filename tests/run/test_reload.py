"""Credentials of upstreams are in force once their files change; the rest of a configuration stays."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from pathlib import Path

from gateway.run.reload import Renewal, watch_credentials
from gateway.settings.settings import load
from tests.waiting import eventually

CONFIG = """
settings: {body_bytes_max: %d}
upstreams:
  s: {base_url: "https://s.example", headers: {x-key: "${KEY}"}}
"""
PEPPER = "TOLLKEEPER_KEY_PEPPER_FILE"


def replaced(path: Path, content: bytes) -> None:
    """Put another file there, as secrets are replaced: it is there whole or not at all."""
    path.with_name("new").write_bytes(content)
    path.with_name("new").replace(path)


def changed_in_place(path: Path, content: bytes, *, seen: bool) -> None:
    """Write as many bytes over those of a file; it looks as before unless that is to be `seen`."""
    before = path.stat().st_mtime_ns
    with path.open("r+b") as file:
        file.write(content)
    if not seen:
        os.utime(path, ns=(before, before))


class Watching:
    """A renewal that is watched, what is handed on, and what is said."""

    def __init__(self, folder: Path) -> None:
        self.key, self.pepper, self.config = folder / "key", folder / "pepper", folder / "c.yaml"
        self.key.write_text("one")
        self.pepper.write_text("p" * 16)
        self.config.write_text(CONFIG % 2048)
        environ = {"KEY_FILE": str(self.key), PEPPER: str(self.pepper)}
        read = partial(load, environ, self.config)
        self.now = Renewal(read(), read)
        self.sent: list[str] = []
        self.said: list[str] = []
        self.warned: list[str] = []

    async def taken(self) -> None:
        (one,) = (dict(each.headers) for each in self.now.running.upstreams if each.name == "s")
        self.sent.append(one["x-key"])

    async def watch(self) -> None:
        await watch_credentials(self.now, self.taken, self.said.append, self.warned.append, look_s=0.01)


async def test_a_new_credential_is_handed_on_and_nothing_else_is(tmp_path: Path) -> None:
    one = Watching(tmp_path)
    watching = asyncio.create_task(one.watch())
    one.config.write_text(CONFIG % 4096)  # not asked to read it again
    replaced(one.key, b"two-two")
    await eventually(lambda: one.sent == ["two-two"])
    assert one.said == ["files of secrets read again: credentials of upstreams changed: s"]
    assert one.now.running.http.body_bytes_max == 2048

    replaced(one.key, b"\0")
    await eventually(lambda: one.warned)
    assert one.warned == [
        f"secrets are kept as they were: KEY_FILE={str(one.key)!r} holds a NUL byte: expected text"
    ]
    assert one.sent == ["two-two"]

    replaced(one.key, b"three")
    await eventually(lambda: one.sent == ["two-two", "three"])
    replaced(one.pepper, b"q" * 17)
    await eventually(lambda: len(one.said) == 3)
    assert one.said[-1].endswith("a restart is needed for TOLLKEEPER_KEY_PEPPER")
    assert one.now.running.key_pepper == "p" * 16
    watching.cancel()
