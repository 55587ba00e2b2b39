"""Only what is somebody's on the Internet may be called, however it is written."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from gateway.core.network import address_refusal, is_public


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_public_addresses(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.1.2.3", "169.254.169.254", "172.16.0.1",
        "192.168.1.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1",
        "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:a9fe:a9fe",
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a9fe:a9fe::", "2001:db8::1",
        "::127.0.0.1", "::ffff:0:7f00:1", "64:ff9b:1::7f00:1", "fec0::1", "100::1", "3fff::1", "5f00::1",
        "192.0.0.8", "192.88.99.1", "0.1.2.3",
    ],
)  # fmt: skip
def test_private_and_special_addresses(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/hook?a=1", "https://8.8.8.8:8443/", "https://[2606:4700::1111]/",
        "https://HOOKS.example.com./", "https://my_hooks.127-0.example.xn--p1ai/", "https://1.2.example.com/",
    ],
)  # fmt: skip
def test_urls_that_may_be_called(url: str) -> None:
    assert address_refusal(url, private=False) is None


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/", "ftp://example.com/", "example.com", "https://", "https:///x", "javascript:1",
        "https://user@example.com/", "https://user:pass@example.com/", "https://example.com/#x",
        "https://example.com:99999/", "https://example.com:0/", "https://8.8.8.8:00/",
        "https://[::1", "https://exämple.com/", "https://example.com/a b",
        "https://localhost/", "https://LOCALHOST/", "https://a.localhost/", "https://db.internal/",
        "https://printer.local./", "https://127.0.0.1/", "https://[::1]/", "https://169.254.169.254/latest",
        "https://[::ffff:10.0.0.1]/", "https://10.0.0.1:443/", "https://[fe80::1%25eth0]/",
        "https://example.com/" + "a" * 2_000,
    ],
)  # fmt: skip
def test_urls_that_may_not(url: str) -> None:
    assert address_refusal(url, private=False) is not None


@pytest.mark.parametrize(
    "host",
    [
        "localhost.", "LocalHost", "redis", "redis.", "127.1", "127.0.1", "0x7f.1", "0x7f000001",
        "2130706433", "017700000001", "0177.0.0.1", "127.0.0.1.", "127.0.0.0x1", "0", "0.", "1.1",
        "8.8.8.8.", "8.8.8.08", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:0:0:1]",
        "[64:ff9b::7f00:1]", "[2606:4700::1111%25eth0]", "[2606:4700::1111%eth0]", "[v1.example.com]",
        "[8.8.8.8]", "127%2e0.0.1", "ex%61mple.com", "%6cocalhost", "example.com\\", "example.com\\.evil.com",
        "a..example.com", ".example.com", "-a.example.com", "example.com..", "a.localhost.", "b.internal.",
        "x,y.example.com", "8.8.8.8%eth0", "1.2.3.4.5", "256.1.1.1", "example.1", "example.0x1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["https://{}/", "https://{}:8443/hook?x=1"])
def test_hosts_in_no_usual_spelling(host: str, form: str) -> None:
    assert address_refusal(form.format(host), private=False) is not None


def test_private_addresses_where_they_are_allowed() -> None:
    assert address_refusal("http://127.0.0.1:9000/hook", private=True) is None
    assert address_refusal("ftp://127.0.0.1/", private=True) is not None
    assert address_refusal("http://user@127.0.0.1/", private=True) is not None
    assert address_refusal("http://127.0.0.1:0/", private=True) is not None
