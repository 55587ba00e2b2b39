"""Proxies of the environment and of an upstream: read once, checked, never shown."""

from __future__ import annotations

import re
from base64 import b64encode
from pathlib import Path

import pytest

from gateway.core.issuers import IdentityProvider, Issuer, SignIn
from gateway.core.network import Proxy
from gateway.errors import SettingError
from gateway.run.reload import RENEWABLE, Renewal, with_credentials
from gateway.settings.settings import Settings, from_json, load, to_json
from tests.tree import ROOT

PROXY = "http://us%40er:p%3Ass@proxy.test:3128"
KNOWN = "Basic " + b64encode(b"us@er:p:ss").decode()
READ = Proxy("proxy.test", 3128, False, KNOWN)


def ways(settings: Settings) -> dict[str, Proxy | None]:
    return {target.name: target.via for target in settings.upstreams}


def config(folder: Path, text: str) -> Path:
    (folder / "config.yaml").write_text(text)
    return folder / "config.yaml"


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("proxy.test:3128", Proxy("proxy.test", 3128)),
        ("http://proxy.test", Proxy("proxy.test", 80)),
        ("https://proxy.test/", Proxy("proxy.test", 443, secured=True)),
        ("http://[2001:db8::1]:3128", Proxy("2001:db8::1", 3128)),
        ("http://user@proxy.test", Proxy("proxy.test", 80, False, "Basic dXNlcjo=")),
        (PROXY, READ),
    ],
)
def test_a_proxy_is_read_from_its_url(url: str, read: Proxy) -> None:
    found = load({"HTTPS_PROXY": url})
    assert set(ways(found).values()) == {read}
    assert {one.authorization for one in ways(found).values() if one is not None} == {read.authorization}
    assert from_json(to_json(found)) == found


@pytest.mark.parametrize(
    "url",
    [
        "socks5://us:er@proxy.test", "ftp://us:er@proxy.test", "http://us:er@proxy.test/path", "http://us:er@",
        "http://us:er@proxy.test:0", "http://us:er@proxy.test:99999", "http://us:er@proxy.test?x=er",
        "http://us:er@pro xy.test", "http://us:er%0d%0a@proxy.test", "http://u%3As:er@proxy.test",
        "http://us:er@pröxy.test", "http://us:er@proxy.test" + "x" * 2_000,
    ],
)  # fmt: skip
def test_what_is_no_proxy_is_named_and_not_shown(url: str) -> None:
    with pytest.raises(SettingError) as refused:
        load({"HTTPS_PROXY": url})
    assert refused.value.message.startswith("HTTPS_PROXY is not valid")
    assert "us:er" not in refused.value.message


def test_small_letters_count_before_capitals_and_nothing_before_something() -> None:
    assert ways(load({"https_proxy": "one.test", "HTTPS_PROXY": "two.test"}))["openai"] == Proxy(
        "one.test", 80
    )
    assert ways(load({"https_proxy": "", "HTTPS_PROXY": "two.test"}))["openai"] is None


def test_no_proxy_is_of_no_account_without_a_proxy() -> None:
    assert load({"NO_PROXY": "10.*"}) == load({})
    with pytest.raises(SettingError, match=r"NO_PROXY is not valid: '10\.\*'"):
        load({"HTTP_PROXY": "proxy.test", "NO_PROXY": "10.*"})
    found = ways(load({"HTTPS_PROXY": PROXY, "no_proxy": "api.openai.com"}))
    assert (found["openai"], found["anthropic"]) == (None, READ)


def test_a_file_says_it_as_well(tmp_path: Path) -> None:
    (tmp_path / "proxy").write_text(PROXY + "\n")
    found = load({"HTTPS_PROXY_FILE": str(tmp_path / "proxy")})
    assert ways(found)["openai"] == READ
    assert ("", str(tmp_path / "proxy")) in found.secret_files
    with pytest.raises(SettingError, match="HTTPS_PROXY and HTTPS_PROXY_FILE are both set"):
        load({"HTTPS_PROXY_FILE": str(tmp_path / "proxy"), "HTTPS_PROXY": PROXY})


