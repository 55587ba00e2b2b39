"""A configuration is in force once its file changes, all or nothing; of files of secrets, those alone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest

from gateway.core.issuers import Issuer, SignIn
from gateway.http.server.server import DataPlane
from gateway.issuers.callers import TokenCallers
from gateway.local.demo.seed import DEMO_SELLER
from gateway.run.gateway_worker import GatewayPort, take_worker_slot
from gateway.run.letterhead import letterhead
from gateway.run.reload import KEEPERS_RENEWABLE, Renewal, SettingsListener, keep_renewing, watch_credentials
from gateway.run.supervisor import _complete_settings, renewal_of
from gateway.settings.settings import Settings, load, to_json
from tests.waiting import eventually, wait_until

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
        self.asked = asyncio.Event()
        self.told = SettingsListener(self.taken, self.said.append, self.warned.append)

    async def taken(self) -> None:
        (one,) = (dict(each.headers) for each in self.now.running.upstreams if each.name == "s")
        self.sent.append(one["x-key"])

    async def watch(self) -> None:
        await watch_credentials(self.now, self.told, look_s=0.01)

    async def renew(self) -> None:
        await keep_renewing(self.now, self.asked, self.told, look_s=0.01, again_s=0.02)


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


def swapped(folder: Path, number: int, text: str) -> None:
    """Have `folder/c.yaml` be another file, as Kubernetes does it: by a link to another directory."""
    data = folder / f"..{number}"
    data.mkdir()
    (data / "c.yaml").write_text(text)
    (folder / "..new").symlink_to(data.name)
    (folder / "..new").replace(folder / "..data")
    if not (folder / "c.yaml").is_symlink():
        (folder / "c.yaml").unlink()
        (folder / "c.yaml").symlink_to("..data/c.yaml")


async def test_a_changed_file_is_in_force_as_a_whole_and_a_wrong_one_is_not(tmp_path: Path) -> None:
    one = Watching(tmp_path)

    def body() -> int:
        return one.now.running.http.body_bytes_max

    watching = asyncio.create_task(one.renew())
    try:
        swapped(tmp_path, 1, CONFIG % 4096)
        await eventually(lambda: body() == 4096)
        assert one.said == ["settings read again: body_bytes_max changed"]
        assert one.sent == ["one"]

        swapped(tmp_path, 2, (CONFIG % 8192).replace("https", "gopher"))
        await eventually(lambda: one.now.wrong)
        assert one.now.snapshot() == {"configuration_stale": 1}
        one.asked.set()
        await eventually(lambda: len(one.warned) == 2)
        why = "upstreams.s.base_url: not a base URL such as https://api.example.com"
        assert one.warned == [f"settings are kept as they were: {why}"] * 2, "once by itself, and when asked"
        assert (body(), one.sent) == (4096, ["one"])

        (tmp_path / "..data").unlink()
        await eventually(lambda: len(one.warned) == 3)
        assert one.warned[-1].endswith("cannot be read (No such file or directory)")
        swapped(tmp_path, 3, CONFIG % 8192)
        await eventually(lambda: body() == 8192)
        assert (one.now.snapshot(), one.now.wrong) == ({"configuration_stale": 0}, "")
        assert len(one.said) == 2
    finally:
        watching.cancel()


async def test_a_pipe_in_its_place_is_told_and_what_comes_after_it_is_read(tmp_path: Path) -> None:
    one = Watching(tmp_path)
    watching = asyncio.create_task(one.renew())
    try:
        one.config.unlink()
        os.mkfifo(one.config)
        await eventually(lambda: one.now.wrong)
        assert one.now.wrong.endswith("cannot be read (no regular file)")
        assert one.now.snapshot() == {"configuration_stale": 1}
        replaced(one.config, (CONFIG % 4096).encode())
        await eventually(lambda: one.now.running.http.body_bytes_max == 4096)
        assert not one.now.wrong
    finally:
        watching.cancel()


async def test_what_was_wrong_elsewhere_is_tried_again_without_another_file(tmp_path: Path) -> None:
    one = Watching(tmp_path)
    one.key.unlink()
    one.config.write_text(CONFIG % 4096)
    watching = asyncio.create_task(one.renew())
    try:
        await eventually(lambda: one.now.wrong)
        one.key.write_text("two")
        await eventually(lambda: not one.now.wrong)
        assert one.sent == ["two"]
        assert one.said == ["settings read again: upstreams, body_bytes_max changed"]
    finally:
        watching.cancel()


async def test_a_file_that_says_the_same_is_no_news_unless_somebody_asks(tmp_path: Path) -> None:
    one = Watching(tmp_path)
    read = 0

    def counted() -> Settings:
        nonlocal read
        read += 1
        return load({"KEY_FILE": str(one.key), PEPPER: str(one.pepper)}, one.config)

    one.now = Renewal(one.now.running, counted)
    watching = asyncio.create_task(one.renew())
    try:
        await eventually(lambda: read == 1)  # it may have changed before it was looked at
        replaced(one.config, (CONFIG % 2048).encode())
        await eventually(lambda: read == 2)
        assert (one.said, one.sent) == ([], [])
        one.asked.set()
        await eventually(lambda: one.said == ["settings read again: nothing changed"])
        assert one.sent == []
    finally:
        watching.cancel()


async def test_who_we_are_at_a_server_is_asked_of_its_file_and_needs_no_restart(tmp_path: Path) -> None:
    url, said = tmp_path / "redis", "redis://app:%s@redis.test:6379/%d"
    url.write_text(said % ("one", 0))
    environ = {"TOLLKEEPER_REDIS_URL_FILE": str(url)}
    now = Renewal(load(environ), lambda: load(environ))
    asked = now.running.of_gateways.url_file("redis_url")
    url.write_text(said % ("two", 0))
    assert asked.url() == said % ("two", 0)
    assert now.take_credentials(load(environ)) == ""
    assert now.take(load(environ)) == (set(), "nothing changed")
    url.write_text(said % ("three", 1))
    assert asked.url() == said % ("two", 0)
    assert now.take_credentials(load(environ)) == "a restart is needed for TOLLKEEPER_REDIS_URL"
    assert now.take(load(environ))[1].endswith("a restart is needed for TOLLKEEPER_REDIS_URL")
    plain = {"TOLLKEEPER_REDIS_URL": said % ("four", 0)}
    assert now.take_credentials(load(plain)) == "a restart is needed for TOLLKEEPER_REDIS_URL"


def test_who_runs_everything_says_which_secrets_of_a_keeper_need_a_restart(tmp_path: Path) -> None:
    """A server's own URL too, but not where only who we are there is another."""
    place, mail = tmp_path / "database", tmp_path / "mail"
    database = "postgresql://app:%s@database.test/%s"
    place.write_text(database % ("one", "here"))
    environ = {"TOLLKEEPER_DATABASE_URL_FILE": str(place), "TOLLKEEPER_SMTP_FROM": "us@mail.test"}
    near = "redis://near.test"

    def read() -> Settings:
        secrets = {"admin_token": "a" * 16, "key_pepper": "p" * 16}
        return _complete_settings(
            load(environ), secrets=secrets, upstream_url="", proxies=None, redis_url=near,
            database_url="none", seller={},
        )  # fmt: skip

    now = renewal_of(read(), read)
    assert (now.running.redis_url, now.running.database_url) == (near, database % ("one", "here"))
    assert now.take_credentials(read()) == ""
    place.write_text(database % ("two", "here"))
    assert now.take_credentials(read()) == ""
    place.write_text(database % ("two", "there"))
    assert now.take_credentials(read()) == "a restart is needed for TOLLKEEPER_DATABASE_URL"
    place.write_text(database % ("two", "here"))
    mail.write_text("smtp://mail.test")
    environ["TOLLKEEPER_SMTP_URL_FILE"] = str(mail)
    assert now.take_credentials(read()) == "a restart is needed for TOLLKEEPER_SMTP_URL"


