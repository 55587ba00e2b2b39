"""Whom claims stand for: by the rules of their issuer, else nobody."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.issuers import SUBJECTS_MAX, Issuer, known_as, may_fetch, may_lead_to, read_claims
from gateway.errors import InvalidApiKey
from tests.signing import AUDIENCE, ISSUER, issuer

NOW = 1_800_000_000.0
PLAIN: dict[str, Any] = {"iss": ISSUER, "aud": AUDIENCE, "sub": "agent", "exp": NOW + 60}


def failure(of: Issuer, said: dict[str, Any], now: float = NOW) -> str:
    with pytest.raises(InvalidApiKey) as caught:
        read_claims(of, said, now)
    return caught.value.failure


def subjects(of: Issuer, **more: object) -> list[str]:
    found = read_claims(of, PLAIN | more, NOW).known_as
    return [one.rpartition("\0")[2] for one in found]


def test_a_token_stands_for_the_key_of_its_subject_until_it_ends() -> None:
    found = read_claims(issuer(leeway_s=30.0), PLAIN, NOW)
    assert (found.known_as, found.user, found.ends) == ((f"\0{ISSUER}\0agent",), "", NOW + 90)


@pytest.mark.parametrize(
    ("audience", "is_ours"),
    [
        (AUDIENCE, True), (["other", AUDIENCE], True), ("other", False), (["other"], False), ([], False),
        (None, False), ({AUDIENCE: 1}, False), ([[AUDIENCE]], False), (AUDIENCE + " ", False),
    ],
)  # fmt: skip
def test_a_token_is_for_this_gateway_or_refused(audience: object, is_ours: bool) -> None:
    said = PLAIN | {"aud": audience}
    if is_ours:
        assert read_claims(issuer(), said, NOW).known_as
    else:
        assert failure(issuer(), said) == "token_audience"


@given(
    left=st.integers(-200, 200), begun=st.integers(-200, 200), leeway=st.integers(0, 100)
)  # all in whole seconds
def test_a_token_is_good_from_its_beginning_to_its_end_with_the_leeway(
    left: int, begun: int, leeway: int
) -> None:
    said = PLAIN | {"exp": NOW + left, "nbf": NOW - begun}
    of = issuer(leeway_s=float(leeway))
    if left > -leeway and begun >= -leeway:
        assert read_claims(of, said, NOW).ends == NOW + left + leeway
    else:
        assert failure(of, said) == "token_expired"


@pytest.mark.parametrize("ends", ["soon", True, [NOW], -1, 1e300, {}])
def test_a_time_is_a_number(ends: object) -> None:
    assert failure(issuer(), PLAIN | {"exp": ends}) == "token_claims"
    assert failure(issuer(), PLAIN | {"nbf": ends}) == "token_claims"
    assert failure(issuer(), PLAIN | {"iat": ends}) == "token_claims"


def test_nobody_has_a_token_from_the_future() -> None:
    assert read_claims(issuer(leeway_s=30.0), PLAIN | {"iat": NOW + 30}, NOW).known_as
    assert failure(issuer(leeway_s=30.0), PLAIN | {"iat": NOW + 31}) == "token_expired"


@pytest.mark.parametrize(
    ("pointer", "said", "groups"),
    [
        ("/groups", {"groups": ["b", "a", "b", "", "x\n", 7, None, ["c"]]}, ("b", "a", "7")),
        ("/groups", {"groups": "platform team"}, ("platform team",)), ("/groups", {}, ()),
        ("/groups", {"groups": {"a": 1}}, ()),
        ("/realm_access/roles", {"realm_access": {"roles": ["a"]}, "groups": ["b"]}, ("a",)),
    ],
)  # fmt: skip
def test_groups_of_a_token_are_the_texts_of_its_claim_each_once(
    pointer: str, said: dict[str, object], groups: tuple[str, ...]
) -> None:
    assert read_claims(issuer(groups=pointer), PLAIN | said, NOW).groups == groups


@pytest.mark.parametrize("events", [{"http://schemas.openid.net/event/backchannel-logout": {}}, {}, None, []])
def test_what_tells_of_events_is_no_credential(events: object) -> None:
    assert failure(issuer(), PLAIN | {"events": events}) == "token_claims"


def test_a_token_without_an_end_is_refused() -> None:
    endless = {name: value for name, value in PLAIN.items() if name != "exp"}
    assert failure(issuer(), endless) == "token_expired"
    assert failure(issuer(), PLAIN | {"exp": None}) == "token_expired"


def test_groups_stand_for_keys_in_the_order_of_the_map_or_of_the_token() -> None:
    groups = ["c", "a", 7, "b", "a", None, {"a": 1}, "\n"]
    assert subjects(issuer(subject="/groups"), groups=groups) == ["c", "a", "7", "b"]
    named = issuer(subject="/groups", subjects=(("b", "batch"), ("x", "nobody"), ("a", "agents")))
    assert subjects(named, groups=groups) == ["batch", "agents"]
    assert failure(named, PLAIN | {"groups": ["c"]}) == "token_claims"
    assert failure(issuer(subject="/groups"), PLAIN) == "token_claims"
    many = [str(one) for one in range(SUBJECTS_MAX + 1)]
    assert failure(issuer(subject="/groups"), PLAIN | {"groups": many}) == "token_claims"


@pytest.mark.parametrize("subject", ["", None, True, 1.5, [], {}, "a\nb", "a\x00b", "\ud800", "x" * 513])
def test_a_subject_is_a_printable_text(subject: object) -> None:
    assert failure(issuer(), PLAIN | {"sub": subject}) == "token_claims"


def test_claims_that_are_required_have_one_of_their_values() -> None:
    of = issuer(require=(("/repository_owner", ("acme", "acme-labs")), ("/ref", ("refs/heads/main",))))
    said = PLAIN | {"repository_owner": "acme", "ref": "refs/heads/main"}
    assert read_claims(of, said, NOW).known_as
    for wrong in ({"ref": "refs/heads/mainly"}, {"repository_owner": "Acme"}, {"ref": None}):
        assert failure(of, said | wrong) == "token_claims"


def test_the_user_is_one_text_of_the_token() -> None:
    of = issuer(user="/email")
    assert read_claims(of, PLAIN | {"email": "ada@example.com"}, NOW).user == "ada@example.com"
    for wrong in (None, "", ["a"], ["a", "b"], "x" * 129, "a\tb"):
        assert failure(of, PLAIN | {"email": wrong}) == "token_claims"


def test_pointers_find_claims_in_claims() -> None:
    said = {"kubernetes.io": {"namespace": "prod"}, "https://acme.example/t~": "seven"}
    assert subjects(issuer(subject="/kubernetes.io/namespace"), **said) == ["prod"]
    assert subjects(issuer(subject="/https:~1~1acme.example~1t~0"), **said) == ["seven"]
    assert failure(issuer(subject="/sub/deeper"), PLAIN) == "token_claims"


def test_an_issuer_never_stands_for_a_key_of_another() -> None:
    said = [("https://a", "b"), ("https://a/b", "c"), ("https://a", "/b"), ("https://ab", "c")]
    names = {known_as(*one) for one in said}
    assert len(names) == len(said)
    # Nothing that a request may send as a key is one of them.
    assert all(name.startswith("\0") for name in names)


@pytest.mark.parametrize(
    ("url", "may"),
    [
        ("https://issuer.example/x", True), ("https://issuer.example:8443", True),
        ("http://127.0.0.1:80", True), ("http://localhost/keys", True), ("http://issuer.example", False),
        ("https://user@issuer.example", False), ("https://", False), ("https://issuer.example:0", False),
        ("https://issuer.example:x", False), ("file:///etc/passwd", False), ("issuer.example", False),
    ],
)  # fmt: skip
def test_keys_come_over_https_or_from_this_machine(url: str, may: bool) -> None:
    assert may_fetch(url) is may


@pytest.mark.parametrize(
    "here",
    [
        "http://127.0.0.1:80/keys", "http://localhost/keys", "https://localhost.:8443/keys",
        "https://a.localhost/keys", "https://127.9.9.9/keys", "https://0.0.0.0/keys", "https://[::1]/keys",
        "https://[::ffff:127.0.0.1]/keys",
    ],
)  # fmt: skip
def test_only_an_issuer_on_this_machine_leads_to_this_machine(here: str) -> None:
    assert may_lead_to("http://127.0.0.1:9000", here)
    assert not may_lead_to("https://issuer.example", here)
    assert may_lead_to("https://issuer.example", "https://keys.example/of-it")
    assert not may_lead_to("http://127.0.0.1:9000", "http://keys.example/of-it")
