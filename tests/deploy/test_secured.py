"""Each process on its own against a Redis and a PostgreSQL that speak TLS alone, as users with few rights."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from gateway.counters.redis import keys
from gateway.counters.redis.keys import partition_of
from tests import plain_http
from tests.conftest import free_port
from tests.deploy.processes import Admin, Process, get
from tests.deploy.secured import PASSWORD, Authority, SecuredPostgres, SecuredRedis
from tests.persistence.scenario import stop
from tests.waiting import HUNG_S, wait_until

ADMIN_TOKEN = "an-admin-token-of-tests"


@dataclass
class Deployment:
    """The servers, and where processes are started."""

    folder: Path
    authority: Authority
    redis: SecuredRedis
    postgres: SecuredPostgres
    environ: dict[str, str]
    ports: dict[str, int]
    started: list[Process]

    def start(self, *arguments: str, **environ: str) -> Process:
        name = f"{arguments[0]}-{len(self.started)}"
        made = Process(self.folder, name, list(arguments), self.environ | environ)
        self.started.append(made)
        return made

    def doctor(self, *words: str, **environ: str) -> tuple[int, dict[str, str]]:
        """Its status, and what it says by subject; several lines of one are put together."""
        done = self.start("doctor", "--config", str(self.folder / "config.yaml"), *words, **environ)
        status = done.ended()
        found: dict[str, str] = {}
        for well, subject, says in re.findall(r"^(ok|WRONG) +([^:]+): (.*)$", done.said, re.MULTILINE):
            found[subject] = found.get(subject, "") + f"{well} {says}\n"
        return status, found


@pytest.fixture
def deployment() -> Iterator[Deployment]:
    with tempfile.TemporaryDirectory(prefix="tollkeeper-secured-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        authority = Authority(folder)
        redis = SecuredRedis(folder / "redis", authority, clients=True)
        postgres = SecuredPostgres(folder / "postgres", authority)
        certificate, key = authority.issue("tollkeeper")
        ports = {port: free_port() for port in ("gateway", "admin", "ops")}
        upstream = free_port()
        (folder / "config.yaml").write_text(
            "upstreams:\n" + "".join(
                f"  {name}: {{base_url: 'http://127.0.0.1:{upstream}'}}\n"
                for name in ("openai", "anthropic", "gemini")
            )
        )  # fmt: skip
        environ = {
            "TOLLKEEPER_REDIS_URL": redis.url, "TOLLKEEPER_REDIS_CA_FILE": str(authority.file),
            "TOLLKEEPER_REDIS_CERT_FILE": str(certificate), "TOLLKEEPER_REDIS_KEY_FILE": str(key),
            "TOLLKEEPER_DATABASE_URL": postgres.url, "TOLLKEEPER_ADMIN_TOKEN": ADMIN_TOKEN,
            "TOLLKEEPER_KEY_PEPPER": "a-pepper-of-tests-only", "TOLLKEEPER_DATA_DIR": str(folder / "data"),
        } | {f"TOLLKEEPER_{port.upper()}_PORT": str(number) for port, number in ports.items()}  # fmt: skip
        one = Deployment(folder, authority, redis, postgres, environ, ports, [])
        try:
            redis.start()
            postgres.start()
            one.start("demo-upstream", "--port", str(upstream))
            yield one
        finally:
            for process in one.started:
                if process.running:
                    process.popen.kill()
                    process.ended()
            redis.stop()
            postgres.stop()


def test_everything_works_over_tls_as_users_with_few_rights(deployment: Deployment) -> None:
    deployment.environ["TOLLKEEPER_DATABASE_OWNER_URL"] = deployment.postgres.url
    deployment.environ["TOLLKEEPER_DATABASE_URL"] = deployment.postgres.url.replace(
        "//postgres:", "//keeper:"
    )
    assert deployment.start("migrate").ended() == 0
    with psycopg.connect(deployment.postgres.url) as owner:
        owner.execute(f"CREATE ROLE keeper LOGIN PASSWORD '{PASSWORD}' IN ROLE postgres_writer")
    keeper = deployment.start("keeper")
    wait_until(lambda: answers(deployment.ports["admin"]), HUNG_S)
    config = str(deployment.folder / "config.yaml")
    serve = deployment.start("serve", "--config", config, TOLLKEEPER_REDIS_URL=deployment.redis.gateway_url)
    wait_until(lambda: answers(deployment.ports["ops"]), HUNG_S)

    admin = Admin(deployment.ports["admin"], ADMIN_TOKEN)
    tenant, key = admin.customer(1000)
    admin.ask("POST", f"/tenants/{tenant}/recharge", amount=500)
    chat(deployment, key)
    wait_until(lambda: admin.used(tenant) == 42)
    owner = admin.ask("GET", f"/tenants/{tenant}")["organization_id"]
    stop(deployment.postgres.url, partition_of(owner), owner, tenant)
    chat(deployment, key)
    with deployment.redis.client() as client:
        wait_until(lambda: client.hlen(keys.parked(partition_of(owner))) == 1)
    [stopped] = admin.ask("GET", f"/quarantine?tenant_id={tenant}")["items"]
    admin.ask("POST", f"/quarantine/{stopped['id']}/release", reason="a test")
    wait_until(lambda: admin.used(tenant) == 2 * 42)
    assert admin.ask("POST", "/reconciliation")["drift_tokens"] == 0
    wait_until(lambda: admin.ask("GET", "/activity")["requests"] == 2)
    chat(deployment, key, status=400, max_tokens=-1)
    wait_until(lambda: [call["status"] for call in admin.ask("GET", "/calls")["items"]].count(400) == 1)

    status, found = deployment.doctor()
    assert status == 0, found
    assert "its certificate is valid until" in found["redis"]
    assert "its certificate is valid until" in found["postgresql"]
    assert found["postgresql user"] == "ok keeper may do what a keeper does, and no more\n"
    assert found["redis user"] == "ok tollkeeper-keeper may do what a keeper does\n"
    # Nothing was tried that users.acl does not allow, nor is it as they end.
    assert not_allowed(deployment) == []
    assert serve.stop() == 0
    assert keeper.stop() == 0
    assert not_allowed(deployment) == []
    gateway = {"TOLLKEEPER_REDIS_URL": deployment.redis.gateway_url}
    status, found = deployment.doctor("--for", "serve", **gateway)
    assert (status, found["redis user"]) == (0, "ok tollkeeper-gateway may do what a gateway does\n")
    for words, other in ((("--for", "serve"), {}), (("--for", "keeper"), gateway)):
        status, found = deployment.doctor(*words, **other)
        assert status == 1
        assert found["redis user"].startswith("WRONG "), found
    for process in deployment.started:
        assert PASSWORD not in process.said


def not_allowed(deployment: Deployment) -> list[dict[str, Any]]:
    """What Redis has refused to our users."""
    with deployment.redis.client() as client:
        return [each for each in client.acl_log() if each["username"] != "test"]


def chat(deployment: Deployment, key: str, status: int = 200, max_tokens: int = 16) -> None:
    answer = plain_http.post(
        f"http://127.0.0.1:{deployment.ports['gateway']}/v1/chat/completions",
        json={
            "model": "demo-small", "max_tokens": max_tokens,
            "messages": [{"role": "user", "content": "hello"}],
        },
        headers={"authorization": f"Bearer {key}", "x-demo-usage": "30,12"}, timeout=30,
    )  # fmt: skip
    assert answer.status_code == status, answer.text


def answers(port: int) -> bool:
    try:
        return get(port, "/readyz")[0] == 200
    except OSError:
        return False


def test_an_expired_certificate_is_named(deployment: Deployment) -> None:
    assert deployment.start("migrate").ended() == 0
    deployment.redis.stop()
    deployment.postgres.stop()
    deployment.redis.start(days=-1)
    deployment.postgres.start(days=-1)

    status, found = deployment.doctor()
    assert status == 1
    assert "WRONG" in found["redis"]
    assert "certificate has expired" in found["redis"]
    assert "WRONG" in found["postgresql"]
    assert re.search(r"certificate verify failed \(it ended on \d{4}-\d\d-\d\d\)", found["postgresql"])

    migrate = deployment.start("migrate")
    assert migrate.ended() == 1
    assert "it ended on" in migrate.said
    assert len(migrate.said.splitlines()) == 1

    serve = deployment.start("serve", "--config", str(deployment.folder / "config.yaml"))
    keeper = deployment.start("keeper")
    for process in (serve, keeper):
        wait_until(lambda process=process: "certificate has expired" in process.said, HUNG_S)
    serve.stop()
    keeper.stop()


def test_a_certificate_of_somebody_elses_authority_is_not_trusted(deployment: Deployment) -> None:
    assert deployment.start("migrate").ended() == 0
    (deployment.folder / "other").mkdir()
    other = str(Authority(deployment.folder / "other").file)
    ours = str(deployment.authority.file)
    deployment.environ["TOLLKEEPER_REDIS_CA_FILE"] = other
    deployment.environ["TOLLKEEPER_DATABASE_URL"] = deployment.environ["TOLLKEEPER_DATABASE_URL"].replace(
        ours, other
    )
    status, found = deployment.doctor()
    assert status == 1
    assert "WRONG" in found["redis"]
    assert "name the authority that signed it in TOLLKEEPER_REDIS_CA_FILE" in found["redis"]
    assert "WRONG" in found["postgresql"]
    assert "?sslrootcert=… in TOLLKEEPER_DATABASE_URL" in found["postgresql"]

    deployment.environ["TOLLKEEPER_REDIS_CA_FILE"] = ours
    for name in ("CERT", "KEY"):  # Redis asks for a certificate, and gets none
        del deployment.environ[f"TOLLKEEPER_REDIS_{name}_FILE"]
    _, found = deployment.doctor()
    assert "TOLLKEEPER_REDIS_CERT_FILE" in found["redis"]


@pytest.mark.parametrize("setting", ["CA_FILE", "CERT_FILE"])
def test_a_file_that_cannot_be_used_stops_the_start(tmp_path: Path, setting: str) -> None:
    environ = {
        "TOLLKEEPER_REDIS_URL": "rediss://localhost:1/0", "TOLLKEEPER_DATABASE_URL": "postgresql://localhost:1/x",
        "TOLLKEEPER_ADMIN_TOKEN": ADMIN_TOKEN, "TOLLKEEPER_KEY_PEPPER": "a-pepper-of-tests-only",
        f"TOLLKEEPER_REDIS_{setting}": os.devnull + "/nothing.pem",
    }  # fmt: skip
    missing = Process(tmp_path, "keeper", ["keeper"], environ)
    assert missing.ended() == 1
    assert f"REDIS_{setting}='/dev/null/nothing.pem'" in missing.said
    assert "Traceback" not in missing.said


def test_a_wrong_password_is_told_apart_from_a_server_that_is_away(deployment: Deployment) -> None:
    wrong = deployment.environ["TOLLKEEPER_REDIS_URL"].replace(PASSWORD, "another")
    deployment.environ["TOLLKEEPER_REDIS_URL"] = wrong
    _, found = deployment.doctor()
    assert "WRONGPASS" in found["redis"]
    deployment.redis.stop()
    _, found = deployment.doctor()
    assert "WRONGPASS" not in found["redis"]
    assert "does not answer" in found["redis"]
