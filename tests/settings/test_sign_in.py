"""Providers by which people sign in, as the configuration file has them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.core.issuers import IdentityProvider, Issuer, SignIn
from gateway.errors import SettingError
from gateway.settings.settings import from_json, to_json
from tests.settings.test_issuers import loaded
from tests.tree import ROOT

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
