"""One host: the compose file is valid, safe and fits the program; so do the units of systemd."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from psycopg.conninfo import conninfo_to_dict

from gateway.ops import doctor_redis
from gateway.run.serving import SETTLING_S_MAX
from gateway.settings import settings
from persistence.schema import migrate
from tests.conftest import free_port, postgres_bin, valkey_binary
from tests.deploy.programs import run
from tests.tree import ROOT
from tests.waiting import HUNG_S, wait_until

DEPLOY = ROOT / "deploy"
PASSWORD = "correct-horse-battery"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
EXPOSURE_MAX = 2.5  # of 10, as `systemd-analyze security` counts


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return found


def own() -> dict[str, Any]:
    """The services that are ours."""
    return {name: each for name, each in compose()["services"].items() if name not in {"redis", "postgres"}}


def test_compose_file_is_valid() -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    schema = ("--builtin-schema", "vendor.compose-spec")
    assert "ok" in run(str(checker), *schema, str(DEPLOY / "compose.yaml"))


def test_every_variable_of_the_compose_file_is_a_setting_or_given() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    example = (DEPLOY / "compose.env.example").read_text().splitlines()
    given = dict(line.split("=", 1) for line in example if "=" in line and not line.startswith("#"))
    needed = set(re.findall(r"(?<!\$)\$\{(\w+):\?", text))
    assert needed <= given.keys()
    assert given.keys() <= set(re.findall(r"(?<!\$)\$\{(\w+)", text))
    for each in own().values():
        for name in each["environment"]:
            assert name in given or name.removeprefix("TOLLKEEPER_").lower() in settings.NAMES, name


def test_the_runbook_names_what_settings_env_would_say_in_vain() -> None:
    stated = {
        name
        for each in own().values()
        if "env_file" in each
        for name in each["environment"]
        if name.startswith("TOLLKEEPER_")
    }
    page = (ROOT / "docs" / "operate" / "install.md").read_text()
    (paragraph,) = (each for each in page.split("\n\n") if each.startswith("**Compose.**"))
    given_as_example = {"TOLLKEEPER_PARTITIONS_BY"}
    assert {*re.findall(r"TOLLKEEPER_\w+", paragraph)} - given_as_example == stated


def test_every_setting_reaches_who_may_have_to_know_it() -> None:
    """How long rows are kept, say: keepers drop and tell by what the archive goes by."""
    files = {name: each.get("env_file") for name, each in own().items()}
    given = [{"path": "settings.env", "required": False}]
    assert {name for name, file in files.items() if file == given} == {
        "gateway",
        "keeper",
        "backup",
        "archive",
    }
    units = {
        unit.stem: re.findall(r"^EnvironmentFile=(.+)$", unit.read_text(), re.MULTILINE) for unit in UNITS
    }
    assert units == {name: [f"/etc/tollkeeper/{name.removeprefix('tollkeeper-')}.env"] for name in units}


def test_containers_can_write_only_where_they_should() -> None:
    for name, each in own().items():
        assert each["read_only"] is True, name
        assert each["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in each["security_opt"]
    assert "postgres" not in own()["gateway"]["networks"]
    outside = [port for each in compose()["services"].values() for port in each.get("ports", ())]
    assert [port for port in outside if not port.startswith("127.0.0.1:")] == ["8080:8080"]
    grace_s = float(own()["gateway"]["environment"]["TOLLKEEPER_SHUTDOWN_GRACE_S"])
    assert float(own()["gateway"]["stop_grace_period"].removesuffix("s")) > grace_s + SETTLING_S_MAX


def test_each_starts_after_what_it_needs() -> None:
    needs = {name: each.get("depends_on", {}) for name, each in compose()["services"].items()}
    assert needs["migrate"]["postgres"]["condition"] == "service_healthy"
    assert needs["keeper"]["migrate"]["condition"] == "service_completed_successfully"
    assert needs["gateway"]["keeper"]["condition"] == "service_healthy"
    for each in needs.values():
        for name, need in each.items():
            assert need["condition"] != "service_healthy" or "healthcheck" in compose()["services"][name]


def test_redis_of_the_compose_file_lets_in_who_it_should(tmp_path: Path) -> None:
    """Its very command, with folders of this machine in place of the container's."""
    service = compose()["services"]["redis"]
    shell, options, script = service["command"]
    port = free_port()
    script = script.replace("$$", "$").replace("/run/", f"{tmp_path}/").replace("/data", str(tmp_path))
    script = script.replace("/etc/tollkeeper/", f"{DEPLOY}/").replace("--dir", f"--port {port} --dir")
    passwords = {"REDIS_KEEPER_PASSWORD": PASSWORD, "REDIS_GATEWAY_PASSWORD": f"{PASSWORD}2"}
    environ = passwords | {"REDIS_MEMORY": "64mb"}
    assert environ.keys() == service["environment"].keys()
    environ["PATH"] = f"{valkey_binary().parent}:{os.environ['PATH']}"
    server = subprocess.Popen([shell, options, script], env=environ, stdout=subprocess.DEVNULL)
    try:
        health = dict(zip(service["healthcheck"]["test"], service["healthcheck"]["test"][1:], strict=False))
        watching = redis.Redis(port=port, username=health["--user"], password=health["--pass"])

        def answers() -> bool:
            try:
                return bool(watching.ping())
            except redis.ConnectionError:
                return False

        wait_until(answers)
        with pytest.raises(redis.exceptions.NoPermissionError):
            watching.get("tk:x")
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port).ping()
        ours = redis.Redis(port=port, username="tollkeeper-keeper", password=PASSWORD)
        assert ours.set("tk:x", "1")
        with pytest.raises(redis.exceptions.NoPermissionError):
            ours.set("other", "1")
        with pytest.raises(redis.exceptions.NoPermissionError):
            ours.flushall()
        gateway = redis.Redis(port=port, username="tollkeeper-gateway", password=f"{PASSWORD}2")
        assert ours.set("tk:id:x", "1")
        assert gateway.get("tk:id:x") == b"1"
        for name in ("tk:id:y", "tk:org:1", "tk:catalogue", "tk:prices", "tk:verified:{p00}", "tk:other"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                gateway.set(name, "1")
        with pytest.raises(redis.exceptions.NoPermissionError):
            gateway.function_load("#!lua name=mine\nredis.register_function('mine', function() return 1 end)")
        memory: Any = ours.info("memory")
        assert memory["maxmemory_policy"] == "noeviction"
        assert memory["maxmemory"] == 64 * 1024 * 1024
        persistence: Any = ours.info("persistence")
        assert persistence["aof_enabled"] == 1
    finally:
        server.terminate()
        server.wait(HUNG_S)


def test_only_migration_backup_and_archive_of_the_compose_file_are_the_owner() -> None:
    known = {name: each["environment"] for name, each in own().items()}
    assert "postgresql://tollkeeper_writer:" in known["keeper"]["TOLLKEEPER_DATABASE_URL"]
    assert [name for name in known if "TOLLKEEPER_DATABASE_OWNER_URL" in known[name]] == [
        "migrate",
        "backup",
        "archive",
    ]
    assert [name for name in known if "POSTGRES_PASSWORD" in str(known[name])] == [
        "migrate",
        "backup",
        "archive",
        "writer",
    ]


def test_the_writer_of_the_compose_file_is_let_in(database: str) -> None:
    """By its very command, twice, with a server of this machine in place of the container's."""
    service = compose()["services"]["writer"]
    shell, options, script = service["command"]
    where = conninfo_to_dict(database)
    name = f"{where['dbname']}_writer"
    script = script.replace("$$", "$").replace("tollkeeper_writer", name)
    script = script.replace(
        "-h postgres -U tollkeeper -d tollkeeper",
        f"-h {where['host']} -p {where['port']} -U {where['user']} -d {where['dbname']}",
    )
    for password in ('it\'s "one"', "another"):
        environ = {"POSTGRES_PASSWORD": "none", "POSTGRES_WRITER_PASSWORD": password}
        assert environ.keys() == service["environment"].keys()
        environ["PATH"] = f"{postgres_bin()}:{os.environ['PATH']}"
        subprocess.run([shell, options, script], env=environ, check=True)
    migrate.upgrade(database)
    as_writer = database.replace("postgres@", f"{name}@")
    assert doctor_redis.postgresql_user_findings(as_writer, as_writer)[0][0]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_are_valid_and_confined(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    here = tmp_path / unit.name
    here.write_text(unit.read_text().replace("/opt/tollkeeper/bin/tollkeeper", "/bin/true"))
    assert run("systemd-analyze", "verify", str(here)) == ""
    said = run("systemd-analyze", "security", "--offline=yes", "--no-pager", str(here))
    exposure = re.search(r"exposure level for \S+ ([\d.]+)", said)
    assert exposure is not None
    assert float(exposure[1]) <= EXPOSURE_MAX


def test_the_socket_of_systemd_is_the_gateways_port(tmp_path: Path) -> None:
    unit = DEPLOY / "systemd" / "tollkeeper-gateway.socket"
    usual = settings.Settings()
    assert f"\nListenStream={usual.gateway_host}:{usual.gateway_port}\n" in unit.read_text()
    assert f" {unit.name}\n" in unit.with_suffix(".service").read_text()  # starts after it
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    shutil.copy(unit, tmp_path)
    service = unit.with_suffix(".service")
    text = service.read_text().replace("/opt/tollkeeper/bin/tollkeeper", "/bin/true")
    (tmp_path / service.name).write_text(text)
    assert run("systemd-analyze", "verify", str(tmp_path / unit.name)) == ""


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_start_commands_that_exist_and_give_them_time(unit: Path) -> None:
    lines = dict(line.split("=", 1) for line in unit.read_text().splitlines() if re.match(r"\w+=", line))
    started = lines["ExecStart"].split()
    assert started[0] == "/opt/tollkeeper/bin/tollkeeper"
    assert started[1] == unit.stem.removeprefix("tollkeeper-").replace("gateway", "serve")
    assert float(lines["TimeoutStopSec"]) > settings.Settings().shutdown_grace_s + SETTLING_S_MAX
    if lines["Type"] == "oneshot":  # its timer starts it again
        assert unit.with_suffix(".timer").exists()
        return
    # A database that is away for an hour is no reason to stay down for ever.
    assert (lines["Restart"], lines["StartLimitIntervalSec"]) == ("always", "0")
    assert ("ExecReload" in lines) is (started[1] == "serve")


def test_the_user_may_use_every_command_that_is_used(valkey: str) -> None:
    """And none that is not: what is allowed and what the sources name are the same."""
    (user,) = re.findall(r"^user tollkeeper-keeper .*", (DEPLOY / "users.acl").read_text(), re.MULTILINE)
    allowed = {word[1:].partition("|")[0].upper() for word in user.split() if word.startswith("+")}
    with redis.Redis.from_url(valkey) as client:
        client.response_callbacks.pop("COMMAND")  # it expects another answer
        there = {name.decode().upper() for name in client.execute_command("COMMAND", "LIST")}
    named = {
        match
        for path in [*(ROOT / "gateway").rglob("*.py"), *(ROOT / "lua").rglob("*.lua")]
        for match in re.findall(r"""(?:b"|call\('|call\(\s*')([A-Z]{2,})["']""", path.read_text())
    }
    assert allowed == (named & there) - {"AUTH"}  # which everybody may
