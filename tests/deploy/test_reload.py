"""SIGHUP to `serve`: another configuration is in force for the next call, or all of the old one stays."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from gateway.errors import SettingError
from gateway.run.reload import Renewal
from gateway.settings.settings import Settings
from tests.conftest import ValkeyServer, free_port
from tests.deploy.deployment import Deployment
from tests.deploy.processes import Process
from tests.waiting import wait_until


@pytest.fixture
def deployment(
    tmp_path: Path, own_valkey: Callable[..., ValkeyServer], database: str
) -> Iterator[Deployment]:
    one = Deployment(tmp_path, own_valkey("--appendonly", "yes").url, database)
    yield one
    one.stop()


def hung_up(serve: Process) -> str:
    """SIGHUP, and what it says of it."""
    before = len(serve.said)
    serve.popen.send_signal(signal.SIGHUP)
    found = wait_until(lambda: [line for line in serve.said[before:].splitlines() if "settings" in line], 30)
    return str(found[0])


def test_a_changed_configuration_is_taken_over_and_a_wrong_one_is_not(deployment: Deployment) -> None:
    port = free_port()
    serve = deployment.serve(port, free_port())
    _, key = deployment.admin.customer()
    body = {"model": "demo-small", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30) as client:

        def status(path: str) -> int:
            if path == "/v1/models":
                return client.get(path).status_code
            return client.post(path, json=body).status_code

        assert status("/v1/chat/completions") == 200
        assert status("/v1/models") == 404

        good = deployment.config.read_text()
        models = "  - {path: /v1/models, methods: [GET], upstream: llm, family: openai}\n"
        limits = "settings: {body_bytes_max: 1024, workers: 7}\n"
        deployment.config.write_text(good + models + limits)
        said = hung_up(serve)
        assert "read again" in said
        assert "routes" in said
        assert "body_bytes_max" in said
        assert "a restart is needed for TOLLKEEPER_WORKERS" in said
        wait_until(lambda: status("/v1/models") == 200)
        assert status("/v1/chat/completions") == 200

        for wrong, named in (
            (good.replace("upstream: llm,", "upstream: llama,"), "upstream 'llama' is not one of"),
            (good + "settings: {body_bytes_max: 12}\n", "settings.body_bytes_max='12' is not valid"),
            (good + "settings: {bodybytes: 12}\n", "settings.bodybytes='12' is not a setting"),
            (good.replace('"http', '"gopher'), "upstreams.llm.base_url: not a base URL"),
            (good + "routes: [", "not valid YAML"),
            (good.replace('"}', '", ca_file: /dev/null}'), "llm.ca_file: '/dev/null' cannot be used"),
        ):
            deployment.config.write_text(wrong)
            said = hung_up(serve)
            assert "settings are kept as they were" in said
            assert named in said
            assert status("/v1/models") == 200
            assert status("/v1/chat/completions") == 200
        assert serve.running

        deployment.config.write_text(good)
        assert "read again" in hung_up(serve)
        wait_until(lambda: status("/v1/models") == 404)
        assert status("/v1/chat/completions") == 200
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