def test_an_upstream_may_have_its_own_or_none(tmp_path: Path) -> None:
    path = config(
        tmp_path,
        "upstreams:\n  own: {base_url: 'http://own.test', proxy: 'https://us:${WORD}@own-proxy.test:8443'}\n"
        "  near: {base_url: 'https://near.test', proxy: none}\n"
        "  far: {base_url: 'https://far.test'}\n  plain: {base_url: 'http://plain.test'}\n",
    )
    found = load({"HTTPS_PROXY": PROXY, "WORD": "er", "NO_PROXY": "own.test"}, path)
    own = Proxy("own-proxy.test", 8443, True, "Basic dXM6ZXI=")
    assert ways(found) == ways(load({"HTTPS_PROXY": PROXY})) | {
        "own": own, "near": None, "far": READ, "plain": None
    }  # fmt: skip
    assert "dXM6ZXI=" not in repr(found)
    with pytest.raises(SettingError, match=r"^upstreams\.own\.proxy is not valid: SOCKS"):
        load({}, config(tmp_path, "upstreams: {own: {base_url: 'http://o.test', proxy: 'socks5://p'}}"))


def test_another_upstream_for_all_is_reached_as_its_own_url_is(tmp_path: Path) -> None:
    settings = load({"HTTPS_PROXY": PROXY, "NO_PROXY": "near.test"})
    assert set(ways(settings.with_upstream("https://near.test")).values()) == {None}
    assert set(ways(settings.with_upstream("https://far.test")).values()) == {READ}


def test_the_authority_of_a_proxy_is_a_file_that_can_be_used(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="TOLLKEEPER_PROXY_CA_FILE="):
        load({"TOLLKEEPER_PROXY_CA_FILE": str(tmp_path / "none.pem")})


def test_issuers_are_asked_through_it_too(tmp_path: Path) -> None:
    path = config(
        tmp_path,
        "issuers: [{issuer: 'https://id.test', audiences: [us]}]\nsign_in:\n  console_url: https://console.test\n"
        "  providers: [{name: id, issuer: 'https://people.test', client_id: us}]\n",
    )
    found = load({"HTTPS_PROXY": PROXY, "NO_PROXY": "id.test"}, path)
    assert found.issuers[0].proxies.to("https://id.test") is None
    assert found.issuers[0].proxies.to("https://keys.test") == READ
    assert found.sign_in.providers[0].issuer.proxies.to("https://people.test") == READ


def test_a_new_credential_is_taken_over_and_another_address_waits(tmp_path: Path) -> None:
    """As for other secrets in files: the rest of the configuration may not be ready."""
    text = "upstreams: {own: {base_url: 'https://%s.test'}}"
    before = load({"HTTPS_PROXY": PROXY}, config(tmp_path, text % "own"))
    after = load({"HTTPS_PROXY": "http://new.test"}, config(tmp_path, text % "other"))
    taken = with_credentials(before, after)
    new = Proxy("new.test", 80)
    assert ways(taken) == {"openai": new, "anthropic": new, "gemini": new, "own": READ}
    assert taken.proxies == after.proxies
    same = load({"HTTPS_PROXY": "http://new.test"}, config(tmp_path, text % "own"))
    names, said = Renewal(before, lambda: same).take(same)
    assert (set(names) & {"upstreams", "proxies"}, "restart" in said) == ({"upstreams", "proxies"}, False)
    assert {"upstreams", "proxies"} <= RENEWABLE


@pytest.mark.parametrize(
    ("running", "written", "is_taken"),
    [
        ("none", "http://one.test", False),
        ("http://one.test", "none", False),
        ("", "none", False),
        ("http://us:er@one.test", "http://us:er@two.test", False),
        ("http://us:er@one.test", "http://us:er@one.test:81", False),
        ("http://us:er@one.test", "https://us:er@one.test:80", False),
        ("http://us:er@one.test", "http://us:another@one.test", True),
        ("http://one.test", "http://us:er@one.test", True),
    ],
)
def test_an_upstreams_own_proxy_has_new_credentials_and_another_proxy_waits(
    tmp_path: Path, running: str, written: str, is_taken: bool
) -> None:
    text = "upstreams: {own: {base_url: 'https://own.test', proxy: '%s'}}"
    before, after = (load({}, config(tmp_path, text % proxy)) for proxy in (running, written))
    assert ways(before) != ways(after) or not running
    found = with_credentials(before, after)
    assert found.upstreams == (after if is_taken else before).upstreams
    assert Renewal(before, lambda: after).take_credentials(after) == (
        "credentials of upstreams changed: own" if is_taken else ""
    )


