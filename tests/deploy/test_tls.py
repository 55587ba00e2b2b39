"""`serve` with certificates and a credential in a file: who may call, and that new files need no restart."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import httpx2 as httpx
import pytest
import trustme

from tests.certificates import issued, trusting, write
from tests.conftest import ValkeyServer, free_port
from tests.deploy.deployment import Deployment
from tests.deploy.processes import get
from tests.waiting import wait_until

BODY = {"model": "demo-small", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}


def test_a_gateway_asks_for_certificates_and_takes_new_files_over(
    tmp_path: Path, own_valkey: Callable[..., ValkeyServer], database: str
) -> None:
    ours, renewed, clients = trustme.CA(), trustme.CA(), trustme.CA()
    files, secret = issued(tmp_path / "tls", ours, clients=clients), tmp_path / "upstream_key"
    write(secret, b"the-first")
    one = Deployment(tmp_path, own_valkey("--appendonly", "yes").url, database)
    one.config.write_text(one.config.read_text().replace('"}', '", headers: {x-key: "${UPSTREAM_KEY}"}}'))
    one.environ |= {
        "TOLLKEEPER_TLS_CERT_FILE": files.certificate,
        "TOLLKEEPER_TLS_KEY_FILE": files.key,
        "TOLLKEEPER_TLS_CLIENT_CA_FILE": files.authority,
        "UPSTREAM_KEY_FILE": str(secret),
    }
    port, ops_port = free_port(), free_port()
    certificate = clients.issue_cert("client@example.com")

    def status(context: ssl.SSLContext) -> int:
        url = f"https://localhost:{port}/v1/chat/completions"
        with httpx.Client(verify=context, headers={"authorization": f"Bearer {key}"}, timeout=30) as client:
            return client.post(url, json=BODY).status_code

    def trusted(context: ssl.SSLContext) -> bool:
        try:
            return status(context) == 200
        except httpx.TransportError:
            return False

    try:
        serve = one.serve(port, ops_port)
        _, key = one.admin.customer()
        wait_until(lambda: status(trusting(ours, certificate)) == 200)
        with pytest.raises(httpx.TransportError):
            status(trusting(ours))
        write(secret, b"the-second")
        wait_until(lambda: "upstreams changed" in serve.said)
        issued(tmp_path / "tls", renewed)
        wait_until(lambda: trusted(trusting(renewed, certificate)))
        said = wait_until(lambda: "no_certificate" in (text := get(ops_port, "/metrics")[1]) and text)
        assert 'tollkeeper_tls_handshake_failures_total{port="gateway",reason="no_certificate"} 1.0' in said
        assert 'tollkeeper_certificate_expiry_timestamp_seconds{peer="gateway port"}' in said
        assert 'tollkeeper_tls_certificate_stale{port="gateway"} 0.0' in said
        assert "the-second" not in serve.said
    finally:
        one.stop()
