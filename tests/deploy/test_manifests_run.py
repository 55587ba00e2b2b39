"""What the manifests say is done for real: the same commands, variables, probes and hooks, as processes."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import psycopg
import pytest

from gateway.settings.settings import Settings
from tests.conftest import ValkeyServer, free_port
from tests.deploy.manifests import KUBERNETES, one, pod, started
from tests.deploy.processes import READY_S_MAX, Admin, Process, answers, get
from tests.waiting import wait_until

IDLE_MIB_MAX = 60.0
ADMIN_TOKEN = "an-admin-token-of-tests"
# Which setting says what a named port of a manifest is.
SETTING = {"http": "gateway_port", "ops": "ops_port", "admin": "admin_port"}


class Pod:
    """The parts of the overlays as processes of this machine, on ports of their own."""

    def __init__(self, folder: Path, secrets: dict[str, str]) -> None:
        self.ports = {name: free_port() for name in SETTING}
        self.llm_port = free_port()
        self._folder = folder
        self._secrets = secrets
        self.processes: dict[str, Process] = {}

    def start(self, overlay: str, container: dict[str, Any]) -> Process:
        """Start a container; its ports must be those the settings have by default."""
        defaults = Settings()
        for port in container.get("ports", ()):
            assert port["containerPort"] == getattr(defaults, SETTING[port["name"]])
        data = self._folder / container["name"]
        data.mkdir(exist_ok=True)
        ports = {SETTING[name].removesuffix("_port"): port for name, port in self.ports.items()}
        found = started(overlay, container, self._secrets, data, ports)
        arguments = [self._local(word) for word in found.arguments]
        process = Process(self._folder, container["name"], arguments, found.environ)
        self.processes[container["name"]] = process
        return process

    def _local(self, word: str) -> str:
        """The service beside the sidecar stands at another port here."""
        if word == "9000":
            return str(self.llm_port)
        if not word.startswith(str(KUBERNETES)):
            return word
        text = Path(word).read_text()
        if Path(word).parent.name != "sidecar":
            return word
        assert "http://127.0.0.1:9000" in text
        path = self._folder / "config.yaml"
        path.write_text(text.replace("http://127.0.0.1:9000", f"http://127.0.0.1:{self.llm_port}"))
        return str(path)


def parts() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Migration, keeper, sidecar and the service beside it."""
    (migrate,) = pod(one("migrate", "Job"))["containers"]
    (keeper,) = pod(one("keeper", "Deployment"))["containers"]
    beside = pod(one("sidecar", "Deployment"))
    (sidecar,), (service,) = beside["initContainers"], beside["containers"]
    return migrate, keeper, sidecar, service


@pytest.fixture
def place(tmp_path: Path, own_valkey: Callable[..., ValkeyServer], database: str) -> Iterator[Pod]:
    redis_url = own_valkey("--appendonly", "yes").url
    writer = f"{database.rpartition('/')[2]}_writer"
    with psycopg.connect(database) as owner:
        owner.execute(f"CREATE ROLE {writer} LOGIN")
    secrets = {
        "tollkeeper-gateway/redis-url": redis_url,
        "tollkeeper-keeper/redis-url": redis_url,
        "tollkeeper-gateway/key-pepper": "a-pepper-of-tests-only",
        "tollkeeper-keeper/database-url": database.replace("postgres@", f"{writer}@"),
        "tollkeeper-migrate/database-owner-url": database,
        "tollkeeper-keeper/admin-token": ADMIN_TOKEN,
    }
    one = Pod(tmp_path, secrets)
    yield one
    for process in one.processes.values():
        if process.running:
            process.popen.kill()
            process.ended()


def test_a_call_through_the_sidecar_becomes_a_row(place: Pod) -> None:
    migrate, keeper, sidecar, service = parts()
    first, second = place.start("migrate", migrate), place.start("migrate", migrate)
    assert (first.ended(), second.ended()) == (0, 0), first.said

    keeping = place.start("keeper", keeper)
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        wait_until(lambda probe=probe: answers(keeper, probe, place.ports), READY_S_MAX)

    serving = place.start("sidecar", sidecar)
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        wait_until(lambda probe=probe: answers(sidecar, probe, place.ports), READY_S_MAX)
    place.start("sidecar", service)
    assert get(place.ports["ops"], "/metrics")[0] == 200
    assert memory_mib(serving.popen.pid) < IDLE_MIB_MAX

    admin = Admin(place.ports["admin"], ADMIN_TOKEN)
    tenant, key = admin.customer()
    url = f"http://127.0.0.1:{place.ports['http']}/v1/chat/completions"
    body = {"model": "demo-small", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 16}
    with httpx.Client(timeout=30) as client:

        def called() -> httpx.Response:
            return client.post(
                url, json=body, headers={"authorization": f"Bearer {key}", "x-demo-usage": "30,12"}
            )

        answer = wait_until(lambda: (found := called()).status_code == 200 and found, READY_S_MAX)
        used = answer.json()["usage"]["total_tokens"]
        assert used == 42
        assert client.get(f"http://127.0.0.1:{place.ports['http']}/metrics").status_code == 404
        # A client that keeps its connection is told to go elsewhere, not cut off.
        hook = sidecar["lifecycle"]["preStop"]["exec"]["command"]
        subprocess.run(here(hook, serving.popen.pid), check=True)
        assert serving.ended() == 0, serving.said
    wait_until(lambda: admin.used(tenant) >= used)
    assert admin.used(tenant) % used == 0
    scraped = get(place.ports["admin"], "/metrics")[1]
    assert "tollkeeper_build_info" in scraped
    assert place.processes["llm"].stop() == 0
    assert keeping.stop() == 0, keeping.said


def memory_mib(pid: int) -> float:
    """What a process and its children take together, what they share counted once, after a scrape."""
    one = psutil.Process(pid)
    return sum(each.memory_full_info().pss for each in [one, *one.children(recursive=True)]) / 2**20


def here(hook: list[str], pid: int) -> list[str]:
    """A preStop hook for a process of this machine, without waiting for a cluster to hear of it."""
    text = re.sub(r"sleep \d+", "sleep 0.1", hook[-1])
    assert text.endswith("kill -TERM 1")
    return [*hook[:-1], text.removesuffix("1") + str(pid)]


def test_a_gateway_that_redis_refuses_is_never_ready(place: Pod) -> None:
    """A rollout with a wrong password stops at its first pod."""
    _, _, sidecar, _ = parts()
    url = place._secrets["tollkeeper-gateway/redis-url"]
    place._secrets["tollkeeper-gateway/redis-url"] = url.replace("redis://", "redis://nobody:wrong@")
    serving = place.start("sidecar", sidecar)
    wait_until(lambda: answers(sidecar, "livenessProbe", place.ports), READY_S_MAX)
    status, said = get(place.ports["ops"], "/readyz")
    assert status == 503
    assert json.loads(said)["dependencies"]["redis"] is False
    assert answers(sidecar, "startupProbe", place.ports)  # whoever stands behind it starts
    assert not answers(sidecar, "readinessProbe", place.ports)
    wait_until(lambda: "WRONGPASS" in serving.said, READY_S_MAX)
    assert serving.stop() == 0
