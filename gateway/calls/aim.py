"""Where a use goes: the targets of its configured model, and what is known of the upstreams there."""

from __future__ import annotations

from gateway.calls.ports import AdmissionPorts
from gateway.core.calls.call import CallRequest
from gateway.core.calls.facts import NO_FACTS, take_facts
from gateway.core.calls.models import fitting, is_repeatable
from gateway.core.calls.routes import ModelRule


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
        upstream = upstreams.get(name)
        facts = None if upstream is None else upstream.facts_of(call.model, None)
        if facts is not None:
            take_facts(call, (facts,))
        return
    asked = [(upstreams.get(one.upstream), one.model) for one in call.targets]
    found = [None if upstream is None else upstream.facts_of(model, rule) for upstream, model in asked]
    if any(one is not None for one in found):
        take_facts(call, tuple([one or NO_FACTS for one in found]))


_NO_FIELDS: frozenset[str] = frozenset()


def fields_allowed(ports: AdmissionPorts, call: CallRequest, upstream: str) -> frozenset[str]:
    """Return the names of numeric body fields that every upstream of this call accepts."""
    names = [one.upstream for one in call.targets] or [upstream]
    found = [ports.upstreams[name].target.fields for name in names if name in ports.upstreams]
    return found[0].intersection(*found[1:]) if found else _NO_FIELDS
