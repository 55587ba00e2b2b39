"""Rate limit service: Envoy asks over gRPC whether a request may pass, and holds at a gateway decide."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.feature import Feature

if TYPE_CHECKING:
    import typer


def _commands(app: typer.Typer) -> None:
    from gateway.features.rate_limit_service.command import rls  # noqa: PLC0415  # of the command line alone

    app.command()(rls)


FEATURE = Feature(name="rate_limit_service", commands=_commands)
