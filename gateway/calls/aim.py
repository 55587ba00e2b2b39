"""The aim of a use: the targets of its configured model, and the known facts of their upstreams."""

from __future__ import annotations

from gateway.calls.ports import AdmissionPorts, UpstreamPort
from gateway.core.calls.aim import UNAIMED, Aim, SaidBounds
from gateway.core.calls.call import CallRequest
from gateway.core.calls.facts import NO_FACTS, aim_of, known_facts
from gateway.core.calls.models import fitting, is_repeatable, named_by
from gateway.core.calls.routes import ModelRule, ModelTarget, UpstreamFacts
from gateway.core.calls.use_request import UseRequest

_NO_NAMES: frozenset[str] = frozenset()
_NOTHING: tuple[UpstreamFacts, ...] = ()


def aim_at(ports: AdmissionPorts, asked: UseRequest, rule: ModelRule | None) -> Aim:
    """Return where a use goes by the `rule` of its configured model, None for another model.

    Raise `InvalidRequest` if it is sent, and no target speaks its API.
    """
    call, kind = asked.call, asked.kind
    is_known = not kind.is_free and (kind.is_sent or asked.upstream != "")
    if rule is None or not kind.is_aimed:
        upstream = asked.upstream if kind.is_sent and not kind.is_free else call.aim.upstream
        facts = _facts_of(ports.upstreams.get(asked.upstream), call.spec.model, None) if is_known else None
        if facts is None and call.aim is UNAIMED:  # most calls
            bounds = SaidBounds(call.output_max, call.output_default, call.reports)
            return Aim(
                bounds, upstream=upstream, output_max=bounds.output_max, output_default=bounds.output_default
            )
        return aim_of(call, _NOTHING if facts is None else (facts,), upstream=upstream)
    targets = _targets_of(ports, asked, rule) if kind.is_sent else named_by(rule, call.spec.model)
    known = [_facts_of(ports.upstreams.get(target.upstream), target.model, rule) for target in targets]
    is_known = is_known and any(facts is not None for facts in known)
    return aim_of(
        call, tuple([facts or NO_FACTS for facts in known]) if is_known else _NOTHING, targets,
        rule.fallback, len(targets) > 1 and is_repeatable(call),
    )  # fmt: skip


def _targets_of(ports: AdmissionPorts, asked: UseRequest, rule: ModelRule) -> tuple[ModelTarget, ...]:
    """Return the targets that a use may be sent to: those that speak its API, or the first of them."""
    call, upstreams = asked.call, ports.upstreams
    names = {target.upstream for target in rule.targets}
    there = {name: upstream.target for name in names if (upstream := upstreams.get(name)) is not None}
    targets = fitting(rule, call.spec.model, call.family, there)
    # The objects are kept by one upstream, or the body is sent as it comes.
    return targets[:1] if call.objects.named or asked.once else targets


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


def fields_allowed(ports: AdmissionPorts, call: CallRequest, upstream: str) -> frozenset[str]:
    """Return the names of numeric body fields that every upstream of this call accepts."""
    names = [target.upstream for target in call.aim.targets] or [upstream]
    fields = [ports.upstreams[name].target.fields for name in names if name in ports.upstreams]
    return fields[0].intersection(*fields[1:]) if fields else _NO_NAMES