@pytest.mark.parametrize(("said", "sells"), [("", "Tollkeeper Demo"), ("Us Ltd", "Us Ltd")])
def test_beside_the_demo_organization_somebody_sells(said: str, sells: str) -> None:
    placed = _complete_settings(
        Settings(invoice_issuer=said), secrets={"admin_token": "a" * 16, "key_pepper": "p" * 16},
        upstream_url="", proxies=None, redis_url="none", database_url="none", seller=DEMO_SELLER,
    )  # fmt: skip
    letter = letterhead(placed)
    assert letter.seller is not None
    assert (letter.seller.name, letter.seller.country) == (sells, None if said else "DE")


def test_each_process_takes_over_what_it_serves_by_and_says_nothing_of_the_others() -> None:
    running, provider = Settings(), SignIn("https://console.example")
    written = running.with_values(sign_in=provider, cors_origins="*", log_level="debug")
    of_gateway, of_keeper = Renewal(running, Settings), Renewal(running, Settings, KEEPERS_RENEWABLE)
    assert of_gateway.take(written)[1] == "log_level, cors_origins changed"
    assert of_keeper.take(written)[1] == "log_level, sign_in changed"
    assert (of_gateway.running.sign_in, of_keeper.running.cors_origins) == (SignIn(), "")


# --- gateway port -----------------------------------------------------------------------
# Settings that a worker is told while it serves.


