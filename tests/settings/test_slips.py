"""Slips: settings that are valid each by itself, and hardly meant so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.errors import SettingError
from gateway.settings.checking import PORTS
from gateway.settings.settings import Settings, load
from gateway.settings.slips import slips

URL = "https://u.example"
HUSH = "hush-hush-hush-hush"
OWN = {"base_url": f"{URL}/v1", "family": "openai"}
OWN_MODELS = [{"name": "m", "targets": [{"upstream": "own"}]}]
Written = Callable[..., Settings]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Return a function that loads variables, with a configuration file of these members."""

    def read(environ: dict[str, str] | None = None, **document: object) -> Settings:
        path = tmp_path / "config.yaml"
        path.write_text(json.dumps(document))
        return load(environ or {}, path)

    return read


def told(settings: Settings, role: str = "serve") -> str:
    """Return the only slip; empty if there is none."""
    lines = list(slips(settings, role))
    assert "hush" not in "".join(lines)
    [line] = lines or [""]
    return line


@pytest.mark.parametrize(
    ("role", "names"), [("serve", ("GATEWAY_PORT", "OPS_PORT")), ("all", ("GATEWAY_PORT", "ADMIN_PORT"))]
)
def test_load_refuses_the_same_port_for_two_purposes_of_a_process(role: str, names: tuple[str, str]) -> None:
    one, other = (f"TOLLKEEPER_{name}" for name in names)
    with pytest.raises(SettingError) as refused:
        load({one: "7000", other: "7000"}, role=role)
    assert refused.value.message == (
        f"{one} and {other} are both 7000: expected different ports, or 0 for any free one"
    )
    with pytest.raises(SettingError, match=f"{one} and {other} are both "):
        load({one: str(getattr(load({}), PORTS[role][1]))}, role=role)  # the other's default
    assert load({one: "0", other: "0"}, role=role).gateway_port == 0
    assert load({one: "7000", other: "7001"}, role=role).gateway_port == 7000


def test_load_takes_the_same_port_for_two_processes() -> None:
    shared = {"TOLLKEEPER_ADMIN_PORT": "9464", "TOLLKEEPER_OPS_PORT": "9464"}
    assert {load(shared, role=role).ops_port for role in ("serve", "keeper", "all", "")} == {9464}


@pytest.mark.parametrize(
    ("document", "segment"),
    [
        ({"upstreams": {"openai": {"base_url": f"{URL}/v1"}}}, "v1"),
        ({"upstreams": {"openai": {"base_url": f"{URL}/api/v1/"}}}, "v1"),
        ({"upstreams": {"gemini": {"base_url": f"{URL}/v1beta"}}}, "v1beta"),
        ({"upstreams": {"own": {"base_url": f"{URL}/api", "family": "ollama"}}}, "api"),
        ({"upstreams": {"own": OWN}}, "v1"),
        ({"upstreams": {"own": {"base_url": f"{URL}/v1"}}, "models": OWN_MODELS}, "v1"),
        (
            {
                "upstreams": {"own": {"base_url": f"{URL}/v1"}},
                "services": {"sms": {"upstream": "own", "paths": ["/v1/*"]}},
            },
            "v1",
        ),
        ({"upstreams": {"own": OWN | {"path": "/v1/{operation}"}}, "models": OWN_MODELS}, "v1"),
        ({"upstreams": {"own": OWN | {"path": "/{path}"}}, "models": OWN_MODELS}, "v1"),
    ],
)
def test_slips_name_a_base_url_with_the_first_segment_of_its_paths(
    written: Written, document: dict[str, object], segment: str
) -> None:
    line = told(written(**document))
    assert f"ends in /{segment}, and so begin the paths of calls" in line
    assert line.endswith(f"Leave /{segment} out")
    assert told(written(**document), "keeper") == ""


@pytest.mark.parametrize(
    "document",
    [
        {"upstreams": {"openai": {"base_url": f"{URL}/api"}}},
        {"upstreams": {"own": {"base_url": f"{URL}/v1"}}, "services": {"sms": {"upstream": "own"}}},
        {"upstreams": {"own": {"base_url": f"{URL}/v1"}}},
        {"upstreams": {"own": OWN | {"path": "/openai/{path}"}}, "models": OWN_MODELS},
    ],
)
def test_slips_pass_a_base_url_with_another_segment_than_its_paths(
    written: Written, document: dict[str, object]
) -> None:
    assert told(written(**document)) == ""


def test_slips_name_a_shared_base_url_once() -> None:
    line = told(load({}).with_upstream(f"{URL}/v1"), "all")
    assert line.startswith(f"upstreams openai, anthropic, gemini: the base URL {URL}/v1 ends in /v1, and so")


@pytest.mark.parametrize(
    ("text", "is_told"),
    [
        ("Bearer $OPENAI_API_KEY", True), ("$(OPENAI_API_KEY)", True), ("$KEY_2", True),
        ("Bearer ${KEY}", False), ("Bearer $$KEY", False), ("hush$WORD", False), ("Bearer $hush", False),
    ],
)  # fmt: skip
def test_slips_name_a_place_with_an_unreplaced_variable(
    tmp_path: Path, written: Written, text: str, is_told: bool
) -> None:
    upstreams = {"own": {"base_url": URL, "headers": {"x-key": text}}}
    place = f"{tmp_path / 'config.yaml'}: upstreams: own: headers: x-key"
    right = "write ${NAME} for a variable, and $$ for a dollar sign"
    line = f"{place} has a $ before a name, which is taken as it stands: {right}"
    assert told(written({"KEY": HUSH}, upstreams=upstreams)) == (line if is_told else "")


