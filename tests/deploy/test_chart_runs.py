"""What the chart says is done for real: the same commands, variables, probes and hooks, as processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx2 as httpx
import psutil
import psycopg
import pytest

from gateway.settings.settings import Settings
from tests.conftest import ValkeyServer, free_port
from tests.deploy import helm
from tests.deploy.manifests import Resource, container_user, containers, environment, pod
from tests.deploy.processes import Admin, Process, answers, get
from tests.deploy.test_chart import SIDECAR
from tests.tree import ROOT
from tests.waiting import HUNG_S, wait_until

# A worker, and the supervisor that has answered a scrape: 3.4 MiB of these are prometheus-client.
IDLE_MIB_MAX = 71.0
ADMIN_TOKEN = "an-admin-token-of-tests"
ROUTES = """
upstreams:
  llm: {{base_url: "http://127.0.0.1:{port}"}}
routes:
  - {{path: /v1/chat/completions, upstream: llm, service: chat, family: openai, meter: openai_chat}}
"""
# Which setting says what a named port of a manifest is.
SETTING = {"http": "gateway_port", "ops": "ops_port", "admin": "admin_port"}
# Where the program and what it needs are, for whichever Python.
ENVIRON = {"PYTHONPATH": f"{ROOT}:{sysconfig.get_path('purelib')}", "PATH": os.environ["PATH"]}
OURS = [sys.executable, "-m", "gateway"]


class Cluster:
    """Migration, keeper and a sidecar of the chart as processes of this machine, on ports of their own."""

    def __init__(self, folder: Path, secrets: dict[str, str]) -> None:
        [objects] = helm.rendered({"secrets": {"migrate": "tollkeeper-migrate"}}, extra=SIDECAR)
        assert not isinstance(objects, str), objects
        self._objects = objects
        self._folder = folder
        self.ports = {name: free_port() for name in SETTING}
        self.llm_port = free_port()
        self.secrets = secrets
        self.processes: list[Process] = []
        (folder / "config.yaml").write_text(ROUTES.format(port=self.llm_port))

    def start(self, kind: str, name: str, *, measured: bool = False) -> tuple[Resource, Process]:
        """Start the first container of a pod; its ports must be those that settings have by default.

        It runs as the container's user, or by this Python where its memory is measured.
        """
        (made,) = (each for each in self._objects if (each["kind"], each["metadata"]["name"]) == (kind, name))
        spec = pod(made)
        container = containers(spec)[0]
        for port in container.get("ports", ()):
            assert port["containerPort"] == getattr(Settings(), SETTING[port["name"]])
        folder = self._folder / name
        secrets = self._folder / f"secrets-{name}-{len(self.processes)}"
        environ = environment(self._objects, spec, container, self.secrets, secrets)
        if "TOLLKEEPER_DATA_DIR" in environ:
            mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert environ["TOLLKEEPER_DATA_DIR"] in mounts
            environ["TOLLKEEPER_DATA_DIR"] = str(folder)
            folder.mkdir(exist_ok=True)
            folder.chmod(0o777)  # an emptyDir
        environ |= {f"TOLLKEEPER_{SETTING[name].upper()}": str(port) for name, port in self.ports.items()}
        arguments = [
            str(self._folder / "config.yaml") if word == "/etc/tollkeeper/config.yaml" else word
            for word in container["args"]
        ]
        program = OURS if measured else as_user(*container_user(spec, container))
        return container, self.run(name, arguments, environ, program)

    def run(
        self, name: str, arguments: list[str], environ: dict[str, str], program: Sequence[str] = ()
    ) -> Process:
        """Start a process that ends with the test."""
        self.processes.append(Process(self._folder, name, arguments, ENVIRON | environ, program))
        return self.processes[-1]


def as_user(user: int, group: int | None) -> list[str]:
    """The program as a kubelet starts it, in the pod's group besides; as ourselves where we are not root.

    By this Python, or by the system's of the same version where the user may not enter this one's folder.
    """
    if os.geteuid() != 0:
        return OURS
    groups = ["--clear-groups"] if group is None else ["--groups", str(group)]
    borrowed = ["setpriv", "--reuid", str(user), "--regid", str(user), *groups, "--no-new-privs"]
    system = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, system):
        # A program that the user starts, not we.
        started = [*borrowed, "sh", "-c", f"{python} -m gateway --version"]
        if not subprocess.run(started, env=ENVIRON, capture_output=True, check=False).returncode:
            return [*borrowed, python, "-m", "gateway"]
    pytest.skip(f"the user {user} may not enter where this Python is")


@pytest.fixture
def place(own_valkey: Callable[..., ValkeyServer], database: str) -> Iterator[Cluster]:
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
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # the pods' users come in
        one = Cluster(Path(folder), secrets)
        yield one
        for process in one.processes:
            if process.running:
                process.popen.kill()
                process.ended()


def test_a_call_through_the_sidecar_becomes_a_row(place: Cluster) -> None:
    (_, first), (_, second) = (place.start("Job", "prod-migrate") for _ in range(2))
    assert (first.ended(), second.ended()) == (0, 0), first.said

    keeper, keeping = place.start("Deployment", "prod-keeper")
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        wait_until(lambda probe=probe: answers(keeper, probe, place.ports), HUNG_S)

    sidecar, serving = place.start("Deployment", "llm", measured=True)
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        wait_until(lambda probe=probe: answers(sidecar, probe, place.ports), HUNG_S)
    service = place.run("demo", ["demo-upstream", "--port", str(place.llm_port)], {})
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

        answer = wait_until(lambda: (found := called()).status_code == 200 and found, HUNG_S)
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
    assert service.stop() == 0
    assert keeping.stop() == 0, keeping.said


def memory_mib(pid: int) -> float:
    """What a process and its children keep of their own, after a scrape.

    Pages of files are left out: what of them counts depends on who else runs the same program.
    """
    one = psutil.Process(pid)
    kept = 0
    for each in [one, *one.children(recursive=True)]:
        said = Path(f"/proc/{each.pid}/smaps_rollup").read_text()
        kept += int(re.findall(r"^Pss_Anon: +(\d+) kB$", said, re.MULTILINE)[0])
    return kept / 1024


def here(hook: list[str], pid: int) -> list[str]:
    """A preStop hook for a process of this machine, without waiting for a cluster to hear of it."""
    text = re.sub(r"sleep \d+", "sleep 0.1", hook[-1])
    assert text.endswith("kill -TERM 1")
    return [*hook[:-1], text.removesuffix("1") + str(pid)]


def test_a_gateway_that_redis_refuses_is_never_ready(place: Cluster) -> None:
    """A rollout with a wrong password stops at its first pod."""
    url = place.secrets["tollkeeper-gateway/redis-url"]
    place.secrets["tollkeeper-gateway/redis-url"] = url.replace("redis://", "redis://nobody:wrong@")
    sidecar, serving = place.start("Deployment", "llm")
    wait_until(lambda: answers(sidecar, "livenessProbe", place.ports), HUNG_S)
    status, said = get(place.ports["ops"], "/readyz")
    assert status == 503
    assert json.loads(said)["dependencies"]["redis"] is False
    assert answers(sidecar, "startupProbe", place.ports)  # whoever stands behind it starts
    assert not answers(sidecar, "readinessProbe", place.ports)
    wait_until(lambda: "WRONGPASS" in serving.said, HUNG_S)
    assert serving.stop() == 0
