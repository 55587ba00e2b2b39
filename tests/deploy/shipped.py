"""What the project ships as examples of how it is run: each process of each, its variables and its file.

Passwords are filled in, and servers and files of this machine stand in place of those that are named there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.deploy import helm
from tests.deploy.manifests import containers, environment, pod
from tests.tree import ROOT

DEPLOY = ROOT / "deploy"
ROLES = ("serve", "keeper")
PEPPER, TOKEN = "a-pepper-of-the-examples", "an-admin-token-of-the-examples"
EXAMPLE = DEPLOY / "config.example.yaml"


@dataclass(frozen=True)
class Servers:
    """Where Redis and PostgreSQL are here; both users of Redis, and the keeper's of PostgreSQL."""

    gateway_redis: str
    keeper_redis: str
    database: str


@dataclass(frozen=True)
class Program:
    """One process of an example: of which files it is made, and what it is started with."""

    name: str
    of: tuple[Path, ...]
    role: str
    environ: dict[str, str]
    config: Path | None = None


def by_hand(servers: Servers) -> Iterator[Program]:
    """`serve` with the example of a configuration, as its first lines have it."""
    given = {"TOLLKEEPER_REDIS_URL": servers.gateway_redis, "TOLLKEEPER_KEY_PEPPER": PEPPER}
    yield Program("config.example.yaml", (EXAMPLE,), "serve", given, EXAMPLE)


def of_compose(servers: Servers) -> Iterator[Program]:
    """Gateway and keeper of the compose file, by its example of an environment, filled in."""
    file, example = DEPLOY / "compose.yaml", DEPLOY / "compose.env.example"
    said = dict(re.findall(r"^(\w+)=(.*)$", example.read_text(), re.MULTILINE))
    said |= {"KEY_PEPPER": PEPPER, "ADMIN_TOKEN": TOKEN}
    services: dict[str, dict[str, Any]] = yaml.safe_load(file.read_text())["services"]
    for name, service in services.items():
        role = service.get("command", [""])[0]
        if role not in ROLES:
            continue
        environ = {each: interpolated(str(text), said) for each, text in service["environment"].items()}
        config = _mounted(service, "--config")
        yield Program(f"compose {name}", (file, example), role, _here(environ, role, servers), config)


def of_chart(servers: Servers, folder: Path) -> Iterator[Program]:
    """Gateway and keeper of the chart, by its values as they are."""
    [objects] = helm.rendered({})
    assert not isinstance(objects, str), objects
    files = tuple(path for path in helm.CHART.rglob("*") if path.is_file())
    for each in objects:
        if each["kind"] != "Deployment":
            continue
        spec, name = pod(each), each["metadata"]["name"]
        for container in containers(spec):
            role = container["args"][0]
            environ = environment(objects, spec, container, _secrets(servers), folder / name)
            yield Program(f"chart {name}", files, role, _here(environ, role, servers))


def of_units(servers: Servers) -> Iterator[Program]:
    """The units of systemd, whose files of settings are the operator's own."""
    for unit in sorted((DEPLOY / "systemd").glob("*.service")):
        text = unit.read_text()
        command = re.findall(r"^ExecStart=\S+/tollkeeper (\w+)(.*)$", text, re.MULTILINE)
        for role, words in (each for each in command if each[0] in ROLES):
            [said] = re.findall(r"^Environment=(.*)$", text, re.MULTILINE)
            environ = dict(each.split("=", 1) for each in said.split())
            given = {"TOLLKEEPER_REDIS_URL": "", "TOLLKEEPER_KEY_PEPPER": PEPPER}
            if role == "keeper":
                given |= {"TOLLKEEPER_DATABASE_URL": "", "TOLLKEEPER_ADMIN_TOKEN": TOKEN}
            config = EXAMPLE if "--config" in words else None
            yield Program(unit.name, (unit,), role, _here(environ | given, role, servers), config)


def interpolated(text: str, said: Mapping[str, str]) -> str:
    """A value of a compose file with its variables replaced: `${NAME}`, `${NAME:-else}`, `${NAME:?why}`."""

    def value(found: re.Match[str]) -> str:
        name, otherwise = found[1], found[2] or ""
        return said.get(name) or otherwise.removeprefix(":-").partition(":?")[0]

    return re.sub(r"\$\{(\w+)(:[-?][^}]*)?\}", value, text)


def _mounted(service: Mapping[str, Any], option: str) -> Path | None:
    """The file of ours that a container has where an option names it."""
    words = service["command"]
    if option not in words:
        return None
    there = words[words.index(option) + 1]
    [ours] = [each.split(":")[0] for each in service["volumes"] if each.split(":")[1] == there]
    return (DEPLOY / ours).resolve()


def _secrets(servers: Servers) -> dict[str, str]:
    """What the Secrets of the chart hold, by name and key."""
    return {
        "tollkeeper-gateway/redis-url": servers.gateway_redis,
        "tollkeeper-gateway/key-pepper": PEPPER,
        "tollkeeper-keeper/redis-url": servers.keeper_redis,
        "tollkeeper-keeper/database-url": servers.database,
        "tollkeeper-keeper/admin-token": TOKEN,
        "tollkeeper-migrate/database-owner-url": servers.database,
    }


def _here(environ: Mapping[str, str], role: str, servers: Servers) -> dict[str, str]:
    """The same with servers of this machine."""
    redis = servers.gateway_redis if role == "serve" else servers.keeper_redis
    urls = {"TOLLKEEPER_REDIS_URL": redis, "TOLLKEEPER_DATABASE_URL": servers.database}
    return {**environ, **{name: url for name, url in urls.items() if name in environ}}