ISSUER = Issuer("https://issuer.example", ("us",))


class _Plane:
    """A data plane that cannot serve by what it is told; it knows whether it accepts tokens."""

    def __init__(self) -> None:
        self.wrong = True
        self.accepts_tokens = False

    def renew(self, *_: object, accepts_tokens: bool, **__: object) -> None:
        """As `DataPlane.renew`."""
        if self.wrong:
            raise LookupError("sk-secret")
        self.accepts_tokens = accepts_tokens


class _Tokens:
    """Callers behind tokens, who know their issuers."""

    def __init__(self) -> None:
        self.issuers: tuple[Issuer, ...] = ()

    def renew(self, issuers: tuple[Issuer, ...]) -> None:
        """As `TokenCallers.renew`."""
        self.issuers = issuers


async def test_settings_that_cannot_be_served_by_are_told_and_all_of_those_before_stay() -> None:
    settings, plane, tokens, said = load({}), _Plane(), _Tokens(), list[str]()
    wanted = to_json(settings.with_values(issuers=(ISSUER,)))

    def log(event: str, **facts: Any) -> None:
        said.append(f"{event} {facts}")

    port = GatewayPort(settings, cast("DataPlane", plane), cast("TokenCallers", tokens), log)
    assert not port.sent.is_stale
    port.sent.hear(wanted)
    assert port.sent.is_stale
    kept = "settings cannot be served by, and are kept as they were"
    assert said == [f"{kept} {{'error': 'LookupError', 'level': 'error'}}"]
    assert (plane.accepts_tokens, tokens.issuers) == (False, ())
    port.sent.hear(b"{")
    assert port.sent.is_stale
    plane.wrong = False
    port.sent.hear(wanted)
    assert not port.sent.is_stale
    assert (plane.accepts_tokens, tokens.issuers) == (True, (ISSUER,))


# --- worker slot ------------------------------------------------------------------------
# A worker's slot is nobody else's while it lives, and its successor's afterwards.


TAKE = """
import os, pathlib, signal, sys
from gateway.run.gateway_worker import take_worker_slot
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for directory in sys.stdin:
    if os.fork() == 0:
        print(os.getpid(), take_worker_slot(pathlib.Path(directory.strip())), flush=True)
        signal.pause()
"""
Sit = Callable[[Path], tuple[int, UUID]]


@pytest.fixture(scope="module")
def sit() -> Iterator[Sit]:
    """Have another process take a slot of a directory: its id, and the slot. The code is loaded once."""
    words = [sys.executable, "-c", TAKE]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as loaded:
        assert loaded.stdin is not None
        assert loaded.stdout is not None
        sent, told = loaded.stdin, loaded.stdout

        def take(directory: Path) -> tuple[int, UUID]:
            print(directory, file=sent, flush=True)
            process, worker_slot = told.readline().split()
            return int(process), UUID(worker_slot)

        yield take


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{process}").exists())


def test_a_slot_is_taken_once_and_found_again_after_a_kill(tmp_path: Path, sit: Sit) -> None:
    first, its = sit(tmp_path / "worker_slots")
    second, other = sit(tmp_path / "worker_slots")
    assert its != other
    kill(first)
    third, again = sit(tmp_path / "worker_slots")
    assert again == its
    for process in (second, third):
        kill(process)


def test_a_slot_that_cannot_be_kept_is_a_slot_all_the_same(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no directory")
    assert take_worker_slot(blocked) != take_worker_slot(blocked)


def test_a_slot_that_was_half_written_is_made_anew(tmp_path: Path, sit: Sit) -> None:
    (tmp_path / "0").write_text("half of i")
    process, worker_slot = sit(tmp_path)
    assert (tmp_path / "0").read_text() == str(worker_slot)
    kill(process)
