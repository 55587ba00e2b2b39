"""A real Prometheus scrapes a real Tollkeeper: whatever rules and dashboards ask for is there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gateway.telemetry.metrics import FACTS, PREFIX
from tests import plain_http
from tests.conftest import free_port
from tests.deploy.programs import program
from tests.deploy.secured import Authority, SecuredRedis
from tests.deploy.test_rules import MONITORING
from tests.journey.stack import Stack
from tests.tree import ROOT
from tests.waiting import HUNG_S, wait_until

# What the keeper adds to what was scraped, and Prometheus by itself.
OTHERS = {"up", "ALERTS", f"{PREFIX}build_info"}
DASHBOARDS = sorted((MONITORING / "grafana").glob("*.json"))
# A port without a certificate says nothing of one; that a port with one does is in tests/deploy/test_tls.py.
OF_PORTS_WITH_TLS = {f"{PREFIX}tls_certificate_stale"}
# Of issuers, where there are any; tests/issuers/test_callers.py.
OF_ISSUERS = {f"{PREFIX}issuers_unread"}
# Of parts that are not there, or did not happen: upstreams of a cloud or full ones, a replica for reads.
OF_OTHERS = {
    f"{PREFIX}upstream_credentials_missing", f"{PREFIX}capacity_refused_calls_total",
    f"{PREFIX}unpriced_calls_total", f"{PREFIX}cost_total", f"{PREFIX}replica_lag_seconds",
    f"{PREFIX}tls_handshake_failures_total",
}  # fmt: skip
# Of a Redis that refuses calls or moves a slot, and of one with replicas; tests/run/test_readiness.py.
OF_REDIS = {
    f"{PREFIX}partitions_refusing", f"{PREFIX}redis_slots_moving", f"{PREFIX}redis_replica_lag_seconds",
}  # fmt: skip


class Prometheus:
    """A Prometheus with the rules of this tree, which may be rewritten, scraping every second."""

    def __init__(
        self, folder: Path, admin_url: str, rewritten: Callable[[str], str] = lambda rules: rules
    ) -> None:
        self.port = free_port()
        configuration = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        configuration["rule_files"] = [str(MONITORING / name) for name in configuration["rule_files"]]
        target = urllib.parse.urlsplit(admin_url).netloc
        for job in configuration["scrape_configs"]:
            # `up` answers for both on one port.
            job["static_configs"] = [{"targets": [target]}]
        # Rules are written for fifteen seconds; here they are worked out every second.
        rules = []
        for name in configuration["rule_files"]:
            written = yaml.safe_load(rewritten(Path(name).read_text()))
            for group in written["groups"]:
                group.pop("interval", None)
            (folder / Path(name).name).write_text(yaml.safe_dump(written))
            rules.append(str(folder / Path(name).name))
        configuration["rule_files"] = rules
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        self.process = subprocess.Popen(
            [
                program("prometheus", "prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
                "--log.level=error",
            ]
        )

    def get(self, path: str, **parameters: str) -> Any:
        """The data of one call of its API."""
        query = urllib.parse.urlencode(parameters)
        address = f"http://127.0.0.1:{self.port}/api/v1/{path}?{query}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return json.loads(answer.read())["data"]

    def asked(self, query: str) -> list[Any]:
        """What a query finds now."""
        found: list[Any] = self.get("query", query=query)["result"]
        return found

    def ready(self) -> bool:
        try:
            return bool(self.asked(f"{PREFIX}build_info"))
        except OSError:
            return False


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A Tollkeeper whose Redis has a certificate, after some of everything has happened to it."""
    with tempfile.TemporaryDirectory(prefix="tollkeeper-scrape-") as folder:
        authority = Authority(Path(folder))
        redis = SecuredRedis(Path(folder) / "redis", authority)
        redis.start()
        one = None
        try:
            options = ("--workers", "1", "--redis-url", redis.url)
            key = Path(folder) / "ledger.pem"
            made = Ed25519PrivateKey.generate()
            key.write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            settings = {"REDIS_CA_FILE": str(authority.file), "INVOICE_SCHEDULE": "draft"}
            settings["LEDGER_KEY_FILE"] = str(key)
            one = Stack(
                Path(folder) / "data",
                *options,
                **{f"TOLLKEEPER_{name}": value for name, value in settings.items()},
            )
            yield one
        finally:
            if one is not None:
                one.stop()
            redis.stop()


@pytest.fixture(scope="module")
def prometheus(stack: Stack) -> Iterator[Prometheus]:
    with tempfile.TemporaryDirectory(prefix="tollkeeper-prometheus-") as folder:
        one = Prometheus(Path(folder), stack.admin_url)
        try:
            wait_until(one.ready, HUNG_S)
            live(stack)
            in_time(stack)
            wait_until(lambda: one.asked(f"rate({PREFIX}credits_total[1m]) > 0"), HUNG_S)
            yield one
        finally:
            one.process.terminate()
            one.process.wait(HUNG_S)


