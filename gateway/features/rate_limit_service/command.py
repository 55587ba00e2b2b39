"""`tollkeeper rls`: Envoy's rate limit service, in front of the holds of a gateway."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def rls(
    config: Annotated[
        Path, typer.Option("--config", help="YAML file: which descriptors lead to which keys.")
    ],
    *,
    listen: Annotated[str, typer.Option(help="Address and port for gRPC.")] = "127.0.0.1:8081",
) -> None:
    """Serve Envoy's rate limit service (v3) over gRPC; every answer is a hold at the gateway of the file."""
    import uvloop  # each command loads what it needs

    from gateway.extras import loading
    from gateway.features.rate_limit_service.table import read_table
    from gateway.local.processes import run_to_end
    from gateway.settings.secret_files import Environment
    from gateway.telemetry import logs

    with loading("rls"):
        from gateway.features.rate_limit_service.server import serve
    table = read_table(config, Environment(os.environ))
    logs.configure()
    run_to_end(uvloop.run, serve(table, listen))
