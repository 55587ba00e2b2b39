"""Patterns of paths, and the readings of a path that count as the same."""

from __future__ import annotations

import re
from string import ascii_lowercase, ascii_uppercase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.billing.price_book import KINDS
from gateway.core.billing.vector import Vector
from gateway.core.calls.routes import REST, expression_of, place_of, plain, read_pattern
from gateway.core.calls.tariff import PriceMatch, answering, is_model
from gateway.core.http_limits import HttpLimits
from gateway.core.model import Patterns, on_list
from gateway.http.protocol.request import read_request_head


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


# --- patterns ---------------------------------------------------------------------------
# A pattern takes what it says and nothing else.


@pytest.mark.parametrize(
    ("name", "pattern", "fits"),
    [
        ("gpt-4o", "gpt-4o*", True),
        ("gpt-4o-2024-11-20", "gpt-4o*", True),
        ("GPT-4o", "gpt-4o*", False),
        ("my-gpt-4o", "gpt-4o*", False),
        ("gpt-4o", "*", True),
        ("gpt-4o-mini", "*-mini", True),
        ("gpt.4o", "gpt?4o*", False),
        ("gpt-4o", "gpt-[4]o*", False),
        ("aba", "ab*ba", False),
        ("gpt-4o,o1-pro", "gpt-4o*", False),
    ],
)
def test_a_star_stands_for_any_characters_and_all_else_for_itself(
    name: str, pattern: str, fits: bool
) -> None:
    assert on_list(name, ["x", pattern]) == Patterns(["x", pattern]).hold(name) == fits


@given(st.text("ab*", max_size=6).map(lambda text: text + "*"), st.text("ab", max_size=8))
def test_patterns_fit_as_regular_expressions_do(pattern: str, name: str) -> None:
    expression = ".*".join(map(re.escape, pattern.split("*")))
    fits = bool(re.fullmatch(expression, name))
    assert on_list(name, [pattern]) == Patterns(["x", pattern]).hold(name) == fits


# --- templates --------------------------------------------------------------------------
# Templates of paths: what is one, and what it takes.


SEGMENT = "[^/]+"


