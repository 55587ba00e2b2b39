"""What is known of an upstream decides how much output a call holds, and in which fields its body says so."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.core.calls.call import CallRequest
from gateway.core.calls.estimate import CEILING, Estimate, Estimator
from gateway.core.calls.facts import NO_FACTS, aim_of, fit_body, known_facts
from gateway.core.calls.output_limits import limit_output
from gateway.core.calls.routes import ModelRule, TokenCounts, UpstreamFacts
from tests.core.calls.test_parsing import read

CHAT: dict[str, Any] = {"model": "m", "messages": []}
OLDER, NEWER = "max_tokens", "max_completion_tokens"


def held(call: CallRequest, *facts: UpstreamFacts) -> Estimate:
    if facts:
        call.take_aim(aim_of(call, facts))
    return Estimator().hold(call, 1, "chat")


def sent(call: CallRequest, facts: UpstreamFacts) -> dict[str, Any]:
    fit_body(call, facts)
    written: dict[str, Any] = json.loads(call.write_for(call.spec.model))
    return {name: value for name, value in written.items() if name not in {"model", "messages", "prompt"}}


@pytest.mark.parametrize(
    ("facts", "stated", "most", "said"),
    [
        (UpstreamFacts(), {OLDER: 90_000}, 90_000, {OLDER: 90_000}),
        (UpstreamFacts(output_max=100), {OLDER: 90_000}, 100, {OLDER: 100}),
        (UpstreamFacts(context=100), {OLDER: 90_000, NEWER: 80}, 100, {OLDER: 100, NEWER: 80}),
        (UpstreamFacts(output_max=100), {OLDER: 9}, 9, {OLDER: 9}),
        (UpstreamFacts(output_min=TokenCounts(16)), {OLDER: 4}, 16, {OLDER: 16}),
        (
            UpstreamFacts(output_min=TokenCounts(None, (("anthropic_messages", 16),))),
            {OLDER: 4},
            4,
            {OLDER: 4},
        ),
        (UpstreamFacts(maximum=OLDER), {NEWER: 7}, 7, {OLDER: 7}),
        (UpstreamFacts(maximum=NEWER), {OLDER: 7}, 7, {NEWER: 7}),
        # Engines keep to the newer of two.
        (UpstreamFacts(maximum=OLDER), {OLDER: 9, NEWER: 3}, 9, {OLDER: 3}),
        (UpstreamFacts(adds=frozenset()), {NEWER: 7}, 7, {NEWER: 7}),
    ],
)
def test_a_stated_maximum_is_one_that_its_upstream_takes(
    facts: UpstreamFacts, stated: dict[str, int], most: int, said: dict[str, int]
) -> None:
    call = read("openai_chat", CHAT | stated)
    estimate = held(call, facts)
    assert estimate.ceiling == max(estimate.need, estimate.read + most)
    assert estimate.least == 0
    assert sent(call, facts) == said
    assert sent(call, facts) == said


@pytest.mark.parametrize(
    ("facts", "most", "said"),
    [
        (UpstreamFacts(), CEILING, NEWER),
        (UpstreamFacts(output_max=200_000), 200_000, NEWER),
        (UpstreamFacts(output_max=100), 100, NEWER),
        (UpstreamFacts(output_max=100, maximum=OLDER), 100, OLDER),
        (UpstreamFacts(output_max=100, adds=frozenset({"stream_options"})), 100, OLDER),
        (UpstreamFacts(output_default=TokenCounts(1_024)), 1_024, NEWER),
        (UpstreamFacts(output_default=TokenCounts(1_024), output_max=9), 9, NEWER),
    ],
)
def test_a_call_that_states_none_is_sent_with_all_that_its_upstream_makes(
    facts: UpstreamFacts, most: int, said: str
) -> None:
    call = read("openai_chat", CHAT)
    estimate = held(call, facts)
    assert estimate.ceiling == max(estimate.need, estimate.read + most)
    limit_output(call, estimate.bound(estimate.ceiling, call))
    assert sent(call, facts) == {said: most}


def test_what_a_context_leaves_beside_the_prompt_is_the_most() -> None:
    """SGLang refuses a maximum that does not fit behind its prompt, vLLM one above the context."""
    call, facts = read("openai_chat", CHAT | {"user": "u" * 3_000}), UpstreamFacts(context=2_048)
    estimate = held(call, facts)
    left = 2_048 - call.input_estimate
    assert 1_000 < left < 1_048
    limit_output(call, estimate.bound(estimate.ceiling, call))
    assert sent(call, facts)[NEWER] == left


@pytest.mark.parametrize(
    ("facts", "most"),
    [
        ((), 16),
        ((UpstreamFacts(output_default=TokenCounts(0)),), CEILING),
        ((UpstreamFacts(output_default=TokenCounts(None, (("openai_completions", 100),))),), 100),
        ((UpstreamFacts(output_default=TokenCounts(None, (("openai_chat", 100),))),), 16),
        ((NO_FACTS, UpstreamFacts(output_default=TokenCounts(20))), 20),
        ((NO_FACTS, UpstreamFacts(output_default=TokenCounts(0))), CEILING),
    ],
)
def test_a_completion_holds_and_sends_the_default_of_its_api(
    facts: tuple[UpstreamFacts, ...], most: int
) -> None:
    """OpenAI and vLLM make 16 tokens of a completion that states no maximum; llama.cpp goes on."""
    call = read("openai_completions", {"model": "m", "prompt": ["a", "b"], "n": 2})
    estimate = held(call, *facts)
    assert estimate.ceiling == estimate.read + 4 * most
    assert call.output_max is None
    limit_output(call, 10**6 if most < CEILING else most)
    assert sent(call, facts[0] if facts else NO_FACTS) == {"n": 2, "max_tokens": most}


def test_a_hold_is_not_cut_below_the_least_that_its_upstream_makes() -> None:
    call, facts = (
        read("openai_responses", {"model": "m", "input": "x"}),
        UpstreamFacts(output_min=TokenCounts(16)),
    )
    estimate = held(call, facts)
    assert estimate.least == estimate.read + 16
    limit_output(call, 3)
    assert sent(call, facts) == {"input": "x", "max_output_tokens": 16}


def test_each_target_is_sent_what_it_takes_whichever_was_asked_before() -> None:
    small, older = UpstreamFacts(output_max=50, adds=frozenset()), UpstreamFacts(maximum=OLDER)
    call = read("openai_chat", CHAT | {NEWER: 90, "stream": True, "stream_options": {"x": True}})
    asks, own = {"stream": True, "stream_options": {"x": True, "include_usage": True}}, {"stream": True}
    assert held(call, small, older).ceiling >= 90
    for _ in range(2):
        assert sent(call, small) == own | {NEWER: 50, "stream_options": {"x": True}}
        assert not call.strip_usage
        assert sent(call, older) == asks | {OLDER: 90}
        assert call.strip_usage
        assert sent(call, NO_FACTS) == asks | {NEWER: 90}


@pytest.mark.parametrize(
    "options", [{}, {"stream_options": None}, {"stream_options": {"include_usage": False}}]
)
def test_usage_is_not_asked_for_where_an_upstream_does_not_take_that(options: dict[str, Any]) -> None:
    call = read("openai_chat", CHAT | {"stream": True} | options)
    call.take_aim(aim_of(call, (UpstreamFacts(adds=frozenset()),)))
    assert sent(call, call.aim.facts[0]) == {"stream": True}
    asked = read("openai_chat", CHAT | {"stream": True, "stream_options": {"include_usage": True}})
    assert sent(asked, UpstreamFacts(adds=frozenset())) == {
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_of_several_statements_the_one_nearest_to_the_model_counts() -> None:
    rule = ModelRule("m", False, (), output_max=5, context=6)
    stated = UpstreamFacts(output_max=7, context=8, maximum=OLDER)
    assert known_facts(None, None, None) is None
    assert known_facts(None, rule, 9) == UpstreamFacts(output_max=5, context=6)
    assert known_facts(stated, rule, 9) == UpstreamFacts(output_max=5, context=6, maximum=OLDER)
    assert known_facts(stated, None, 9) == stated
    assert known_facts(None, None, 9) == UpstreamFacts(context=9)
