"""Who is reached through which proxy: NO_PROXY as curl and urllib read it."""

from __future__ import annotations

from urllib.request import proxy_bypass_environment

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.network import DIRECT, Proxies, Proxy, read_exempt

ONE, OTHER = Proxy("proxy.test", 3128), Proxy("tls.proxy.test", 443, secured=True)


def is_direct(exempt: str, url: str) -> bool:
    return Proxies(ONE, OTHER, read_exempt(exempt)).to(url) is None


@pytest.mark.parametrize(
    ("exempt", "url", "direct"),
    [
        ("", "https://api.test", False),
        ("*", "https://api.test", True),
        ("*", "https://[::1]:8080", True),
        ("api.test", "https://api.test", True),
        ("api.test", "https://eu.api.test/v1", True),
        ("api.test", "https://notapi.test", False),
        (".api.test", "https://api.test", True),
        (".api.test", "https://eu.api.test", True),
        ("*.api.test", "https://eu.api.test", True),
        ("*.api.test", "https://notapi.test", False),
        ("API.Test", "https://api.TEST", True),
        ("api.test.", "https://api.test", True),
        ("api.test", "https://api.test.", True),
        ("one.test, two.test", "https://two.test", True),
        ("one.test two.test", "https://two.test", True),
        ("one.test,,  ,two.test,", "https://two.test", True),
        ("api.test:8443", "https://api.test:8443", True),
        ("api.test:8443", "https://api.test", False),
        ("api.test:443", "https://api.test", True),
        ("api.test:80", "http://api.test", True),
        (".test:443", "https://api.test", True),
        ("svc", "http://redis.default.svc", True),
        ("localhost", "http://localhost:9000", True),
        ("localhost", "http://127.0.0.1:9000", False),
        ("127.0.0.1", "http://127.0.0.1:9000", True),
        ("127.0.0.1:9000", "http://127.0.0.1:9001", False),
        ("10.0.0.0/8", "https://10.1.2.3", True),
        ("10.1.2.3/8", "https://10.9.9.9", True),
        ("10.0.0.0/8", "https://11.1.2.3", False),
        ("10.0.0.0/8", "https://ten.test", False),
        ("0.0.0.0/0", "https://[2001:db8::1]", False),
        ("10.0.0.0/8", "https://[::ffff:10.0.0.1]", True),
        ("fd00::/8", "https://[fd12::1]:8443", True),
        ("::1", "http://[0:0:0:0:0:0:0:1]:8080", True),
        ("[::1]:8080", "http://[::1]:8080", True),
        ("[::1]:8080", "http://[::1]:8081", False),
        ("[::1]", "http://[::1]", True),
    ],
)
def test_who_stands_in_no_proxy_is_reached_directly(exempt: str, url: str, direct: bool) -> None:
    assert is_direct(exempt, url) is direct


@pytest.mark.parametrize(
    "exempt",
    ["10.0.0.0/99", "10.*", "1.1", "api.test:0", "api.test:99999", "a b/c", "http://api.test", "<local>"],
)
def test_what_nobody_could_go_by_is_named(exempt: str) -> None:
    with pytest.raises(ValueError, match="is neither a name"):
        read_exempt(exempt)


LABEL = st.from_regex(r"[a-z][a-z0-9-]{0,3}[a-z]", fullmatch=True)
HOSTS = st.lists(st.sampled_from(["api", "eu", "test", "corp", "x"]) | LABEL, min_size=1, max_size=4).map(
    ".".join
)


@given(HOSTS, st.lists(st.tuples(st.sampled_from(["", "."]), HOSTS).map("".join), max_size=4), st.booleans())
def test_names_are_read_as_pythons_own_library_reads_them(
    host: str, entries: list[str], is_below: bool
) -> None:
    if is_below and entries:
        host = f"{host}.{entries[0].lstrip('.')}"
    text = ", ".join(entries)
    theirs = bool(proxy_bypass_environment(f"{host}:443", {"no": text}))
    assert is_direct(text, f"https://{host}") is theirs


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 32))
def test_a_network_is_the_first_bits_of_its_addresses(network: int, address: int, bits: int) -> None:
    def written(number: int) -> str:
        return ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0))

    inside = network >> (32 - bits) == address >> (32 - bits)
    assert is_direct(f"{written(network)}/{bits}", f"https://{written(address)}") is inside


def test_each_scheme_has_a_proxy_of_its_own() -> None:
    proxies = Proxies(ONE, OTHER)
    assert (proxies.to("http://api.test"), proxies.to("https://api.test")) == (ONE, OTHER)
    assert Proxies(https=OTHER).to("http://api.test") is None
    assert DIRECT.to("https://api.test") is None


def test_a_credential_is_in_no_text() -> None:
    assert "secret" not in repr(Proxies(Proxy("p", 1, authorization="Basic secret")))
    assert (str(Proxy("p", 1, authorization="Basic secret")), str(Proxy("::1", 1))) == ("p:1", "[::1]:1")
