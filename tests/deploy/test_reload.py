"""SIGHUP to `serve`: another configuration is in force for the next call, or all of the old one stays."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp

import httpx2 as httpx
import pytest

from gateway.errors import SettingError
from gateway.run.reload import Renewal
from gateway.settings.settings import Settings
from tests.conftest import ValkeyServer, free_port
from tests.deploy.deployment import Deployment
from tests.deploy.processes import get
from tests.waiting import wait_until


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


def test_a_changed_configuration_is_taken_over_and_a_wrong_one_is_not(deployment: Deployment) -> None:
    port, ops = free_port(), free_port()
    good = deployment.config.read_text()
    swapped(deployment, good)
    serve = deployment.serve(port, ops, TOLLKEEPER_WORKERS="2")
    _, key = deployment.admin.customer()
    body = {"model": "demo-small", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
    headers = {"authorization": f"Bearer {key}"}

    def statuses(path: str) -> set[int]:
        """Of so many connections that each worker has some."""
        found = set()
        for _ in range(24):
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30) as client:
                asked = client.get(path) if path == "/v1/models" else client.post(path, json=body)
                found.add(asked.status_code)
        return found

    def said(*words: str) -> None:
        wait_until(lambda: any(all(word in line for word in words) for line in serve.said.splitlines()), 30)

    def facts() -> dict[str, bool]:
        return dict(json.loads(get(ops, "/readyz")[1])["dependencies"])

    assert statuses("/v1/chat/completions") == {200}
    assert statuses("/v1/models") == {404}
    with (
        httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client,
        client.stream(
            "POST", "/v1/chat/completions", json={**body, "stream": True}, headers={"x-demo-pause-s": "1.5"}
        ) as under_way,
    ):
        events = under_way.iter_lines()
        assert next(events).startswith("data:")
        models = "  - {path: /v1/models, methods: [GET], upstream: llm, family: openai}\n"
        chat = "service: chat, family: openai, meter: openai_chat"
        assert chat in good
        gone = good.replace("/v1/chat/completions", "/v2/chat/completions")
        swapped(deployment, gone + models + "settings: {body_bytes_max: 1024, hold_ttl_s: 31}\n")
        said(
            "settings read again", "routes", "body_bytes_max", "a restart is needed for TOLLKEEPER_HOLD_TTL_S"
        )
        wait_until(lambda: statuses("/v1/models") == {200})
        assert statuses("/v1/chat/completions") == {404}
        assert [line for line in events if line][-1] == "data: [DONE]", "it ends by the route it began with"

    for wrong, named in (
        (good.replace("upstream: llm,", "upstream: llama,"), "upstream 'llama' is not one of"),
        (good + "settings: {bodybytes: 12}\n", "settings.bodybytes='12' is not a setting"),
        (good + "routes: [", "not valid YAML"),
        (good.replace('"}', '", ca_file: /dev/null}'), "llm.ca_file: '/dev/null' cannot be used"),
    ):
        swapped(deployment, wrong)
        said("settings are kept as they were", named)
        assert statuses("/v1/models") == {200}
    wait_until(lambda: not facts()["configuration"])
    assert get(ops, "/readyz")[0] == 200, "what is in force serves"
    assert "tollkeeper_configuration_stale 1.0" in get(ops, "/metrics")[1]
    assert serve.running

    swapped(deployment, good)
    before = len(serve.said)
    serve.popen.send_signal(signal.SIGHUP)
    wait_until(lambda: "settings read again" in serve.said[before:], 30)
    wait_until(lambda: statuses("/v1/models") == {404})
    wait_until(lambda: facts()["configuration"])
    assert statuses("/v1/chat/completions") == {200}
    assert serve.stop() == 0


def test_only_what_may_change_is_taken_over() -> None:
    running = Settings(workers=1, redis_url="redis://one").with_values(drain_s=5.0)
    written = Settings(workers=2, redis_url="redis://two").with_values(drain_s=7.0)
    renewal = Renewal(running, lambda: written)
    said = renewal.renew()
    assert renewal.running == running.with_values(drain_s=7.0)
    assert said == "drain_s changed; a restart is needed for TOLLKEEPER_REDIS_URL, TOLLKEEPER_WORKERS"
    assert renewal.renew().startswith("nothing changed")


def test_nothing_is_taken_over_of_what_cannot_be_read() -> None:
    running = Settings().with_values(drain_s=5.0)

    def read() -> Settings:
        raise SettingError

    renewal = Renewal(running, read)
    with pytest.raises(SettingError):
        renewal.renew()
    assert renewal.running is running
