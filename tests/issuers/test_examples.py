"""The examples of the page, with tokens as Kubernetes, GitHub, GitLab and an identity provider write them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gateway.core.issuers import Issuer, TokenSubject, known_as, read_claims, read_token
from gateway.errors import InvalidApiKey
from gateway.issuers.fetching import read_key_set
from gateway.settings.config_file import ConfigFile, table_of
from gateway.settings.documents import parse_yaml
from tests.signing import jwks, token
from tests.tree import ROOT

PAGE = (ROOT / "docs/issuers.md").read_text(encoding="utf-8")
NOW = 1_800_000_000
CLUSTER = "https://kubernetes.default.svc.cluster.local"
ENTRA = "https://login.microsoftonline.com/5f0c3a1e-0000-4000-8000-000000000000/v2.0"
KUBERNETES = {
    "aud": ["tollkeeper"], "iss": CLUSTER, "exp": NOW + 3600, "iat": NOW, "nbf": NOW, "jti": "8a4b",
    "kubernetes.io": {
        "namespace": "prod", "node": {"name": "n1", "uid": "1"}, "pod": {"name": "web-1", "uid": "2"},
        "serviceaccount": {"name": "agent", "uid": "3"},
    },
    "sub": "system:serviceaccount:prod:agent",
}  # fmt: skip
GITHUB = {
    "iss": "https://token.actions.githubusercontent.com", "aud": "tollkeeper", "exp": NOW + 300,
    "nbf": NOW - 300, "iat": NOW, "sub": "repo:acme/agents:ref:refs/heads/main", "repository": "acme/agents",
    "actor": "ada", "repository_owner": "acme", "repository_owner_id": "65", "run_attempt": "1",
    "ref": "refs/heads/main",
}  # fmt: skip
GITLAB = {
    "iss": "https://gitlab.com", "aud": "tollkeeper",
    "sub": "project_path:acme/agents:ref_type:branch:ref:main",
    "exp": NOW + 300, "nbf": NOW - 5, "iat": NOW, "namespace_id": "72", "namespace_path": "acme",
    "project_id": "20", "project_path": "acme/agents", "user_login": "ada", "ref_protected": "true",
}  # fmt: skip
PEOPLE = {
    "iss": ENTRA, "aud": "api://tollkeeper", "exp": NOW + 3600, "nbf": NOW, "iat": NOW, "ver": "2.0",
    "groups": ["0b6e4d52-0000-4000-8000-000000000002", "0b6e4d52-0000-4000-8000-000000000001", "7"],
    "preferred_username": "ada@acme.example", "sub": "x", "tid": "5f0c3a1e",
}  # fmt: skip


def examples(folder: Path) -> dict[str, Issuer]:
    """The issuers of the page's blocks by their names; authorities in files are those of the system."""
    import msgspec  # as settings read it

    found = {}
    for block in re.findall(r"```yaml\n(issuers:.*?)```", PAGE, re.DOTALL):
        text = re.sub(r"    ca_file: .*\n", "", block)
        for each in table_of(msgspec.convert(parse_yaml(text.encode(), str(folder)), ConfigFile), {}).issuers:
            found[each.issuer] = each
    return found


def meant(folder: Path, said: dict[str, Any], **header: Any) -> TokenSubject:
    """What a token of these claims means, once it is signed and verified."""
    text = read_token(token(said, **header))
    key = read_key_set(jwks()).find(text)
    assert key is not None
    assert key.verifies(text)
    return read_claims(examples(folder)[text.issuer], text.claims, NOW)


@pytest.mark.parametrize(
    ("said", "subjects", "user"),
    [
        (KUBERNETES, ["prod"], "agent"),
        (GITHUB, ["acme/agents"], "ada"),
        (GITLAB, ["acme/agents"], "ada"),
        (PEOPLE, ["research", "everybody"], "ada@acme.example"),
    ],
)
def test_an_example_has_its_tokens_stand_for_keys(
    tmp_path: Path, said: dict[str, Any], subjects: list[str], user: str
) -> None:
    found = meant(tmp_path, said, typ=None)
    assert (list(found.known_as), found.user) == ([known_as(said["iss"], one) for one in subjects], user)


@pytest.mark.parametrize(
    "said",
    [
        GITHUB | {"repository_owner": "evil", "repository": "evil/agents"},
        GITHUB | {"ref": "refs/pull/7/merge"},
        GITLAB | {"ref_protected": "false"},
        GITLAB | {"namespace_path": "evil"},
        KUBERNETES | {"aud": [CLUSTER]},
        PEOPLE | {"groups": ["7"]},
        PEOPLE | {"aud": "api://another"},
    ],
)
def test_an_example_lets_nobody_else_in(tmp_path: Path, said: dict[str, Any]) -> None:
    with pytest.raises(InvalidApiKey):
        meant(tmp_path, said)


def test_every_issuer_of_the_page_is_tried() -> None:
    tried = {one["iss"] for one in (KUBERNETES, GITHUB, GITLAB, PEOPLE)}
    assert set(re.findall(r"- issuer: (\S+)", PAGE)) == tried | {"https://login.example.com"}
