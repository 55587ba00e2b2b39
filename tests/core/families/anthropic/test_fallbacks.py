"""Models that answer a call of Anthropic's where the requested one declines."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.core.billing.price_book import KINDS
from gateway.core.billing.vector import Vector
from gateway.core.calls.call import CallRequest
from gateway.core.calls.claims import asks_of
from gateway.core.calls.estimate import Estimator
from gateway.core.calls.output_limits import check_numbers
from gateway.core.calls.parsing import read_call
from gateway.core.calls.routes import Route
from gateway.core.families.anthropic.fallbacks import read_fallbacks
from gateway.core.families.controlled import ModelAttempt, models_counted
from gateway.core.families.registry import FAMILIES
from gateway.core.model import Family
from gateway.errors import InvalidRequest

NAME = Family("anthropic")
ROUTE = Route(("POST",), "/v1/messages", "u", "messages", NAME, "anthropic_messages")


def asked(fallbacks: object, **more: Any) -> CallRequest:
    body = {"model": "claude-fable-5", "max_tokens": 1_024, "messages": [], "fallbacks": fallbacks, **more}
    return read_call(ROUTE, {}, json.dumps(body).encode())


def test_default_fallbacks_are_the_models_that_the_vendor_may_choose() -> None:
    call = asked("default")
    assert call.models_beside == ("claude-opus-5", "claude-opus-4-8")
    assert call.chosen_by("claude-opus-5").startswith(', which fallbacks "default" may choose')
    assert not call.chosen_by("claude-fable-5")


@pytest.mark.parametrize(
    ("entries", "attempts"),
    [
        ([{"model": "a"}], (ModelAttempt("a"),)),
        (["a", {"model": "b", "max_tokens": None}], (ModelAttempt("a"), ModelAttempt("b"))),
        ([{"model": "a", "max_tokens": 2_000, "speed": "fast"}], (ModelAttempt("a", 2_000, "fast"),)),
        ([{"model": "a", "thinking": {"type": "adaptive"}, "output_config": {"effort": "low"},
           "speed": "standard"}], (ModelAttempt("a"),)),
    ],
)  # fmt: skip
def test_entries_of_fallbacks_have_a_maximum_and_a_speed_of_their_own(
    entries: list[Any], attempts: tuple[ModelAttempt, ...]
) -> None:
    call = asked(entries)
    assert (call.spec.attempts, call.models_beside) == (attempts, tuple(one.model for one in attempts))


@pytest.mark.parametrize(
    ("entries", "param"),
    [
        ([{"model": "a", "api_base": "x"}], "fallbacks.api_base"),
        ([{"model": "a", "Max_Tokens": 9}], "fallbacks.max_tokens"),
        ([{"model": "a", "max_tokens": "9"}], "fallbacks.max_tokens"),
        ([{"model": "a", "speed": "faster"}], "fallbacks.speed"),
        ([{"speed": "fast"}], "fallbacks.model"),
        ([{"a": ["b"]}], "fallbacks.a"),
        ({"model": "a"}, "fallbacks"),
        ([1], "fallbacks"),
        (["a"] * 65, "fallbacks"),
        ("DEFAULT", "fallbacks"),
        (["default"], "fallbacks"),
        ([{"model": "Default"}], "fallbacks"),
    ],
)
def test_entries_of_fallbacks_with_other_members_are_refused_by_name(entries: object, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        asked(entries)
    assert refused.value.param == param


def test_each_attempt_reads_the_input_and_writes_up_to_its_own_maximum() -> None:
    plain, chained = asked(None), asked([{"model": "a", "max_tokens": 2_000}, {"model": "b"}])
    chained.input_bytes, chained.body.rare_bytes = plain.input_bytes, 0
    chained.body.content = plain.body.content
    alone, held = (Estimator().hold(call, 1, "messages") for call in (plain, chained))
    assert (held.read, held.beside) == (3 * alone.read, 2_000 + 1_024)
    assert held.ceiling == 3 * alone.read + 1_024 + 2_000 + 1_024


def test_speed_of_an_entry_is_a_tier_that_the_hold_has() -> None:
    fast = Vector(1, "USD", (1,) * len(KINDS), service_tiers={"fast": (2, 1)})
    assert asks_of(asked([{"model": "a", "speed": "fast"}]), (fast,)).tiers == ("fast",)
    assert asks_of(asked([{"model": "a", "speed": "standard"}]), (fast,)).tiers == ()
    call = asked([{"model": "a", "speed": "fast"}])
    assert (call.tiers_of("claude-fable-5"), call.tiers_of("a-20260101")) == ((), ("fast",))


def test_numbers_of_an_entry_pass_a_bound_call() -> None:
    check_numbers(asked([{"model": "a", "max_tokens": 9, "thinking": {"budget_tokens": 5}}]), frozenset())
    with pytest.raises(InvalidRequest, match=r"^other:"):
        check_numbers(asked("default", other=9), frozenset())


def test_a_free_call_has_the_models_of_its_fallbacks() -> None:
    readers = FAMILIES[NAME].model_lists
    assert models_counted({"model": "m", "fallbacks": "default"}, None, readers) == (
        "m",
        tuple(one.model for one in read_fallbacks("default", "fallbacks")),
    )
