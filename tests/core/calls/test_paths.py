"""Patterns of paths, and the readings of a path that count as the same."""

from __future__ import annotations

import pytest

from gateway.core.calls.routes import place_of, plain, read_pattern


@pytest.mark.parametrize(
    ("pattern", "within", "without"),
    [
        (
            "/v1/sms/*",
            ["/v1/sms/", "/v1/sms/x", "/v1/sms/x/y"],
            ["/v1/sms", "/v1/smsx", "/v1/SMS/x", "/sms/x"],
        ),
        ("/v1/*/send", ["/v1/a/send"], ["/v1/send", "/v1/a/b/send", "/v1//send", "/v1/a/send/"]),
        ("/v1/send", ["/v1/send"], ["/v1/send/", "/v1/sen%64", "/v1/send/x"]),
        ("/*", ["/", "/x", "/x/y"], []),
        ("/", ["/"], ["/x"]),
        ("/a.b/*", ["/a.b/x"], ["/axb/x"]),
        ("/v1/sms/*", [], ["/v1/sms/%252e%252e/x", "/v1/sms/%252e%252e%252fother", "/v1/sms/..%3b/..%3b/x"]),
    ],
)
def test_a_pattern_takes_what_it_says_in_every_reading(
    pattern: str, within: list[str], without: list[str]
) -> None:
    read = read_pattern(pattern)
    for path in [*within, *without]:
        assert read.takes(path, plain(path) or ()) == (path in within), path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "begins with /"),
        ("v1/*", "begins with /"),
        ("/v1?x", "begins with /"),
        ("/v1;x", "begins with /"),
        ("/v 1", "begins with /"),
        ("/v1/%2x", "begins with /"),
        ("/v1//x", "must not hold //"),
        ("/v1/../x", "dots as a segment"),
        ("/v1/%2e%2e/x", "encoded slash"),
        ("/v1/sms*", "a whole segment"),
        ("/v1/**", "a whole segment"),
        ("/" + "x" * 256, "at most 256 characters"),
    ],
)
def test_what_is_no_pattern_is_said(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_pattern(text)


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ("/v1/sms/*", "/v1/mail/*", False),
        ("/v1/sms/*", "/v1/*", True),
        ("/v1/sms/*", "/V1/sms/x", True),
        ("/v1/sms", "/v1/%73ms", True),
        ("/v1/sms/*", "/v1/sms", True),
        ("/v1/*/send", "/v1/sms/*", True),
        ("/v1/*/send", "/v1/sms/read", False),
        ("/v1/*/send", "/v1/sms", False),
        ("/a", "/a/b", False),
        ("/*", "/", True),
    ],
)
def test_patterns_meet_where_any_path_could_be_within_both(one: str, other: str, meet: bool) -> None:
    assert read_pattern(one).meets(read_pattern(other)) is meet
    assert read_pattern(other).meets(read_pattern(one)) is meet


@pytest.mark.parametrize(
    "path",
    [
        "/V1/Chat/Completions", "/v1/chat/completions/", "/v1/chat%2Fcompletions", "/v1//chat/completions",
        "/v1/chat/completions%3Bx=1", "/v1/ch%2561t/completions", "/v1/x/../chat/completions",
        "/v1/./chat/completions", "/v1/chat/completions%20", "/v1/chat/completions.", "/v1\\chat/completions",
        "/v1/chat/completions%3Fx", "/v1/chat/completions%23x", "/v1/chat/%EF%BD%83ompletions",
        "/v1/%25252563hat/completions",
    ],
)  # fmt: skip
def test_every_spelling_has_one_plain_form(path: str) -> None:
    assert plain(path) == ("v1", "chat", "completions")


def test_a_path_that_is_encoded_over_and_over_has_none() -> None:
    assert plain("/%" + "25" * 20 + "41") is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://h.example", "https://H.EXAMPLE:443"),
        ("https://h.example", "http://h.example:80"),
        ("https://h.example", "https://h.example."),
        ("http://127.0.0.1:9000", "http://[::ffff:127.0.0.1]:9000"),
        ("http://[2001:db8::1]:9", "http://[2001:DB8:0::1]:9"),
        ("http://localhost:9", "http://127.0.0.1:9"),
        ("http://[::1]:9", "http://LOCALHOST.:9"),
    ],
)
def test_a_place_is_the_same_however_it_is_spelled(one: str, other: str) -> None:
    assert place_of(one) == place_of(other)


def test_ports_and_prefixes_tell_places_apart() -> None:
    assert place_of("http://h:9000") != place_of("http://h:9001")
    assert place_of("http://h/V1/x") == ("h", ("v1", "x"))
