"""Who we are at Redis goes by the file of its URL as it is when a connection is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gateway.core.wait import in_task
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.errors import CountersUnavailable
from gateway.files import UrlFile
from tests.conftest import ValkeyServer
from tests.counters.conftest import Connect
from tests.waiting import eventually


async def ask(wire: RedisConnection, *parts: bytes) -> Reply:
    return await in_task(wire.send(encode(*parts)))


async def test_a_password_is_read_again_from_the_file_of_its_url(
    own_valkey: Callable[..., ValkeyServer], connect: Connect, tmp_path: Path
) -> None:
    server, path = own_valkey(), tmp_path / "url"
    with server.connect() as admin:

        def rotate(password: str) -> None:
            path.write_text(server.url.replace("//", f"//app:{password}@"))
            admin.execute_command("ACL", "SETUSER", "app", "on", "allcommands", "allkeys", f">{password}")

        rotate("one")
        address = parse_url(UrlFile(path.read_text(), str(path)))
        wire = await connect(address)
        assert await ask(wire, b"ACL", b"WHOAMI") == b"app"
        rotate("two")
        admin.execute_command("ACL", "SETUSER", "app", "<one")
        assert await ask(wire, b"PING") == b"PONG"
        admin.execute_command("CLIENT", "KILL", "TYPE", "normal")

        async def is_app() -> bool:
            try:
                return bool(await ask(wire, b"ACL", b"WHOAMI") == b"app")
            except CountersUnavailable:
                return False

        await eventually(is_app)


def test_sentinels_and_members_are_asked_as_whom_the_file_names(tmp_path: Path) -> None:
    path = tmp_path / "url"
    for url in ("redis+sentinel://a:%s@h:1,i:2/main?username=s&password=%s", "redis+cluster://a:%s@h:1,i:2"):
        here = url.count("%s")
        path.write_text(url % (("new",) * here))
        address = parse_url(UrlFile(url % (("old",) * here), str(path))).now()
        assert (address.username, address.password) == ("a", "new")
        theirs = ("s", "new") if here == 2 else ("", "")
        assert (address.sentinel_username, address.sentinel_password) == theirs
        assert address == parse_url(url % (("new",) * here))
