"""A plain `serve` is told from one that wants the whole command line; what is told of its workers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.local.data_directory import DataDirectory
from gateway.local.ports import Voice
from gateway.local.processes import DIED, HUNG
from gateway.run.reload import Renewal
from gateway.run.serving import plain_options, tell_overruled
from gateway.run.supervisor import up
from gateway.run.supervisor.servers import Supervisor
from gateway.settings.settings import load
from gateway.telemetry import metrics as tallies
from tests.waiting import eventually


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("", {}),
        ("--config /etc/x.yaml --workers 2", {"config": "/etc/x.yaml", "workers": "2"}),
        (
            "--config=/etc/x.yaml --redis-url=redis://a?b=c",
            {"config": "/etc/x.yaml", "redis_url": "redis://a?b=c"},
        ),
        ("--gateway-port 0 --ops-port 0", {"gateway_port": "0", "ops_port": "0"}),
    ],
)
def test_plain_options_are_read(line: str, options: dict[str, str]) -> None:
    assert plain_options(line.split()) == options


@pytest.mark.parametrize(
    "line",
    [
        "--help",
        "--workers",
        "--workers two",
        "--workers -1",
        "--worker 2",
        "config x",
        "x",
        "--config a --config b",
    ],
)
def test_whatever_else_is_left_to_the_whole_command_line(line: str) -> None:
    assert plain_options(line.split()) is None


async def test_restarts_that_cannot_be_told_end_nothing_and_are_told_once_they_can(tmp_path: Path) -> None:
    settings = load({}).with_values(data_dir=str(tmp_path / "data"))
    settings.metrics_dir.parent.mkdir(parents=True, exist_ok=True)
    settings.metrics_dir.write_text("in the way")
    supervisor = Supervisor(DataDirectory(tmp_path), Voice())
    watching = asyncio.ensure_future(up._watching(supervisor, Renewal(settings, lambda: settings)))
    try:
        for _ in range(5):  # a first try, at once
            await asyncio.sleep(0)
        settings.metrics_dir.unlink()
        await eventually(lambda: tallies.collect(settings.metrics_dir))
        collected = tallies.collect(settings.metrics_dir)
        assert {name: collected[name] for name in ("worker_restarts", "configuration_stale")} == {
            "worker_restarts": [[DIED, 0], [HUNG, 0]], "configuration_stale": 0,
        }  # fmt: skip
        assert ["worker_restarts", 0.0] in collected["last_timestamp_seconds"]
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def test_settings_a_file_states_in_vain_are_told_by_name_and_never_by_value(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"settings: {{workers: 4, admin_token: {'a' * 20}, log_level: debug}}")
    said: list[str] = []
    tell_overruled(load({"TOLLKEEPER_LOG_LEVEL": "debug"}, path), said.append)
    assert said == []
    environ = {"TOLLKEEPER_WORKERS": "2", "TOLLKEEPER_ADMIN_TOKEN": "b" * 20}
    tell_overruled(load(environ, path), said.append)
    [line] = said
    assert (str(path) in line, line.endswith(": TOLLKEEPER_ADMIN_TOKEN, TOLLKEEPER_WORKERS")) == (True, True)
    assert not any(value * 20 in line for value in "ab")
