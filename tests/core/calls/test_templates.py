"""Templates of paths: what is one, and what it takes."""

from __future__ import annotations

import re
from string import ascii_lowercase, ascii_uppercase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.calls.routes import REST, expression_of
from gateway.core.http_limits import HttpLimits
from gateway.http.protocol.request import read_request_head

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