@pytest.mark.parametrize(
    ("template", "path", "found"),
    [
        ("/v1/models/{model}:count", "/v1/models/a.b:count", {"model": "a.b"}),
        ("/v1/{+name}/state", "/v1/a/b/state", {"name": "a/b"}),
        ("/services/{key}/{path…}", "/services/mail/v1/send", {"key": "mail", REST: "v1/send"}),
        ("/{path...}", "/", {REST: ""}),
        ("/a.b", "/a.b", {}),
        ("/v1/x/", "/v1/x/", {}),
    ],
)
def test_a_template_takes_what_it_says(template: str, path: str, found: dict[str, str]) -> None:
    match = re.fullmatch(expression_of(template, SEGMENT), path)
    assert match is not None
    assert match.groupdict() == found
    assert re.fullmatch(expression_of(template, SEGMENT), f"{path}\n") is None


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("/x/{a}/{a}", "once"),
        ("/x/{rest_of_path}/{path…}", "once"),
        ("/x/{a}{b}", "between two parameters"),
        ("/x/{path…}/y", "at its end"),
        ("/x/{+path…}", "at its end"),
        ("/x/{1a}", "by letters"),
        ("/x/{a-b}", "by letters"),
        ("/x/{}", "by letters"),
        ("/x/{a", "by letters"),
        ("/x?y=1", "without query"),
        ("/x y", "without query"),
        ("/x;v=1/{a}", "without query or ;"),
        ("/x/*", "stands for itself"),
        ("/*/{a}", "stands for itself"),
        ("/x/(?P<a>", "without query"),
        ("/%2x", "without query"),
        ("/../x", "dots as a segment"),
        ("/x/.", "dots as a segment"),
        ("//x", "must not hold //"),
        ("/%2e%2e/x", "encoded slash"),
    ],
)
def test_what_is_no_template_is_said(template: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        expression_of(template, SEGMENT)


def test_each_character_that_a_template_may_have_may_stand_in_the_path_of_a_request() -> None:
    taken = ""
    for character in map(chr, range(1, 128)):
        path = f"/x{character}y"
        try:
            expression = expression_of(path, SEGMENT)
        except ValueError:
            continue
        taken += character
        head = f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
        assert re.fullmatch(expression, read_request_head(head, HttpLimits()).path.decode())
    assert taken == "!$&'()*+,-./0123456789:=@" + ascii_uppercase + "_" + ascii_lowercase + "~"


@given(st.text(alphabet="/ax.{}+…_1?*%2E()<>:", max_size=16))
def test_what_is_read_can_be_matched_by(text: str) -> None:
    try:
        expression = expression_of(f"/{text}", SEGMENT)
    except ValueError:
        return
    re.compile(expression)


# --- answering --------------------------------------------------------------------------
# Which of several models has answered, by the name it gives, and which price is the dearest.


def priced(model: str, input_: int, output: int = 0, currency: str = "USD", number: int = 1) -> PriceMatch:
    prices = dict.fromkeys(KINDS, 0) | {"input": input_, "output": output}
    return PriceMatch(model, Vector(number, currency, tuple(prices[kind] for kind in KINDS)))


COUNTS = (1_000_000, 0, 0, 0, 10, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("answered", "is_it"),
    [
        ("gpt-5", True), ("GPT-5", True), ("gpt-5-2025-08-07", True), ("gpt-5@x", True), ("gpt-5:free", True),
        ("gpt-5.4", False), ("gpt-50", False), ("gpt", False), ("", False), ("my-gpt-5", False),
    ],
)  # fmt: skip
def test_a_name_goes_on_behind_a_separator(answered: str, is_it: bool) -> None:
    assert is_model(answered, "gpt-5") is is_it


def test_the_longest_name_counts() -> None:
    named = (priced("gpt-5", 9), priced("gpt-5-mini", 1))
    assert answering(named, "gpt-5-mini-2025", COUNTS, {}, "") is named[1]
    assert answering(named, "gpt-5-2025", COUNTS, {}, "") is named[0]


def test_a_name_beside_the_asked_one_makes_no_target_cheaper() -> None:
    named = (priced("gpt-5", 9), priced("gpt-5-2025-08-07", 1))
    assert answering(named, "gpt-5-2025-08-07", COUNTS, {}, "", "gpt-5") is named[0]
    assert answering(named[::-1], "gpt-5-2025-08-07", COUNTS, {}, "", "gpt-5-2025-08-07") is named[1]
    assert answering(named, "gpt-5-2025-08-07", COUNTS, {}, "", "other") is named[1]


def test_where_it_cannot_be_told_the_dearest_by_what_was_used_counts() -> None:
    reads, writes = priced("reads", 10, 1), priced("writes", 1, 10)
    for named in ((reads, writes), (writes, reads)):
        assert answering(named, "other", COUNTS, {}, "") is reads
        assert answering(named, "", (10, 0, 0, 0, 1_000_000, 0, 0, 0, 0, 0), {}, "") is writes


def test_prices_of_another_currency_and_none_are_not_compared() -> None:
    free, none = priced("free", 0, currency="EUR"), PriceMatch("none", None)
    named = (none, free, priced("dear", 10))
    assert answering(named, "", COUNTS, {}, "") is free
    assert answering(named, "none-1", COUNTS, {}, "") is none
    assert answering((none, none), "other", COUNTS, {}, "") is none


def test_of_equal_costs_the_first_counts_that_a_call_names() -> None:
    named = (priced("one", 1), priced("other", 1))
    assert answering(named, "", COUNTS, {}, "") is named[0]


def test_one_name_alone_has_answered_whatever_the_answer_says() -> None:
    named = (priced("cheap", 1),)
    assert answering(named, "dear", COUNTS, {}, "") is named[0]