def in_time(stack: Stack) -> None:
    """A backup that is restored and checked, as each night, and an archive, as each week."""
    folder = Path(stack.data_dir).parent
    for words in (("backup", "--to", str(folder), "--prove"), ("archive", "--to", str(folder / "archive"))):
        run(folder, *words, "--data-dir", str(stack.data_dir))


def run(folder: Path, *words: str) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TOLLKEEPER_")}
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *words], capture_output=True, text=True, check=False,
        cwd=folder, env=environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def live(stack: Stack) -> None:
    """Some calls of every kind, spread over a few scrapes so that rates are seen."""
    tenant, key = stack.tenant(None)
    organization = stack.admin("GET", f"/tenants/{tenant}")[1]["organization_id"]
    models = {model["name"]: model["id"] for model in stack.admin("GET", "/business-models")[1]["items"]}
    for name, model in (("seals", "Consumption"), ("pages", "Pay-Per-Use")):
        fields: dict[str, Any] = {"name": name, "key": name, "credits": 3, "counts_tokens": False}
        stack.make("services", **fields, service_type="Pay-As-You-Go", business_model_id=models[model])
    stack.make("credit-additions", organization_id=organization, credits_added=1000)
    ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 86_400 * 30))
    stack.make("api-keys", tenant_id=tenant, expires_at=ends)
    _, poor = stack.tenant(1)
    for _ in range(4):
        for _ in range(3):
            assert stack.chat(key, "5,7").status_code == 200
            assert stack.chat(poor, "5,7").status_code in {200, 429}
            for name in ("seals", "pages"):
                address = f"{stack.gateway_url}/services/{name}/v1/things"
                answer = plain_http.post(
                    address, headers={"authorization": f"Bearer {key}"}, json={}, timeout=30
                )
                assert answer.status_code < 500, answer.text
        time.sleep(1.1)


def names(query: str) -> set[str]:
    """The metrics a query reads."""
    without = re.sub(r'"[^"]*"', '""', query)
    without = re.sub(r"\b(?:by|without|on|ignoring)\s*\([^)]*\)", "", without)
    found = re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?=\s*[{\[]|\s*[)>/*=<+-]|\s+and|\s+or|\s*$)", without)
    return {name for name in found if name.startswith((PREFIX, "up")) or ":" in name}


@cache
def rules() -> list[dict[str, Any]]:
    """Every recording rule and alert."""
    return [
        rule
        for path in sorted((MONITORING / "rules").glob("*.yml"))
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]


def queries() -> list[tuple[str, str]]:
    """Every query of every dashboard, with the panel it stands in."""
    return [
        (f"{path.stem}: {panel['title']}", target["expr"].replace("$__rate_interval", "1m"))
        for path in DASHBOARDS
        for panel in json.loads(path.read_text())["panels"]
        for target in panel.get("targets", ())
    ]


def test_every_metric_that_is_named_exists() -> None:
    """Histograms by their three series, counters by their total."""
    known = set(OTHERS) | {rule["record"] for rule in rules() if "record" in rule}
    for fact in FACTS:
        name = PREFIX + fact.name
        known |= {f"{name}_total"} if fact.kind == "counter" else {name}
        if fact.kind == "histogram":
            known |= {f"{name}_{part}" for part in ("bucket", "count", "sum")}
    for place, query in [*queries(), *((str(rule), rule["expr"]) for rule in rules())]:
        assert names(query), place
        assert names(query) <= known, f"{place}: {names(query) - known}"


def test_every_query_of_every_dashboard_returns_data(prometheus: Prometheus) -> None:
    def without() -> list[str]:
        asked = [(place, query) for place, query in queries() if not names(query) & OF_REDIS]
        return [f"{place}: {query}" for place, query in asked if not prometheus.asked(query)]

    with suppress(AssertionError):
        wait_until(lambda: not without(), HUNG_S)
    assert without() == []


def test_every_rule_is_worked_out_without_a_fault(prometheus: Prometheus) -> None:
    def worked_out() -> bool:
        found = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        assert len(found) == len(rules())
        assert [rule for rule in found if rule["health"] == "err"] == []
        return all(rule["health"] == "ok" for rule in found)

    wait_until(worked_out, HUNG_S)


def test_every_metric_an_alert_reads_is_scraped(prometheus: Prometheus) -> None:
    """An alert on a metric that is never there would be silent for ever."""

    def missing() -> list[str]:
        read = {name for rule in rules() for name in names(rule["expr"])} - OF_PORTS_WITH_TLS
        read -= OF_ISSUERS | OF_REDIS | OF_OTHERS
        return sorted(name for name in read if not prometheus.asked(name))

    with suppress(AssertionError):
        wait_until(lambda: not missing(), HUNG_S)
    assert missing() == []


def test_no_alert_fires_at_a_tollkeeper_that_is_well(prometheus: Prometheus) -> None:
    found = prometheus.get("alerts")["alerts"]
    assert [alert["labels"] for alert in found if alert["state"] == "firing"] == []
