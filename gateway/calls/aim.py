"""Where a use goes: the targets of its configured model, and what is known of the upstreams there."""

from __future__ import annotations

from gateway.calls.ports import AdmissionPorts, UpstreamPort
from gateway.core.calls.call import CallRequest
from gateway.core.calls.facts import NO_FACTS, known_facts, take_facts
from gateway.core.calls.models import fitting, is_repeatable
from gateway.core.calls.routes import ModelRule, UpstreamFacts


def aim_at(ports: AdmissionPorts, call: CallRequest, rule: ModelRule, once: bool) -> None:
    """Set a call's targets by the `rule` of its configured model; with `once` it has no second target.

    Raise `InvalidRequest` if no target speaks the API of the call.
    """
    upstreams = ports.upstreams
    names = {target.upstream for target in rule.targets}
    there = {name: upstream.target for name in names if (upstream := upstreams.get(name)) is not None}
    call.targets = fitting(rule, call.model, call.family, there)
    call.fallback, call.repeats = rule.fallback, is_repeatable(call)
    if call.named or once:  # the objects are kept by one upstream, or the body is sent as it comes
        call.targets = call.targets[:1]


def know_upstreams(ports: AdmissionPorts, call: CallRequest, rule: ModelRule | None, name: str) -> None:
    """Set the known facts about a call's targets; without targets, about its model at the upstream `name`."""
    upstreams = ports.upstreams
    if not call.targets:
        facts = _facts_of(upstreams.get(name), call.model, None)
        if facts is not None:
            take_facts(call, (facts,))
        return
    known = [_facts_of(upstreams.get(one.upstream), one.model, rule) for one in call.targets]
    if any(one is not None for one in known):
        take_facts(call, tuple([one or NO_FACTS for one in known]))


def _facts_of(upstream: UpstreamPort | None, model: str, rule: ModelRule | None) -> UpstreamFacts | None:
    """Return the known facts about a model, such as its maxima, or None.

    `model` is its name at the upstream, and `rule` its configuration.
    """
    if upstream is None:
        return None
    facts = upstream.target.facts
    if facts is None and rule is None and not upstream.contexts:
        return None
    return known_facts(facts, rule, upstream.contexts.get(model))


_NO_FIELDS: frozenset[str] = frozenset()


def fields_allowed(ports: AdmissionPorts, call: CallRequest, upstream: str) -> frozenset[str]:
    """Return the names of numeric body fields that every upstream of this call accepts."""
    names = [one.upstream for one in call.targets] or [upstream]
    found = [ports.upstreams[name].target.fields for name in names if name in ports.upstreams]
    return found[0].intersection(*found[1:]) if found else _NO_FIELDS
