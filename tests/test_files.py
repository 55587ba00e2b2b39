"""Files that are read again while we run: what is no regular file is refused at once, never waited for."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.calls.routes import UpstreamTarget
from gateway.core.certificates import TlsFiles
from gateway.core.issuers import Issuer
from gateway.core.network import authority
from gateway.counters.redis import address
from gateway.files import UrlFile, https_with, is_same_place, read_regular, require_regular, split_servers
from gateway.http.upstream.pool import place_of
from gateway.issuers import fetching
from gateway.settings.config_file import read_config
from gateway.settings.secret_files import read_secret
from gateway.tls import certificates

PIPE_S_MAX = 20.0
UPSTREAM = UpstreamTarget("s", "https://s.example")

READERS: dict[str, Callable[[str], object]] = {
    "a file": lambda path: read_regular(path, 10),
    "one that others open": require_regular,
    "the configuration": lambda path: read_config(Path(path), {}),
    "a secret": lambda path: read_secret("TOLLKEEPER_ADMIN_TOKEN_FILE", path),
    "keys of an issuer": lambda path: fetching.fetch_keys(
        Issuer("https://i.example", ("a",), jwks_file=path)
    ),
    "a token for an issuer": fetching.read_file,
    "a certificate of ours": lambda path: certificates.load(TlsFiles(certificate=path, key=path), "X_"),
    "what we trust": lambda path: certificates.trusting(TlsFiles(authority=path), "X_"),
    "an authority of Redis": lambda path: address._make_context(TlsFiles(authority=path)),
    "a certificate for Redis": lambda path: address._make_context(TlsFiles(certificate=path, key=path)),
    "an authority of HTTPS": https_with,
    "an authority of an upstream": lambda path: place_of(replace(UPSTREAM, ca_file=path)),
    "a certificate for an upstream": lambda path: place_of(replace(UPSTREAM, cert_file=path, key_file=path)),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, reader: str) -> None:
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    found: list[Any] = []

    def read() -> None:
        try:
            found.append(READERS[reader](pipe))
        except Exception as error:  # noqa: BLE001  # whatever it is, it is looked at below
            found.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(PIPE_S_MAX)
    [error] = found
    assert isinstance(error, Exception), error
    said = getattr(error, "message", str(error))
    assert "no regular file" in said


def test_a_regular_file_behind_a_link_is_read_so_far_and_no_further(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"0123456789")
    (tmp_path / "link").symlink_to("there")
    assert read_regular(tmp_path / "link", 4) == b"01234"
    require_regular(tmp_path / "link", "", None)
    with pytest.raises(OSError, match="no regular file"):
        require_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        require_regular(tmp_path / "none")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("redis://a:b@h:1/0", "redis://c@h:1/0", True),
        ("redis://a:b@h:1/0", "redis://a:b@h:1/1", False),
        ("redis://a:b@h:1", "rediss://a:b@h:1", False),
        ("redis+sentinel://:p@h:1,i:2/m?password=x", "redis+sentinel://:q@h:1,i:2/m?password=y", True),
        ("postgresql://a:b@h/d?sslmode=require", "postgresql://a:%40@h/d?sslmode=require", True),
        ("postgresql://a:b@h/d?sslmode=require", "postgresql://a:b@h/d?sslmode=disable", False),
        ("redis+cluster://a:b@h:1,[::1]:2", "redis+cluster://c:d@h:1,[::1]:2", True),
        ("redis+cluster://a:b@h:1,[::1]:2", "redis+cluster://a:b@h:1,[::2]:2", False),
    ],
)
def test_a_place_is_the_same_whoever_asks_there(one: str, other: str, same: bool) -> None:
    assert is_same_place(one, other) is same


HOSTS = st.one_of(
    st.from_regex(r"[a-z][a-z0-9-]{0,9}(\.[a-z]{2,5})?", fullmatch=True),
    st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str),
)  # fmt: skip
SERVERS = st.lists(st.tuples(HOSTS, st.none() | st.integers(0, 65_535)), min_size=1, max_size=16)


@given(st.sampled_from(["redis+sentinel", "rediss+cluster", "postgresql"]), st.text(max_size=9), SERVERS)
def test_url_of_drawn_servers_is_split(
    scheme: str, password: str, servers: list[tuple[str, int | None]]
) -> None:
    places = [
        authority(host, port) if port is not None else authority(host, 1)[:-2] for host, port in servers
    ]
    parts, found = split_servers(
        f"{scheme}://me:{quote(password, safe='')}@{','.join(places)}/main/4?username=u"
    )
    assert found == tuple(servers)
    assert (parts.scheme, parts.username, unquote(parts.password or "")) == (scheme, "me", password)
    assert (parts.path, parts.query) == ("/main/4", "username=u")


@pytest.mark.parametrize(
    "url",
    [
        "redis://me:secret@[",
        "redis+cluster://[::1]:1,me:secret@[::1]:2",
        "redis+cluster://me:secret@[::1]:1,me:secret@[::1]:2",
        "redis+cluster://me:secret@x[::1]:1",
        "redis+cluster://me:secret@[::1]x:1",
        "redis+cluster://me:secret@one,[::1]]:1",
        "redis+cluster://me:secret@one:65536",
        "redis://me:secret@one:x",
        "redis://me:secret@one,[::1",
        "redis://me:\uff0fsecret@one",
    ],
)
def test_url_that_cannot_be_split_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match="host:port") as refused:
        split_servers(url)
    assert "secret" not in str(refused.value)


def test_a_url_is_read_from_its_file_each_time_while_that_names_the_same_place(tmp_path: Path) -> None:
    path = tmp_path / "url"
    asked = UrlFile("redis://:one@h:1", str(path))
    assert asked
    assert not UrlFile("")
    for content, expected in (
        (None, "one"),
        ("redis://:two@h:1\n", "two"),
        ("redis://:three@i:1", "two"),
        ("\udcff[", "two"),
        ("", "two"),
        ("redis://[", "two"),
        ("redis://:four@h:1", "four"),
    ):
        if content is not None:
            path.write_bytes(content.encode("utf-8", "surrogateescape"))
        assert asked.url() == f"redis://:{expected}@h:1"