# --- issuers ----------------------------------------------------------------------------
# Issuers of the configuration file: read whole, and said what is wrong with its place.


GITHUB = """
issuers:
  - issuer: https://token.actions.githubusercontent.com
    audiences: [tollkeeper]
    subject: /repository
    subjects: {acme/agents: agents}
    user: /actor
    require: {/repository_owner: [acme], /ref: [refs/heads/main, refs/heads/next]}
"""


def loaded(folder: Path, text: str, **environ: str) -> Settings:
    config = folder / "config.yaml"
    config.write_text(text)
    return load(environ, config)


def test_an_issuer_is_read_with_its_rules_and_goes_to_workers_as_it_is(tmp_path: Path) -> None:
    settings = loaded(tmp_path, GITHUB)
    assert settings.issuers == (
        Issuer(
            "https://token.actions.githubusercontent.com",
            ("tollkeeper",),
            subject="/repository",
            subjects=(("acme/agents", "agents"),),
            user="/actor",
            require=(("/repository_owner", ("acme",)), ("/ref", ("refs/heads/main", "refs/heads/next"))),
        ),
    )
    assert from_json(to_json(settings)) == settings
    assert loaded(tmp_path, "{}").issuers == ()


def test_issuers_change_while_gateways_run(tmp_path: Path) -> None:
    before = loaded(tmp_path, "{}")
    now = Renewal(before, lambda: loaded(tmp_path, GITHUB))
    assert now.take(loaded(tmp_path, GITHUB))[1] == "issuers changed"
    assert len(now.running.issuers) == 1


def test_what_is_taken_from_the_environment_is_put_in(tmp_path: Path) -> None:
    text = "issuers: [{issuer: '${WHO}', audiences: [a], jwks_file: keys.json}]"
    assert loaded(tmp_path, text, WHO="https://x.example").issuers[0].issuer == "https://x.example"


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("{issuer: 'https://x'}", "audiences is missing"),
        ("{issuer: 'https://x', audiences: []}", "audiences"),
        ("{issuer: '', audiences: [a]}", "issuer"),
        ("{issuer: 'http://x.example', audiences: [a]}", r"issuers\[0\].issuer: .* no https:// address"),
        ("{issuer: 'x', audiences: [a]}", "say jwks_uri or jwks_file"),
        ("{issuer: 'x', audiences: [a], jwks_uri: 'http://x.example'}", r"issuers\[0\].jwks_uri: keys come"),
        ("{issuer: 'x', audiences: [a], jwks_uri: 'https://x', jwks_file: y}", "both set"),
        ("{issuer: 'https://x', audiences: [a], algorithms: [HS256]}", "'HS256' is not one of RS256"),
        ("{issuer: 'https://x', audiences: [a], algorithms: [none]}", "'none' is not one of RS256"),
        ("{issuer: 'https://x', audiences: [a], algorithms: []}", "algorithms"),
        ("{issuer: 'https://x', audiences: [a], subject: sub}", "subject"),
        ("{issuer: 'https://x', audiences: [a], subject: ''}", "subject"),
        ("{issuer: 'https://x', audiences: [a], leeway_s: 301}", "leeway_s"),
        ("{issuer: 'https://x', audiences: [a], ca_file: /none}", r"issuers\[0\].ca_file: '/none' cannot"),
        ("{issuer: 'https://x', audiences: [a], require: {/ref: []}}", "require"),
        ("{issuer: 'https://x', audiences: [a], jwks: y}", "jwks is not known; did you mean jwks_uri"),
        (
            "{issuer: 'https://x', audiences: [a]}, {issuer: 'https://x', audiences: [b]}",
            r"issuers\[1\].issuer: 'https://x' stands here a second time",
        ),
    ],
)
def test_what_cannot_be_is_said_with_its_place(tmp_path: Path, written: str, why: str) -> None:
    with pytest.raises(SettingError, match=why):
        loaded(tmp_path, f"issuers: [{written}]")


