"""Issuers of the configuration file: read whole, and said what is wrong with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.core.issuers import Issuer
from gateway.errors import SettingError
from gateway.run.reload import Renewal
from gateway.settings.settings import Settings, from_json, load, to_json

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
