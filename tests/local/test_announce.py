"""What `up` tells a person who has never seen it."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.local.ports import Voice

FACTS: dict[str, Any] = {
    "gateway_url": "http://127.0.0.1:8080", "admin_url": "http://127.0.0.1:8081", "admin_token": "secret",
    "api_key": "tk_x", "data_dir": ".tollkeeper",
}  # fmt: skip


@pytest.mark.parametrize("key", ["tk_x", ""])
def test_the_console_comes_first_with_what_opens_it(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    Voice().ready(FACTS | {"api_key": key})
    first, second, *others = filter(None, map(str.strip, capsys.readouterr().out.splitlines()))
    assert first.split() == ["Console", "http://127.0.0.1:8081"]
    assert second.split() == ["Admin", "token", "secret"]
    assert any("curl" in line for line in others) == bool(key)
