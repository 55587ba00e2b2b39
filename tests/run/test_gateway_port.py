"""Settings that a worker is told while it serves."""

from __future__ import annotations

from typing import Any, cast

from gateway.http.server.server import DataPlane
from gateway.issuers.callers import TokenCallers
from gateway.run.gateway_port import GatewayPort
from gateway.settings.settings import load, to_json


class _Plane:
    """A data plane that cannot serve by what it is told."""

    def __init__(self) -> None:
        self.wrong = True

    def renew(self, *_: object, **__: object) -> None:
        """As `DataPlane.renew`."""
        if self.wrong:
            raise LookupError("sk-secret")


class _Tokens:
    def renew(self, _: object) -> None:
        """As `TokenCallers.renew`."""


async def test_settings_that_cannot_be_served_by_are_told_until_others_can_be() -> None:
    settings, plane, said = load({}), _Plane(), list[str]()

    def log(event: str, **facts: Any) -> None:
        said.append(f"{event} {facts}")

    port = GatewayPort(settings, cast("DataPlane", plane), cast("TokenCallers", _Tokens()), log)
    assert not port.is_stale
    port.renew(to_json(settings))
    assert port.is_stale
    assert said == ["settings cannot be served by, and are kept as they were {'error': 'LookupError'}"]
    port.renew(b"{")
    assert port.is_stale
    plane.wrong = False
    port.renew(to_json(settings))
    assert not port.is_stale