@pytest.mark.parametrize(
    ("name", "headers", "right"),
    [
        ("openai", {"Authorization": HUSH}, "openai expects `authorization: Bearer KEY`"),
        ("anthropic", {"authorization": HUSH}, "anthropic expects `x-api-key: KEY`"),
        ("openai", {"authorization": f"Bearer {HUSH}"}, ""),
        ("anthropic", {"x-api-key": HUSH}, ""),
        ("own", {"authorization": HUSH}, ""),
    ],
)
def test_slips_name_an_authorization_without_the_scheme_of_its_api(
    written: Written, name: str, headers: dict[str, str], right: str
) -> None:
    line = told(written(upstreams={name: {"base_url": URL, "headers": headers}}))
    place = f"upstreams.{name}.headers.authorization"
    assert line == (f"{place} is one word, without a scheme: {right}" if right else "")


def test_slips_name_an_authorization_of_several_keys(written: Written) -> None:
    own = {"base_url": URL, "family": "openai", "keys": [{"env": "KEY"}]}
    assert told(written({"KEY": HUSH}, upstreams={"own": own})) == ""
    placed = {"own": own | {"headers": {"authorization": "{key}"}}}
    assert "upstreams.own.headers.authorization is one word" in told(written({"KEY": HUSH}, upstreams=placed))


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY"])
def test_slips_name_a_proxy_without_a_scheme(written: Written, variable: str) -> None:
    said = "has no scheme and is taken as http://: begin it with http://, or https:// where the proxy itself"
    assert told(load({variable: "us:hush@proxy.test:3128"})).startswith(f"{variable} {said}")
    assert told(load({variable: "http://proxy.test:3128"})) == ""
    own = {"own": {"base_url": URL, "proxy": "proxy.test:3128"}}
    assert told(written(upstreams=own)).startswith(f"upstreams.own.proxy {said}")
    assert told(written(upstreams={"own": own["own"] | {"proxy": "none"}})) == ""


@pytest.mark.parametrize("role", ["serve", "keeper", "all"])
def test_slips_name_servers_of_up_beside_a_redis_url(role: str) -> None:
    environ = {"TOLLKEEPER_REDIS_SERVERS": "3", "TOLLKEEPER_REDIS_URL": "redis://h"}
    line = "it is how many servers `up` starts, where TOLLKEEPER_REDIS_URL is not set"
    assert told(load(environ), role) == f"TOLLKEEPER_REDIS_SERVERS=3 has no effect: {line}"
    assert told(load(environ | {"TOLLKEEPER_REDIS_URL": "redis+shards://a,b,c"}), role) == ""
    assert told(load({"TOLLKEEPER_REDIS_SERVERS": "3"}), "all") == ""


def test_slips_name_a_setting_without_its_other_half() -> None:
    settings = load({"TOLLKEEPER_SMTP_FROM": "a@example.com"})
    assert (
        told(settings, "keeper") == "TOLLKEEPER_SMTP_FROM has no effect, since TOLLKEEPER_SMTP_URL is not set"
    )
    assert told(settings, "serve") == ""
    assert told(load({"TOLLKEEPER_SMTP_FROM": "a@b.example", "TOLLKEEPER_SMTP_URL": "smtp://h"}), "all") == ""
    agents = load({"TOLLKEEPER_AGENTS_COLLECTOR_URL": URL})
    assert "since TOLLKEEPER_AGENTS_KEEPER_URL is not set" in told(agents, "serve")
    assert told(agents, "all") == ""


def test_slips_name_an_absent_file_of_a_keeper(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    mail = {"TOLLKEEPER_SMTP_FROM": "a@b.example", "TOLLKEEPER_SMTP_URL": "smtp://h"}
    settings = load(mail | {"TOLLKEEPER_SMTP_CA_FILE": str(path)})
    assert told(settings, "keeper") == (
        f"TOLLKEEPER_SMTP_CA_FILE={str(path)!r} is no file: expected the path of one"
    )
    assert told(settings, "serve") == ""
    path.write_text("")
    assert told(settings, "keeper") == ""


@pytest.mark.parametrize("role", ["serve", "keeper", "all"])
def test_slips_name_a_time_that_may_be_meant_in_milliseconds(role: str) -> None:
    """1,000 s are 16 minutes and 40 seconds, and 99 s may be meant, where 1 s is the default."""
    line = "TOLLKEEPER_REDIS_WAIT_S=1000 is 0:16:40 h, where 1 s is usual: are milliseconds meant?"
    assert told(load({"TOLLKEEPER_REDIS_WAIT_S": "1000"}), role) == line
    assert told(load({"TOLLKEEPER_REDIS_WAIT_S": "99"}), role) == ""


def test_slips_name_a_time_of_an_upstream_that_may_be_meant_in_milliseconds(written: Written) -> None:
    """120 s is the default of both times."""
    settings = written(upstreams={"own": OWN | {"base_url": URL, "first_byte_s": 30_000, "idle_s": 3_600}})
    line = "upstreams.own.first_byte_s=30000 is 8:20:00 h, where 120 s is usual: are milliseconds meant?"
    assert (told(settings), told(settings, "keeper")) == (line, "")


def test_slips_are_empty_for_the_defaults() -> None:
    assert [*slips(load({}), "serve"), *slips(load({}), "keeper"), *slips(load({}), "all")] == []
