"""A plain `serve` is told from one that wants the whole command line."""

from __future__ import annotations

import pytest

from gateway.run.serving import plain_options


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
