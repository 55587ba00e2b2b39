"""Settings that a worker is told while it serves."""

from __future__ import annotations

from typing import Any, cast

from gateway.core.issuers import Issuer
from gateway.http.server.server import DataPlane
from gateway.issuers.callers import TokenCallers
from gateway.run.gateway_worker import GatewayPort
from gateway.settings.settings import load, to_json

ISSUER = Issuer("https://issuer.example", ("us",))


class _Plane:
    """A data plane that cannot serve by what it is told; it knows whether it accepts tokens."""

    def __init__(self) -> None:
        self.wrong = True
        self.accepts_tokens = False

    def renew(self, *_: object, accepts_tokens: bool, **__: object) -> None:
        """As `DataPlane.renew`."""
        if self.wrong:
            raise LookupError("sk-secret")
        self.accepts_tokens = accepts_tokens


class _Tokens:
    """Callers behind tokens, who know their issuers."""

    def __init__(self) -> None:
        self.issuers: tuple[Issuer, ...] = ()

    def renew(self, issuers: tuple[Issuer, ...]) -> None:
        """As `TokenCallers.renew`."""
        self.issuers = issuers


async def test_settings_that_cannot_be_served_by_are_told_and_all_of_those_before_stay() -> None:
    settings, plane, tokens, said = load({}), _Plane(), _Tokens(), list[str]()
    wanted = to_json(settings.with_values(issuers=(ISSUER,)))

    def log(event: str, **facts: Any) -> None:
        said.append(f"{event} {facts}")

    port = GatewayPort(settings, cast("DataPlane", plane), cast("TokenCallers", tokens), log)
    assert not port.sent.is_stale
    port.sent.hear(wanted)
    assert port.sent.is_stale
    kept = "settings cannot be served by, and are kept as they were"
    assert said == [f"{kept} {{'error': 'LookupError', 'level': 'error'}}"]
    assert (plane.accepts_tokens, tokens.issuers) == (False, ())
    port.sent.hear(b"{")
    assert port.sent.is_stale
    plane.wrong = False
    port.sent.hear(wanted)
    assert not port.sent.is_stale
    assert (plane.accepts_tokens, tokens.issuers) == (True, (ISSUER,))