# --- sign in ----------------------------------------------------------------------------
# Providers by which people sign in, as the configuration file has them.


WRITTEN = """
sign_in:
  console_url: https://toll.example.com/
  providers:
    - name: example
      issuer: https://login.example.com
      client_id: console
      client_secret: ${OIDC_SECRET}
      scopes: [openid, groups]
      subject: /groups
      subjects: {"1": staff}
      person: /email
"""


def test_a_provider_is_read_with_its_rules_and_no_gateway_hears_of_it(tmp_path: Path) -> None:
    settings = loaded(tmp_path, WRITTEN, OIDC_SECRET="hushhush")
    rules = Issuer(
        "https://login.example.com",
        ("console",),
        subject="/groups",
        subjects=(("1", "staff"),),
        user="/email",
    )
    provider = IdentityProvider(
        "example", "login.example.com", rules, "console", "hushhush", "", ("openid", "groups")
    )
    assert settings.sign_in == SignIn("https://toll.example.com", (provider,))
    assert from_json(to_json(settings)) == settings
    assert b"hushhush" not in to_json(settings.of_gateways)
    assert "hushhush" not in repr(settings.sign_in)
    assert loaded(tmp_path, "{}").sign_in == SignIn()


ONE = "{name: a, issuer: 'https://a.example', client_id: c}"


@pytest.mark.parametrize(
    ("providers", "url", "why"),
    [
        (ONE, "", "sign_in.console_url is missing: expected https://host"),
        (ONE, "http://toll.example.com", "sign_in.console_url: 'http://toll.example.com' is not valid"),
        (ONE, "https://toll.example.com/console", "as browsers reach the console"),
        (f"{ONE}, {ONE}", "https://t.example", "sign_in.providers[1].name: 'a' stands here a second time"),
        (
            f"{ONE}, {ONE.replace('name: a', 'name: b')}",
            "https://t.example",
            "sign_in.providers[1].issuer: 'https://a.example' stands here a second time",
        ),
        ("{name: A, issuer: 'https://a.example', client_id: c}", "https://t.example", "providers[0].name"),
        (
            "{name: a, issuer: 'http://a.example', client_id: c}",
            "https://t.example",
            "is no https:// address",
        ),
        ("{name: a, issuer: 'https://a.example'}", "https://t.example", "client_id"),
        (ONE[:-1] + ", scopes: [email]}", "https://t.example", "openid is missing"),
        (ONE[:-1] + ", client_secret: a, client_secret_file: b}", "https://t.example", "both set"),
        (ONE[:-1] + ", algorithms: [HS256]}", "https://t.example", "algorithms"),
        (ONE[:-1] + ", ca_file: /nowhere.pem}", "https://t.example", "providers[0].ca_file: '/nowhere.pem'"),
        (ONE[:-1] + ", subject: groups}", "https://t.example", "subject"),
        (ONE[:-1] + ", token: x}", "https://t.example", "token"),
    ],
)
def test_what_cannot_be_is_told_by_its_place(tmp_path: Path, providers: str, url: str, why: str) -> None:
    written = f"sign_in: {{console_url: '{url}', providers: [{providers}]}}"
    with pytest.raises(SettingError) as caught:
        loaded(tmp_path, written)
    assert why in caught.value.message


def test_the_example_of_the_page_is_taken(tmp_path: Path) -> None:
    page = (ROOT / "docs/sign-in.md").read_text(encoding="utf-8")
    [written] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    [provider] = loaded(tmp_path, written, OIDC_CLIENT_SECRET="s").sign_in.providers
    assert (provider.label, provider.issuer.subject, provider.client_secret) == ("Example", "/groups", "s")


def test_this_machine_needs_no_certificate(tmp_path: Path) -> None:
    local = ONE.replace("https://a.example", "http://127.0.0.1:9000")
    written = f"sign_in: {{console_url: 'http://localhost:8081', providers: [{local}]}}"
    assert loaded(tmp_path, written).sign_in.console_url == "http://localhost:8081"
