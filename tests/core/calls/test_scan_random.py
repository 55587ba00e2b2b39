"""A body that is made up is read alike with one look at it in C and without."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.calls.test_scan import FUNCTIONS, MEMBERS, SAID, TEXTS, TOOLS, Scan, built, judge, plain
from tests.search import examples


@pytest.fixture(scope="session")
def quickest() -> Scan:
    return built()


_TEXTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["", "1h", "url", "é\n", "\x00", "a" * 2100, "data:" + "a" * 2100]),
    st.sampled_from(["7" * 40, "\x01" * 33, "web_search" * 9, '"\\\n' * 9, "é" * 20, "function" + " " * 40]),
)
_NAMES = st.one_of(
    st.sampled_from(
        [
            "model",
            "stream",
            "id",
            "x_ids",
            "url",
            "ttl",
            "caching",
            "max_tokens",
            "stream_options",
            "n",
            "messages",
            "tools",
            "tool",
            "definition",
            "TOOLS",
            "tool\u017f",
            "type",
            *sorted(TEXTS),
            "input",
            "tool_calls",
            "function",
            "max_uses",
            "a:b",
            "é",
        ]
    ),
    st.text(max_size=20),
)
_PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**18) + 1, 10**18 - 1),
    st.integers(0, 99),
    _TEXTS,
    st.integers(-(10**6), 10**6).map(lambda number: number / 1000 or 0.0),
)
_ANY = st.one_of(
    _PLAIN, st.floats(allow_nan=False, allow_infinity=False), st.integers(-(1 << 63), (1 << 64) - 1)
)


def documents(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    inside = st.recursive(
        values,
        lambda each: st.lists(each, max_size=4) | st.dictionaries(_NAMES, each, max_size=5),
        max_leaves=15,
    )
    return st.dictionaries(_NAMES, inside, max_size=6)


MANY = settings(max_examples=examples(60))


def is_escaped(value: object) -> bool:
    """Whether a name in it is written with an escape."""
    if isinstance(value, dict):
        return any(b"\\" in plain(name) for name in value) or any(map(is_escaped, value.values()))
    return isinstance(value, list) and any(map(is_escaped, value))


@MANY
@given(documents(_PLAIN))
def test_whatever_is_plain_is_known(quickest: Scan, document: dict[str, Any]) -> None:
    assert judge(quickest, plain(document)) is not is_escaped(document)


@MANY
@given(documents(_ANY), st.data())
def test_any_body_is_read_alike(quickest: Scan, document: dict[str, Any], data: st.DataObject) -> None:
    """As it is written, spelled otherwise, and with some of its bytes put elsewhere."""
    written = data.draw(st.sampled_from([plain, lambda one: json.dumps(one).encode()]))
    body = written(document | {"model": "m"} if data.draw(st.booleans()) else document)
    for _ in range(data.draw(st.integers(0, 3))):
        at, to = data.draw(st.integers(0, len(body))), data.draw(st.integers(0, len(body)))
        put = data.draw(st.one_of(st.binary(max_size=3), st.just(body[at : at + 12])))
        body = body[:to] + put + body[to + data.draw(st.integers(0, 3)) :]
    judge(quickest, body)


def spoilt(value: Any, data: st.DataObject) -> Any:
    """Something with members that are put in or taken out, wherever that is drawn."""
    if isinstance(value, list):
        return [spoilt(each, data) for each in value]
    if not isinstance(value, dict):
        return value
    found = {name: spoilt(each, data) for name, each in value.items()}
    what = data.draw(st.integers(0, 9))
    if what == 0:
        found |= data.draw(st.sampled_from([{name: each} for name, each in MEMBERS.items()]))
    elif what == 1 and found:
        del found[data.draw(st.sampled_from(list(found)))]
    return found


@MANY
@given(
    st.lists(st.sampled_from(SAID), max_size=5), st.sampled_from(["messages", "input", "items"]), st.data()
)
def test_messages_are_cut_where_they_decide_nothing(
    quickest: Scan, said: list[Any], name: str, data: st.DataObject
) -> None:
    document = {"model": "m", name: spoilt(said, data), "tools": spoilt(TOOLS, data)}
    judge(quickest, plain(document | {"store": True} if data.draw(st.booleans()) else document))


@MANY
@given(st.lists(st.sampled_from(FUNCTIONS), max_size=6), st.data())
def test_tools_are_cut_where_they_are_functions(
    quickest: Scan, tools: list[Any], data: st.DataObject
) -> None:
    said = {"messages": [SAID[-1]], "tools": spoilt(tools, data) if data.draw(st.booleans()) else tools}
    judge(
        quickest, plain(dict(reversed(said.items())) if data.draw(st.booleans()) else {"model": "m", **said})
    )
