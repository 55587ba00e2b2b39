"""Facts of upstreams besides their API: how much output a call has there, and which fields limit it.

Pure. A call's hold depends on the facts of all upstreams that may answer it, and its body on those of the
upstream that it is sent to.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from gateway.core.calls.aim import Aim
from gateway.core.calls.call import CallRequest
from gateway.core.calls.parsing import ask_for_usage
from gateway.core.calls.routes import ADDED, ModelRule, ModelTarget, UpstreamFacts
from gateway.core.families.controlled import Document
from gateway.core.families.registry import SHAPES

NO_FACTS: Final = UpstreamFacts()
_NO_KINDS: frozenset[str] = frozenset()
STREAM_OPTIONS, MAX_COMPLETION_TOKENS = ADDED
# The older name of the field, which all servers of OpenAI's API know.
MAX_TOKENS: Final = "max_tokens"
# Names of a maximum of the output, the one that decides where several are stated first.
_MAXIMA: Final = (
    MAX_COMPLETION_TOKENS, MAX_TOKENS, "max_output_tokens", "maxOutputTokens", "maxTokens", "num_predict",
)  # fmt: skip


def known_facts(
    stated: UpstreamFacts | None, rule: ModelRule | None, listed: int | None
) -> UpstreamFacts | None:
    """Return the facts of an upstream for one model, or None if nothing is configured.

    The context size comes from the model's configuration (`rule`), else from that of the upstream
    (`stated`), else from the upstream's list of models (`listed`).
    """
    facts = stated
    if listed is not None and (facts is None or facts.context is None):
        facts = replace(facts or NO_FACTS, context=listed)
    if rule is None or (rule.output_max is None and rule.context is None):
        return facts
    facts = facts or NO_FACTS
    return replace(
        facts,
        output_max=facts.output_max if rule.output_max is None else rule.output_max,
        context=facts.context if rule.context is None else rule.context,
    )


def aim_of(  # noqa: PLR0917  # as `Aim`
    call: CallRequest, facts: tuple[UpstreamFacts, ...] = (), targets: tuple[ModelTarget, ...] = (),
    fallback: frozenset[str] = _NO_KINDS, repeats: bool = False, upstream: str = "",
) -> Aim:  # fmt: skip
    """Return the aim of a call at targets with these facts: its bounds are the widest of all that may answer."""
    said, meter, shape = call.said, call.meter, SHAPES.get(call.meter)
    stated, default, least = said.output_max, said.output_default, 1
    if not facts or shape is None or call.body.document is None:
        return Aim(said, targets, fallback, repeats, upstream, (), False, stated, default)
    reports_each = any(fact.choices == "each" for fact in facts)
    if shape.maximum:
        least = max([fact.output_min.of(meter) or 1 for fact in facts])
        if stated is not None:
            stated = max([bounded(fact, meter, stated) for fact in facts])
        else:
            defaults = [fact.output_default.of(meter) for fact in facts]
            known = [default if tokens is None else tokens for tokens in defaults]
            default = (
                0
                if 0 in known
                else max([bounded(fact, meter, tokens) for fact, tokens in zip(facts, known, strict=True)])
            )
    return Aim(said, targets, fallback, repeats, upstream, facts, reports_each, stated, default, least)


def bounded(facts: UpstreamFacts, meter: str, tokens: int) -> int:
    """Return the maximum of output tokens to send: the nearest to `tokens` that an upstream accepts."""
    raised = max(tokens, facts.output_min.of(meter) or 0)
    return min(raised, facts.most(raised))


def fit_body(call: CallRequest, facts: UpstreamFacts) -> None:
    """Rewrite the body of a call as the upstream with these facts accepts it."""
    shape, document = SHAPES.get(call.meter), call.body.document
    if shape is None or document is None or call.body.model_at is not None:
        return
    if call.spec.streamed and shape.asks_for_usage:
        _ask_for_usage(call, document, wanted=STREAM_OPTIONS in facts.adds)
    if not shape.maximum or call.output_max is None:
        return
    place = document if shape.place is None else shape.place(document)
    names = [name for name in _MAXIMA if name == shape.maximum or name in shape.numbers]
    before = {name: tokens for name in names if type(tokens := place.get(name)) is int}
    if call.body.stated is None:
        call.body.stated = before
    stated = call.body.stated
    if before and MAX_COMPLETION_TOKENS in names:
        stated = _renamed(call, facts, stated)
    written = {name: bounded(facts, call.meter, tokens) for name, tokens in stated.items()}
    if written != before:
        for name in before:
            del place[name]
        place.update(written)
        call.body.changed = True


def _renamed(call: CallRequest, facts: UpstreamFacts, stated: dict[str, int]) -> dict[str, int]:
    """Return a call's stated maximum of tokens under the field name that its upstream knows."""
    name = facts.maximum
    if not name and MAX_COMPLETION_TOKENS in call.body.put_in and MAX_COMPLETION_TOKENS not in facts.adds:
        name = MAX_TOKENS
    if not name or [*stated] == [name]:
        call.body.renamed = ""
        return stated
    call.body.renamed = name
    return {name: next(iter(stated.values()))}


def _ask_for_usage(call: CallRequest, document: Document, *, wanted: bool) -> None:
    """Request a report of usage in the stream if `wanted` and the client does not request it.

    Otherwise remove such a request that the gateway added for another upstream.
    """
    asked = call.strip_usage
    if wanted:
        call.strip_usage = ask_for_usage(document) is not None or asked
    elif asked:
        options = document["stream_options"]
        assert isinstance(options, dict)
        del options["include_usage"]
        if not options:
            del document["stream_options"]
        call.strip_usage = False
    call.body.changed = call.body.changed or asked != call.strip_usage
