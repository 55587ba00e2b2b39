"""Settings: where they come from, who wins, and what is said of a wrong one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gateway.core.calls.routes import Route
from gateway.core.certificates import TlsFiles
from gateway.core.model import Family, Service
from gateway.core.network import without_password
from gateway.errors import SettingError
from gateway.settings.config_file import DEFAULT_ROUTES
from gateway.settings.settings import Settings, from_json, load, to_json

ROOT = Path(__file__).resolve().parents[2]


def config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def refused(environ: dict[str, str], path: Path | None = None) -> str:
    with pytest.raises(SettingError) as caught:
        load(environ, path)
    return caught.value.message


def test_defaults_are_the_published_ones() -> None:
    settings = load({})
    assert settings.hold_ttl_s == 30
    assert settings.http.upstream_connect_s == 5
    assert settings.http.upstream_first_byte_s == 120
    assert settings.http.upstream_idle_s == 120
    assert settings.http.body_bytes_max == 32 * 1024 * 1024
    assert settings.usage_tokens_max == 10**8
    assert (settings.gateway_port, settings.admin_port) == (8080, 8081)
    assert settings.routes == DEFAULT_ROUTES


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    path = config(tmp_path, "settings: {hold_ttl_s: 10, workers: 3}")
    settings = load({"TOLLKEEPER_HOLD_TTL_S": "20", "PATH": "/bin"}, path)
    assert settings.hold_ttl_s == 20
    assert settings.workers == 3


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("HOLD_TTL_S", "soon", "'soon' is not valid: expected a number from 1 to 3600 seconds"),
        ("HOLD_TTL_S", "nan", "'nan' is not valid"),
        ("BODY_BYTES_MAX", "-1", "'-1' is not valid: expected a whole number from 1024 to 4294967296 bytes"),
        ("WORKERS", "0", "'0' is not valid: expected a whole number from 1 to 256"),
        ("GATEWAY_PORT", "70000", "'70000' is not valid: expected a whole number from 0 to 65535"),
        ("LOG_LEVEL", "loud", "'loud' is not valid: expected one of debug, info, warning, error"),
        ("REDIS_URL", "http://x", "'http://x' is not valid: expected a URL beginning with redis://"),
        ("REDIS_URL", "redis://h:99999/0", "is not valid: expected redis://user:password@host:port/database"),
        ("REDIS_URL", "redis://h/main", "the database being a number"),
        ("REDIS_URL", "redis:///0", "is not valid: expected redis://user:password@host:port"),
        ("REDIS_URL", "redis://h?db=2", "redis://user:password@host:port/database, and nothing behind it"),
        ("DATABASE_URL", "postgresql://h:0/x", "is not valid: expected a port from 1 to 65535"),
        ("DATABASE_URL", "postgresql://u@a:5432,b:0/x", "is not valid: expected a port from 1 to 65535"),
        ("DATABASE_URL", "postgresql://u:a/b@h/x", "written as %40 %3A %2F"),
        ("DATABASE_OWNER_URL", "postgresql://u:a/b@h/x", "written as %40 %3A %2F"),
        ("SMTP_URL", "https://x", "is not valid: expected a URL beginning with smtp:// or smtps://"),
        ("SMTP_URL", "smtp://h:0", "is not valid: expected a port from 1 to 65535"),
        ("SMTP_URL", "smtp://u:a/b@h", "written as %40 %3A %2F"),
        (
            "SMTP_URL",
            "smtp://h?starttls=no",
            "expected smtp://user:password@host:port, and nothing behind it",
        ),
        ("SMTP_FROM", "Tollkeeper <a@example.com>", "is not valid: expected name@example.com"),
        ("HEAD_BYTES_MAX", "12", "'12' is not valid: expected a whole number from 1024 to 1048576 bytes"),
        ("PRICE_AS", "gpt-4o", "is no <model or beginning*>=<model>; expected at most 200 of"),
        ("PRICE_AS", "a=b, A=c", "'A' is there twice"),
        (
            "CORS_ORIGINS",
            "https://a.example/",
            "'https://a.example/' is no origin; expected * or at most 200",
        ),
        ("CORS_ORIGINS", "https://A.example", "is no origin"),
        ("CORS_ORIGINS", "*, https://a.example", "'*' is no origin"),
        ("CORS_ORIGINS", "null", "'null' is no origin"),
        ("CORS_ORIGINS", "https://a.example:443", "has the port that browsers leave out"),
        ("CORS_ORIGINS", "https://a.example,", "'' is no origin"),
        ("TICK_S", "3", "'3' is not a setting"),
        ("HTTP", "3", "'3' is not a setting"),
        ("HOLD_TTL", "3", "'3' is not a setting; did you mean TOLLKEEPER_HOLD_TTL_S?"),
        ("PORT", "8090", "'8090' is not a setting; did you mean TOLLKEEPER_GATEWAY_PORT?"),
        ("REDIS", "3", "'3' is not a setting; did you mean TOLLKEEPER_REDIS_URL?"),
        ("QQQQ", "3", "'3' is not a setting; the nearest are TOLLKEEPER_"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_what_would_be_valid(
    name: str, value: str, said: str
) -> None:
    message = refused({f"TOLLKEEPER_{name}": value})
    assert message.startswith(f"TOLLKEEPER_{name}=")
    assert said in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ADMIN_TOKEN", "hush"), ("KEY_PEPPER", "hush"), ("ADMIN_TOKN", "hushhushhushhush"),
        ("MY_SECRET", "hush"), ("REDIS_URL", "http://user:hush@host"),
        ("REDIS_URL", "redis://user:a@hush/hush@host/0"),
        ("DATABASE_URL", "postgresql://user:hu/hush@host/0"), ("SMTP_URL", "smtp://user:hu/hush@host"),
        ("DATABASE_URL", "mysql://host/0?passwrod=hush&sslpassword=hush"),
    ],
)  # fmt: skip
def test_the_value_of_a_secret_is_never_shown(name: str, value: str) -> None:
    assert "hush" not in refused({f"TOLLKEEPER_{name}": value})


@pytest.mark.parametrize("port", ["", "ADMIN_", "OPS_"])
def test_half_of_tls_stops_the_start_so_that_nobody_takes_it_for_encrypted(port: str) -> None:
    certificate, key, authority = (
        f"TOLLKEEPER_{port}TLS_{name}_FILE" for name in ("CERT", "KEY", "CLIENT_CA")
    )
    assert refused({certificate: "/c"}).startswith(f"{key} is not set, but {certificate} is")
    assert refused({key: "/k"}).startswith(f"{certificate} is not set, but {key} is")
    assert refused({authority: "/a"}).startswith(f"{certificate} is not set, but {authority} is")
    whole = load({certificate: "/c", key: "/k", authority: "/a"})
    name = port.rstrip("_").lower() or "gateway"
    assert whole.tls_files(name) == TlsFiles("/a", "/c", "/k")
    assert whole.url_of(name, "h", 1) == "https://h:1"
    assert load({}).tls_files(name) is None


def test_a_mail_server_needs_whom_mails_are_from() -> None:
    assert "TOLLKEEPER_SMTP_FROM is not set" in refused({"TOLLKEEPER_SMTP_URL": "smtp://host"})


def test_who_may_only_read_has_another_token_than_who_may_write() -> None:
    both = {"TOLLKEEPER_ADMIN_TOKEN": "one-token-for-all", "TOLLKEEPER_READONLY_TOKEN": "one-token-for-all"}
    assert refused(both).startswith("TOLLKEEPER_READONLY_TOKEN=(hidden) is not valid")


@pytest.mark.parametrize(
    "url",
    [
        "redis://h", "rediss://u:p%40%2F@h:1/2", "unix:///run/redis.sock?db=1",
        "redis+sentinel://a:1,b:2/main/0", "redis+cluster://a:1,b:2", "rediss+cluster://me:p%40w@a",
    ],
)  # fmt: skip
def test_every_way_to_write_where_redis_is_passes(url: str) -> None:
    assert load({"TOLLKEEPER_REDIS_URL": url}).redis_url == url


def test_links_that_kubernetes_injects_are_nobodys_settings() -> None:
    settings = load(
        {
            "TOLLKEEPER_SERVICE_HOST": "10.0.0.1",
            "TOLLKEEPER_SERVICE_PORT": "8080",
            "TOLLKEEPER_SERVICE_PORT_HTTP": "8080",
            "TOLLKEEPER_PORT": "tcp://10.0.0.1:8080",
            "TOLLKEEPER_PORT_8080_TCP_ADDR": "10.0.0.1",
            "TOLLKEEPER_GATEWAY_PORT": "tcp://10.0.0.1:80",
        }
    )
    assert settings.gateway_port == 8080


def test_what_the_command_line_reads_is_known() -> None:
    load({"TOLLKEEPER_ADMIN_URL": "http://127.0.0.1:8081"})


def test_the_file_may_be_named_in_the_environment_and_an_option_stands_above(tmp_path: Path) -> None:
    path = config(tmp_path, "settings: {workers: 3}")
    other = tmp_path / "other.yaml"
    other.write_text("settings: {workers: 5}")
    environ = {"TOLLKEEPER_CONFIG": str(path)}
    assert load(environ).workers == 3
    assert load(environ, other).workers == 5
    assert load({"TOLLKEEPER_CONFIG": ""}).workers == 1
    assert "none.yaml: cannot be read" in refused({"TOLLKEEPER_CONFIG": str(tmp_path / "none.yaml")})


def test_nothing_is_accepted_that_nobody_reads() -> None:
    assert "TOLLKEEPER_LUA_DIR='x' is not a setting" in refused({"TOLLKEEPER_LUA_DIR": "x"})


def test_workers_receive_exactly_the_same_settings(tmp_path: Path) -> None:
    path = config(tmp_path, "upstreams: {a: {base_url: https://a.example, headers: {X-Key: k}}}")
    settings = load({"TOLLKEEPER_ADMIN_TOKEN": "a-token-long-enough"}, path)
    assert from_json(to_json(settings)) == settings


def test_gateways_are_given_no_credentials_of_keepers() -> None:
    secrets = {
        "TOLLKEEPER_DATABASE_URL": "postgresql://u:hushhush@h/d",
        "TOLLKEEPER_DATABASE_OWNER_URL": "postgresql://owner:hushhush@h/d",
        "TOLLKEEPER_ADMIN_TOKEN": "hushhushhushhush1",
        "TOLLKEEPER_READONLY_TOKEN": "hushhushhushhush2",
        "TOLLKEEPER_SMTP_URL": "smtp://u:hushhush@h",
        "TOLLKEEPER_SMTP_FROM": "a@example.com",
    }
    settings = load(secrets | {"TOLLKEEPER_REDIS_URL": "redis://u:theirs@h"})
    assert b"hushhush" in to_json(settings)
    assert b"hushhush" not in to_json(settings.of_gateways)
    assert settings.of_gateways.redis_url == settings.redis_url


def test_required_settings_are_named() -> None:
    with pytest.raises(
        SettingError, match="TOLLKEEPER_REDIS_URL is not set: expected a URL beginning with redis://"
    ):
        load({}).require("redis_url")


def test_credentials_of_upstreams_come_from_the_usual_variables() -> None:
    settings = load({"OPENAI_API_KEY": "sk-1", "ANTHROPIC_API_KEY": "a-1", "GEMINI_API_KEY": "g-1"})
    headers = {target.name: dict(target.headers) for target in settings.upstreams}
    assert headers == {
        "openai": {"authorization": "Bearer sk-1"},
        "anthropic": {"x-api-key": "a-1"},
        "gemini": {"x-goog-api-key": "g-1"},
    }
    assert "sk-1" not in repr(settings)


def test_one_upstream_for_everything_keeps_credentials_and_adds_services() -> None:
    settings = load({"OPENAI_API_KEY": "sk-1"}).with_upstream("http://127.0.0.1:9/")
    assert {target.base_url for target in settings.upstreams} == {"http://127.0.0.1:9"}
    assert any("{service_key}" in route.path and route.meter == "generic" for route in settings.routes)


@pytest.mark.parametrize(
    "url", ["example.com", "ftp://x", "http://", "http://h:99999", "http://u:p@h", "http://h?x"]
)
def test_an_upstream_must_be_a_base_url(url: str) -> None:
    with pytest.raises(SettingError, match="--upstream"):
        load({}).with_upstream(url)


def routes_of(settings: Settings) -> dict[str, Route]:
    return {route.path: route for route in settings.routes}


def test_routes_of_a_file_replace_the_built_in_ones_unless_they_are_included(tmp_path: Path) -> None:
    text = "routes: [{path: '/x/{id}', methods: [GET, POST], upstream: openai, service: x, meter: generic}]\n"
    assert list(routes_of(load({}, config(tmp_path, text)))) == ["/x/{id}"]
    more = "}, {path: /v1/messages, upstream: openai}, {path: '/x/{+a}', upstream: openai}]"
    mine = text.replace("}]", more)
    assert len(load({}, config(tmp_path, mine + "include_default_routes: true\n")).routes) > 10
    both = routes_of(load({}, config(tmp_path, text + "include_default_routes: true\n")))
    assert next(iter(both)) == "/x/{id}"
    assert both["/v1/messages"].family is Family("anthropic")


def test_a_route_may_take_more_of_a_query_and_say_whether_its_use_is_always_told(tmp_path: Path) -> None:
    more = "queries: [a-b], usage: always"
    text = f"routes: [{{path: /x, upstream: openai, service: x, meter: openai_chat, {more}}}]"
    settings = load({}, config(tmp_path, text))
    assert [(route.queries, route.usage) for route in settings.routes] == [(("a-b",), "always")]
    assert from_json(to_json(settings)).routes == settings.routes


def test_a_route_of_units_says_where_they_stand_and_what_a_client_that_leaves_ends(tmp_path: Path) -> None:
    said = "on_disconnect: abort, units_pointer: /bytes"
    text = f"routes: [{{path: /x, upstream: openai, service: x, meter: generic, {said}}}]"
    [route] = load({}, config(tmp_path, text)).routes
    assert (route.on_disconnect, route.units_pointer) == ("abort", "/bytes")


def test_an_upstream_says_whom_its_own_limits_are_of(tmp_path: Path) -> None:
    text = "upstreams: {s: {base_url: https://s.example}, t: {base_url: https://t.example, limits: caller}}"
    limits = {each.name: each.limits for each in load({}, config(tmp_path, text)).upstreams}
    assert (limits["s"], limits["t"], limits["openai"]) == ("account", "caller", "account")


def test_services_have_upstreams_of_their_own(tmp_path: Path) -> None:
    text = "upstreams: {s: {base_url: https://s.example}}\nservices: {search: {upstream: s}}\n"
    settings = load({}, config(tmp_path, text))
    assert settings.services.upstreams == (("search", "s"),)
    assert "/services/{service_key}/{path…}" in routes_of(settings)


SHARED = (
    "upstreams: {s: {base_url: https://s.example/v1}, t: {base_url: 'https://S.example:443'}}\nservices:\n"
)


def test_services_may_share_an_upstream_on_paths_of_their_own(tmp_path: Path) -> None:
    text = "  sms: {upstream: s, paths: [/sms/*]}\n  mail: {upstream: t, paths: [/v1/mail/*, /v2/*]}\n"
    settings = load({}, config(tmp_path, SHARED + text))
    assert settings.services.paths == (("sms", ("/sms/*",)), ("mail", ("/v1/mail/*", "/v2/*")))
    settings.table.check_services({})
    assert load({}, config(tmp_path, SHARED + "  sms: {upstream: s}\n")).services.paths == ()
    assert from_json(to_json(settings)).services == settings.services


@pytest.mark.parametrize(
    "text",
    [
        "  sms: {upstream: s}\n  mail: {upstream: s}\n",
        "  sms: {upstream: s, paths: [/sms/*]}\n  mail: {upstream: s}\n",
        "  sms: {upstream: s, paths: [/sms/*]}\n  mail: {upstream: s, paths: [/mail, /SMS/x]}\n",
        "  sms: {upstream: s, paths: [/sms/*]}\n  mail: {upstream: t, paths: [/v1/sms/*]}\n",
    ],
)
def test_services_that_get_to_the_same_paths_stop_the_start(tmp_path: Path, text: str) -> None:
    settings = load({}, config(tmp_path, SHARED + text))
    with pytest.raises(SettingError, match=r"services.mail and services.sms: both get to the same paths"):
        settings.table.check_services({})
    settings.with_upstream("http://127.0.0.1:9").table.check_services(
        {}
    )  # one upstream for all, as `up` has it


def test_services_known_to_cost_the_same_may_share_paths(tmp_path: Path) -> None:
    table = load({}, config(tmp_path, SHARED + "  sms: {upstream: s}\n  mail: {upstream: s}\n")).table
    sms, mail = Service(1, "sms", "consumption", credits=3), Service(2, "mail", "consumption", credits=3)
    table.check_services({"sms": sms, "mail": mail})
    for known in ({"sms": sms}, {"sms": sms, "mail": replace(mail, credits=4)}):
        with pytest.raises(SettingError, match="both get to the same paths"):
            table.check_services(known)


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        ("[sms]", r"services.s.paths\[0\]: 'sms' must be a path that begins with /"),
        ("[/x, /a*]", r"services.s.paths\[1\]: '/a\*' must have \* as a whole segment"),
        ("[]", "services"),
        ("/x", "services"),
    ],
)
def test_paths_of_a_service_are_patterns(tmp_path: Path, paths: str, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        load({}, config(tmp_path, f"services: {{s: {{upstream: openai, paths: {paths}}}}}\n"))


def test_variables_are_replaced_in_strings_only_where_written(tmp_path: Path) -> None:
    text = "upstreams: {s: {base_url: 'https://${HOST:-s.example}', headers: {X-Key: 'a$${b}-${KEY}'}}}"
    (target,) = [each for each in load({"KEY": "k"}, config(tmp_path, text)).upstreams if each.name == "s"]
    assert target.base_url == "https://s.example"
    assert target.headers == (("x-key", "a${b}-k"),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "upstreams: {s: {base_url: '${NOWHERE}'}}",
            "upstreams: s: base_url: the environment variable NOWHERE is not set",
        ),
        ("upstreams: {s: {base_url: x.example}}", "upstreams.s.base_url: not a base URL"),
        ("upstreams: {s: {base_url: https://x, header: {}}}", "upstreams.s.header is not known; did you"),
        ("upstreams: {a: {base_url: https://x}, s: {base_url: 3}}", ": expected text, got a whole number"),
        ("upstreams: {s: {headers: {}}}", "upstreams.s.base_url is missing"),
        ("upstreams: {s: {base_url: https://x, limits: all}}", "upstreams.s.limits"),
        ("upstreams: {a b: {base_url: https://x}}", "upstreams: a name of letters"),
        (
            "upstreams: {s: {base_url: https://x}, s: {base_url: https://y}}",
            "YAML (s stands here a second time)",
        ),
        (
            "upstreams: {s: {base_url: https://x, headers: {'a b': c}}}",
            "upstreams.s.headers.a b: not a valid header",
        ),
        (
            "routes: [{path: /x, upstream: nobody}]",
            "routes /x: upstream 'nobody' is not one of anthropic, gemini",
        ),
        ("routes: [{path: x, upstream: openai}]", "routes[0].path: expected text matching"),
        (
            "routes: [{path: /v1/batches, upstream: openai, family: openai}]",
            "routes /v1/batches: a batch is many calls of models, and nothing here meters what it uses",
        ),
        (
            "routes: [{path: /v1/b, upstream: openai, service: b, meter: openai_chat, models: unread}]",
            "routes /v1/b: models belongs to meter: generic",
        ),
        (
            "routes: [{path: '/x/{a}', upstream: s}, {path: '/x/{b}', methods: [ANY], upstream: s}]",
            "routes /x/{b}: POST of this path is there twice",
        ),
        (
            "routes: [{path: /x, methods: [ANY], upstream: openai}, {path: /x, upstream: openai}]",
            "routes /x: POST of this path is there twice",
        ),
        (
            "routes: [{path: '/x/{a}/{a}', upstream: openai}]",
            "routes /x/{a}/{a}: path must name each parameter",
        ),
        (
            "routes: [{path: /x, upstream: openai, meter: guess}]",
            "routes[0].meter: 'guess' is not one of none",
        ),
        ("routes: {a: b}", "routes: expected a list or nothing, got a mapping"),
        (
            "routes: [{path: /x, upstream: openai, meter: generic}]",
            "routes /x: a metered route needs a service",
        ),
        (
            "routes: [{path: /x, upstream: openai, queries: [a]}]",
            "routes /x: queries belongs to the routes of a family",
        ),
        (
            "routes: [{path: /x, upstream: openai, service: x, meter: openai_chat, queries: ['a&b']}]",
            "routes[0].queries[0]: expected text matching",
        ),
        (
            "routes: [{path: /x, upstream: openai, service: x, meter: openai_chat, usage: never}]",
            "routes[0].usage: 'never' is not one of",
        ),
        ("services: {s: {upstream: nobody}}", "upstream 'nobody'"),
        ("settings: {hold_ttl: 3}", "settings.hold_ttl='3' is not a setting; did you mean hold_ttl_s?"),
        ("settings: {hold_ttl_s: never}", "settings.hold_ttl_s='never' is not valid"),
        ("colour: blue", "colour is not known; known are settings, upstreams"),
        ("a: [", "line 1: not valid YAML"),
        ("", "is empty; {} stands for a file that says nothing"),
        ("# routes: []", "is empty"),
        ("[]", "the whole file: expected a mapping, got a list"),
        ("- 1", "the whole file: expected a mapping, got a list"),
        ("[" * 3000, "not valid YAML"),
        ("a: !!python/object/apply:os.system [exit]", "line 1: not valid YAML"),
        ("a: &a [x]\nb: [*a]", "line 1: not valid YAML (anchors and aliases (& and *) are not taken"),
        ("\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)), "not taken"),
        ("a: {<<: {b: c}}", "line 1: not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML (more than one document)"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(tmp_path: Path, text: str, said: str) -> None:
    path = config(tmp_path, text)
    message = refused({}, path)
    assert message.startswith((str(path), "upstreams", "routes", "services"))
    assert said in message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "cannot be read" in refused({}, tmp_path / "none.yaml")


def test_the_example_is_valid() -> None:
    settings = load({}, ROOT / "deploy" / "config.example.yaml")
    assert "/v1/reports/{id}/render" in routes_of(settings)
    assert "/v1/chat/completions" in routes_of(settings)


def test_passwords_are_cut_out_of_urls() -> None:
    assert without_password("redis://:secret@host:1/0") == "redis://:***@host:1/0"
    assert without_password("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    assert without_password("redis://host:1/0") == "redis://host:1/0"
    assert without_password("redis://u:p@ss/w@host/0") == "redis://u:***@host/0"
    tls = "postgresql://u:p@h/db?sslmode=require&sslpassword=two&passwrod=three"
    assert without_password(tls) == "postgresql://u:***@h/db?sslmode=require&sslpassword=***&passwrod=***"
    assert without_password("redis://:secret") == "redis://:***"
    assert without_password("redis://:12345") == "redis://:***"
    assert without_password("redis://me:sec/ret") == "redis://me:***"
    for harmless in ("redis://host:6379", "redis://[::1]:6379/0", "redis+sentinel://a:1,b:2/main/0"):
        assert without_password(harmless) == harmless
    by_query = "redis+sentinel://me:one@a:1,b:2/main?username=u&password=two"
    assert without_password(by_query) == "redis+sentinel://me:***@a:1,b:2/main?username=u&password=***"


def test_the_owner_of_the_database_is_the_keepers_user_where_nobody_else_is_named() -> None:
    keeper, owner = "postgresql://keeper@h/x", "postgresql://owner@h/x"
    assert load({"TOLLKEEPER_DATABASE_URL": keeper}).owner_url == keeper
    both = load({"TOLLKEEPER_DATABASE_URL": keeper, "TOLLKEEPER_DATABASE_OWNER_URL": owner})
    assert (both.database_url, both.owner_url) == (keeper, owner)
    said = refused({"TOLLKEEPER_DATABASE_OWNER_URL": "mysql://u:hush@h/x"})
    assert said.startswith("TOLLKEEPER_DATABASE_OWNER_URL='mysql://u:***@h/x' is not valid: expected a URL")


def test_what_the_file_says_in_vain_is_known_by_name(tmp_path: Path) -> None:
    secret, other = tmp_path / "pepper", tmp_path / "other"
    secret.write_text("p" * 20)
    other.write_text("q" * 20)
    path = tmp_path / "config.yaml"
    path.write_text(
        f"settings: {{workers: 4, log_level: debug, hold_ttl_s: 30, connections_max: 7,"
        f" admin_token: {'a' * 20},"
        f" key_pepper_file: {secret}}}"
    )
    given = {
        "TOLLKEEPER_WORKERS": "2", "TOLLKEEPER_LOG_LEVEL": "debug", "TOLLKEEPER_HOLD_TTL_S": "30.0",
        "TOLLKEEPER_CONNECTIONS_MAX": "8", "TOLLKEEPER_ADMIN_TOKEN": "b" * 20,
        "TOLLKEEPER_KEY_PEPPER_FILE": str(other), "TOLLKEEPER_REDIS_WAIT_S": "2",
    }  # fmt: skip
    settings = load(given, path)
    assert settings.overruled == ("admin_token", "connections_max", "key_pepper", "workers")
    assert (load({}, path).overruled, load(given).overruled) == ((), ())
    assert "overruled" not in settings.values()
