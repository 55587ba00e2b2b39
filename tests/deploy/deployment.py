"""Keeper, gateways and an upstream as processes of their own, for tests that restart or reload gateways."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import free_port
from tests.deploy.processes import Admin, Process, get
from tests.waiting import HUNG_S, wait_until

ADMIN_TOKEN = "an-admin-token-of-tests"
CONFIG = """
upstreams:
  llm: {{base_url: "http://127.0.0.1:{upstream}"}}
routes:
  - {{path: /v1/chat/completions, upstream: llm, service: chat, family: openai, meter: openai_chat}}
"""


class Deployment:
    """Redis and PostgreSQL are given; everything else is started here."""

    def __init__(self, folder: Path, redis_url: str, database_url: str, **environ: str) -> None:
        self.folder = folder
        self.config = folder / "config.yaml"
        self.upstream_port = free_port()
        self.config.write_text(CONFIG.format(upstream=self.upstream_port))
        self.environ = {
            "TOLLKEEPER_REDIS_URL": redis_url, "TOLLKEEPER_DATABASE_URL": database_url,
            "TOLLKEEPER_ADMIN_TOKEN": ADMIN_TOKEN, "TOLLKEEPER_KEY_PEPPER": "a-pepper-of-tests-only",
        } | environ  # fmt: skip
        self.started: list[Process] = []
        assert self.start("migrate").ended() == 0
        admin_port = self.admin_port = free_port()
        self.keeper = self.start("keeper", "--admin-port", str(admin_port))
        self.start("demo-upstream", "--port", str(self.upstream_port))
        until_ready(self.keeper, admin_port)
        self.admin = Admin(admin_port, ADMIN_TOKEN)

    def start(self, *arguments: str, **environ: str) -> Process:
        """Any command, in a data directory of its own."""
        name = f"{arguments[0]}-{len(self.started)}"
        environ = self.environ | {"TOLLKEEPER_DATA_DIR": str(self.folder / name)} | environ
        made = Process(self.folder, name, list(arguments), environ)
        self.started.append(made)
        return made

    def serve(self, port: int, ops_port: int, **environ: str) -> Process:
        """A gateway, once it is ready."""
        where = ("--gateway-port", str(port), "--ops-port", str(ops_port))
        made = self.start(
            "serve", "--config", str(self.config), *where, TOLLKEEPER_OPS_HOST="127.0.0.1", **environ
        )
        until_ready(made, ops_port)
        return made

    def stop(self) -> None:
        """End whatever still runs."""
        for process in self.started:
            if process.running:
                process.popen.terminate()
        for process in self.started:
            process.ended()


def until_ready(process: Process, port: int) -> None:
    """Wait until it is ready; one that has ended never is, and said why."""

    def look() -> bool:
        assert process.running, process.said
        return answers(port)

    wait_until(look, HUNG_S)


def answers(port: int) -> bool:
    """Whether it is ready."""
    try:
        return get(port, "/readyz")[0] == 200
    except OSError:
        return False
