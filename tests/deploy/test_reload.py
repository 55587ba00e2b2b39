"""Another configuration file: it is in force for the next call, or all of the old one stays."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import httpx2 as httpx
import pytest

from gateway.run.reload import Renewal
from gateway.settings.settings import Settings
from tests.conftest import ValkeyServer, free_port
from tests.deploy.deployment import Deployment
from tests.deploy.processes import Process, get
from tests.waiting import wait_until

BODY = {"model": "demo-small", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}


@pytest.fixture
def deployment(
    tmp_path: Path, own_valkey: Callable[..., ValkeyServer], database: str
) -> Iterator[Deployment]:
    one = Deployment(tmp_path, own_valkey("--appendonly", "yes").url, database)
    yield one
    one.stop()


def swapped(deployment: Deployment, text: str) -> None:
    """Put another configuration there as Kubernetes does it: by a link to another directory."""
    folder = deployment.config.parent
    data = Path(mkdtemp(prefix="..", dir=folder))
    (data / "config.yaml").write_text(text)
    (folder / "..new").symlink_to(data.name)
    (folder / "..new").replace(folder / "..data")
    if not deployment.config.is_symlink():
        deployment.config.unlink()
        deployment.config.symlink_to("..data/config.yaml")


@dataclass(frozen=True)
class Served:
    """A gateway with two workers, and a customer of it."""

    process: Process
    port: int
    ops: int
    headers: dict[str, str]

    def statuses(self, path: str) -> set[int]:
        """Of so many connections that each worker has some."""
        found = set()
        for _ in range(24):
            with self.client() as client:
                asked = client.get(path) if path == "/v1/models" else client.post(path, json=BODY)
                found.add(asked.status_code)
        return found

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers=self.headers, timeout=60)

    def said(self, *words: str) -> None:
        """Wait until one line has all of these."""

        def is_worth_a_line() -> bool:
            return any(all(word in line for word in words) for line in self.process.said.splitlines())

        wait_until(is_worth_a_line, 30)

    def facts(self) -> dict[str, bool]:
        return dict(json.loads(get(self.ops, "/readyz")[1])["dependencies"])


@pytest.fixture
def served(deployment: Deployment) -> Served:
    swapped(deployment, deployment.config.read_text())
    port, ops = free_port(), free_port()
    process = deployment.serve(port, ops, TOLLKEEPER_WORKERS="2")
    _, key = deployment.admin.customer()
    return Served(process, port, ops, {"authorization": f"Bearer {key}"})


def test_a_changed_configuration_is_in_force_for_the_next_call_and_a_wrong_one_is_said(
    deployment: Deployment, served: Served
) -> None:
    assert served.statuses("/v1/chat/completions") == {200}
    assert served.statuses("/v1/models") == {404}
    good, asked = deployment.config.read_text(), {**BODY, "stream": True}
    pause, chat = {"x-demo-pause-s": "1.5"}, "/v1/chat/completions"
    with served.client() as client, client.stream("POST", chat, json=asked, headers=pause) as under_way:
        events = under_way.iter_lines()
        assert next(events).startswith("data:")
        models = "  - {path: /v1/models, methods: [GET], upstream: llm, family: openai}\n"
        gone = good.replace(chat, "/v2/chat/completions")
        swapped(deployment, gone + models + "settings: {body_bytes_max: 1024, hold_ttl_s: 31}\n")
        left = "a restart is needed for TOLLKEEPER_HOLD_TTL_S"
        served.said("settings read again", "routes", "body_bytes_max", left)
        wait_until(lambda: served.statuses("/v1/models") == {200})
        assert served.statuses(chat) == {404}
        assert [line for line in events if line][-1] == "data: [DONE]", "it ends by the route it began with"
    before = len(served.process.said)
    swapped(deployment, good)
    served.process.popen.send_signal(signal.SIGHUP)
    wait_until(lambda: "settings read again" in served.process.said[before:], 30)
    wait_until(lambda: served.statuses("/v1/models") == {404})
    assert served.statuses(chat) == {200}
    for wrong, named in (
        (good.replace("upstream: llm,", "upstream: llama,"), "upstream 'llama' is not one of"),
        (good + "settings: {bodybytes: 12}\n", "settings.bodybytes='12' is not a setting"),
        (good + "routes: [", "not valid YAML"),
        (good.replace('"}', '", ca_file: /dev/null}'), "llm.ca_file: '/dev/null' cannot be used"),
    ):
        swapped(deployment, wrong)
        served.said("settings are kept as they were", named)
        assert served.statuses("/v1/chat/completions") == {200}
    wait_until(lambda: not served.facts()["configuration"])
    assert get(served.ops, "/readyz")[0] == 200, "what is in force serves"
    assert "tollkeeper_configuration_stale 1.0" in get(served.ops, "/metrics")[1]
    swapped(deployment, good)
    wait_until(lambda: served.facts()["configuration"])
    assert served.process.stop() == 0


def test_only_what_may_change_is_taken_over() -> None:
    running = Settings(workers=1, redis_url="redis://one").with_values(drain_s=5.0)
    written = Settings(workers=2, redis_url="redis://two").with_values(drain_s=7.0)
    renewal = Renewal(running, lambda: written)
    _, said = renewal.take(written)
    assert renewal.running == running.with_values(drain_s=7.0)
    assert said == "drain_s changed; a restart is needed for TOLLKEEPER_REDIS_URL, TOLLKEEPER_WORKERS"
    assert renewal.take(written)[1].startswith("nothing changed")
