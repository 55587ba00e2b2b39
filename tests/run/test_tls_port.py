"""A port whose certificate changes: who is connected stays, who comes gets the new one."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from gateway.errors import SettingError
from gateway.run import supervisor
from gateway.run.health import Ops, listen
from gateway.run.tls_port import TlsPort
from gateway.settings.settings import Settings
from gateway.settings.tls_files import PREFIXES
from tests.certificates import authority_until, issued, trusting, write
from tests.run.test_reload import changed_in_place
from tests.tls_client import open_tls
from tests.waiting import eventually

OLD, NEW = trustme.CA(), trustme.CA()


def settings_of(folder: Path, authority: trustme.CA = OLD) -> Settings:
    files = issued(folder, authority)
    return Settings(ops_tls_cert_file=files.certificate, ops_tls_key_file=files.key)


async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
    return await reader.read()


async def test_a_new_certificate_is_for_new_connections_and_a_broken_one_for_none(tmp_path: Path) -> None:
    said: list[tuple[str, dict[str, Any]]] = []
    tls = TlsPort(
        settings_of(tmp_path), "ops", lambda event, **facts: said.append((event, facts)), look_s=0.01
    )

    async def dependencies() -> dict[str, bool]:
        return {}

    server = await listen(Ops(dependencies, lambda _: (b"", "")), "127.0.0.1", 0, wrapped=tls.wrapped)
    port = server.sockets[0].getsockname()[1]
    running = asyncio.create_task(tls.run())
    there = await open_tls(port, trusting(OLD))
    issued(tmp_path, NEW)  # key first, then the certificate: for a moment they are no pair

    async def shown() -> bool:
        try:
            _, writer = await open_tls(port, trusting(NEW))
        except ssl.SSLError:
            return False
        writer.close()
        return True

    await eventually(shown)
    assert (await asked(*there)).startswith(b"HTTP/1.1 200")
    write(tmp_path / "cert.pem", b"nothing")
    await eventually(lambda: tls.snapshot()["tls_certificate_stale"] == [["ops", 1]])
    assert said[-1][0] == "the certificate is kept as it was"
    assert "TOLLKEEPER_OPS_TLS_CERT_FILE" in said[-1][1]["why"]
    assert (await asked(*await open_tls(port, trusting(NEW)))).startswith(b"HTTP/1.1 200")
    issued(tmp_path, NEW)
    await eventually(lambda: tls.snapshot()["tls_certificate_stale"] == [["ops", 0]])
    ((peer, ends),) = tls.snapshot()["certificate_expiry_timestamp_seconds"]
    assert (peer, ends > 0) == ("ops port", True)
    running.cancel()
    server.close()


async def test_files_that_could_not_be_read_are_tried_again_though_they_look_the_same(tmp_path: Path) -> None:
    said: list[str] = []
    settings = settings_of(tmp_path)
    tls = TlsPort(settings, "ops", lambda event, **facts: said.append(event), look_s=0.01)
    running = asyncio.create_task(tls.run())
    key = Path(settings.ops_tls_key_file)
    good = key.read_bytes()
    changed_in_place(key, b"-" * len(good), seen=True)
    await eventually(lambda: said)
    changed_in_place(key, good, seen=False)
    await eventually(lambda: tls.snapshot()["tls_certificate_stale"] == [["ops", 0]])
    assert said == ["the certificate is kept as it was"]
    running.cancel()


async def test_a_certificate_that_has_ended_or_ends_soon_is_said_at_the_start_and_again(
    tmp_path: Path,
) -> None:
    said: list[tuple[str, dict[str, Any]]] = []
    now = datetime.now(UTC)
    files = issued(tmp_path, OLD, clients=OLD, ends=now - timedelta(days=1))
    write(Path(files.authority), authority_until(now + timedelta(days=13)))
    settings = Settings(
        ops_tls_cert_file=files.certificate, ops_tls_key_file=files.key,
        ops_tls_client_ca_file=files.authority,
    )  # fmt: skip
    tls = TlsPort(
        settings, "ops", lambda event, **facts: said.append((event, facts)), look_s=0.01, say_s=0.01
    )
    running = asyncio.create_task(tls.run())
    await eventually(lambda: len(said) >= 4)
    told = [(event, facts["setting"], facts["level"]) for event, facts in said[:4]]
    ended = ("a certificate has ended", "TOLLKEEPER_OPS_TLS_CERT_FILE", "error")
    soon = ("a certificate ends soon", "TOLLKEEPER_OPS_TLS_CLIENT_CA_FILE", "warning")
    assert told == [ended, soon, ended, soon]
    ends = dict(tls.snapshot()["certificate_expiry_timestamp_seconds"])
    assert list(ends) == ["ops port", "ops port clients"]
    assert ends["ops port"] < now.timestamp() < ends["ops port clients"]
    issued(tmp_path, NEW, clients=NEW)
    later = (now + timedelta(days=60)).timestamp()
    await eventually(
        lambda: all(end > later for _, end in tls.snapshot()["certificate_expiry_timestamp_seconds"])
    )
    running.cancel()


async def test_a_port_without_a_certificate_is_as_it_was() -> None:
    tls = TlsPort(Settings(), "ops", lambda event, **facts: None)
    assert (tls.on, tls.wrapped, tls.snapshot()) == (False, None, {})


def test_what_is_wrong_with_a_port_of_up_names_its_own_setting(tmp_path: Path) -> None:
    nothing = str(tmp_path / "cert.pem")
    write(Path(nothing), b"nothing")
    for port, setting in (
        ("gateway", "TOLLKEEPER_TLS_CERT_FILE"),
        ("admin", "TOLLKEEPER_ADMIN_TLS_CERT_FILE"),
    ):
        begin = PREFIXES[port]
        wrong = Settings().with_values(**{f"{begin}cert_file": nothing, f"{begin}key_file": nothing})
        with pytest.raises(SettingError, match=f"{setting}='{nothing}'"):
            supervisor.opener_of(wrong, port)


def test_up_reaches_its_own_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = issued(tmp_path, OLD, "elsewhere.example", clients=NEW)
    plain = Settings(admin_host="::", gateway_host="0.0.0.0")
    assert supervisor.admin_url_of(plain) == "http://[::1]:8081"
    assert supervisor.ca_file_of(plain) == {}
    supervisor.check(plain)
    secure = plain.with_values(admin_tls_cert_file=files.certificate, admin_tls_key_file=files.key)
    assert supervisor.admin_url_of(secure) == "https://[::1]:8081"
    assert supervisor.gateway_url_of(secure) == "http://127.0.0.1:8080"
    assert supervisor.ca_file_of(secure) == {"admin_ca_file": files.certificate}
    supervisor.check(secure)
    mutual = secure.with_values(admin_tls_client_ca_file=files.authority)
    with pytest.raises(SettingError, match="set TOLLKEEPER_ADMIN_CERT_FILE and TOLLKEEPER_ADMIN_KEY_FILE"):
        supervisor.check(mutual)
    monkeypatch.setenv("TOLLKEEPER_ADMIN_CERT_FILE", files.certificate)
    monkeypatch.setenv("TOLLKEEPER_ADMIN_KEY_FILE", files.key)
    supervisor.check(mutual)
    with pytest.raises(SettingError, match="TOLLKEEPER_TLS_CERT_FILE='none'"):
        supervisor.check(plain.with_values(tls_cert_file="none", tls_key_file="none"))
