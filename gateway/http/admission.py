"""Everything before a call is forwarded: identify its caller, read its request, reserve its hold.

A refusal because of the body comes after the admission by the head: a blocked or rate-limited caller gets
that refusal first, and a refused request still counts as one of its sender's requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from gateway.calls.call_run import keep_run, open_run, run_to_judge
from gateway.calls.permit import check_batch_models, check_objects, judge, named_objects, run_policies
from gateway.calls.ports import DirectoryPort
from gateway.calls.prices import price_call, prices_of
from gateway.core.accounts.call_budgets import CallBudgets
from gateway.core.accounts.runs import Run
from gateway.core.accounts.upstream_jobs import batch_lines, model_of, uploaded
from gateway.core.calls.call import UNCOUNTED_BYTES_MAX, BodyLook, CallRequest, look_out_of_turn
from gateway.core.calls.claims import find_tools, measure_media, read_call, read_form
from gateway.core.calls.facts import NO_FACTS, take_facts
from gateway.core.calls.forms import FormReader, boundary_of
from gateway.core.calls.models import fitting, is_repeatable
from gateway.core.calls.routes import ModelRule
from gateway.core.calls.tariff import NO_PRICES, CallPrices
from gateway.core.credentials import WORKLOAD
from gateway.core.families.controlled import models_counted, models_stored
from gateway.core.families.objects import read_objects
from gateway.core.families.registry import BATCH_AT, FAMILIES, SHAPES
from gateway.core.model import GENERIC, NO_SERVICE, Caller, Service
from gateway.errors import (
    InvalidApiKey,
    InvalidRequest,
    Refusal,
    ServiceNotIncluded,
    TooManyBudgets,
    UnknownRoute,
)
from gateway.http.charge import AdmittedCall
from gateway.http.forward import check_circuit
from gateway.http.identity import passed_digest
from gateway.http.model_lists import narrow
from gateway.http.routing.head import CallHead, HeaderCredential
from gateway.http.routing.routed_head import RoutedHead
from gateway.http.routing.routes import upload_named
from gateway.http.server.buffers import full
from gateway.http.server.exchange import Attempt, ClientPort, Exchange, RequestBody, Worker
from gateway.http.upstream.pool import Upstream

# The request of a call whose body was not read yet.
_UNREAD: Final = CallRequest("none", GENERIC, b"")
# Without path parameters from a job.
NO_WORDS: Final[Mapping[str, str]] = {}


def known(exchange: Exchange) -> Caller | None:
    """Return the caller of this call from the caches; None if `identify` has to look it up.

    Raise 404 or 405 for a route that is not configured, 401 for an unreadable credential.
    """
    head, worker = exchange.head, exchange.worker
    ports = worker.ports
    check_route(head.routed, ports.directory)
    refusal = head.routed.query_refusal or head.proof.refusal  # written out: the hot path
    if refusal is not None:
        head = exchange.head = _by_certificate(head, worker, exchange.connection.transport, refusal)
    proof = head.proof
    caller = ports.tokens.cached(proof.digest) if proof.token else ports.directory.cached(proof.digest)
    exchange.caller = caller
    if caller is not None and head.news is not None:
        worker.heads.remember(head)
    return caller


def check_route(routed: RoutedHead, directory: DirectoryPort) -> None:
    """Raise 404 or 405 if the route is not configured, or `ServiceNotIncluded` if its service is missing."""
    if routed.refusal is not None:
        raise routed.refusal
    if routed.metered and directory.service(routed.service_key) is None:
        raise UnknownRoute if routed.params.get("service_key") else ServiceNotIncluded


async def identify(exchange: Exchange) -> Caller:
    """Look up the caller by the credential in the head; raise 401 if the credential is unknown."""
    head, ports = exchange.head, exchange.worker.ports
    proof, directory = head.proof, ports.directory
    if proof.token:
        caller = await ports.tokens.identify(proof.digest, proof.token)
    elif proof.others:
        caller = await _identify_by_any(directory, proof)
    else:
        caller = await directory.identify(proof.digest)
    exchange.caller = caller
    if head.news is not None:
        exchange.worker.heads.remember(head)
    return caller


async def admit(exchange: Exchange, caller: Caller, says: Mapping[str, str] = NO_WORDS) -> AdmittedCall:
    """Read a call, find its prices, and reserve a hold on every limit; raise a `Refusal` if this fails.

    `says` are path parameters from the job that the path names.
    """
    worker, head, connection = exchange.worker, exchange.head, exchange.connection
    ports, routed, received = worker.ports, head.routed, connection.body
    if worker.buffers.pressed:
        worker.buffers.check_new(caller)
    held: AdmittedCall | None = None
    body = b""
    if routed.buffered and received.failure is None:
        if received.long or (not connection.body_complete and not await _comes_soon(connection, caller)):
            held = await by_head(exchange, caller)  # blocked, rate and slots come before its bytes
            await (
                _form_begun(connection, caller, routed, worker)
                if received.long
                else connection.late_body(caller, worker.limits.body_bytes_max)
            )
        body = b"" if received.long else received.take_parts()
    messages = received.messages
    shape = SHAPES.get(routed.route.meter) if body and routed.route is not None else None
    look = look_out_of_turn(body, shape is not None and shape.skips_texts)
    light = look is not None and look.light and not (routed.form and not routed.metered)
    light = light and (messages is None or messages.size <= UNCOUNTED_BYTES_MAX)
    if not light and held is None:
        held = await by_head(exchange, caller)
    try:
        call = (
            read(worker, head, received, caller, body, look, says)
            if light
            else await _read_in_turn(worker, head, received, caller, body, look, says)
        )
        exchange.call = call
        if call.documents or call.recordings:
            held = held or await by_head(exchange, caller)
            await count_in_turn(worker, caller, call)
        attribution, attempt = head.attribution, exchange.attempt
        asked, run, opening = attribution.run, None, None
        if routed.metered and not call.free:
            policies = run_policies(ports.directory, caller, asked)
            run, opening = run_to_judge(ports, caller, asked, policies)
        service, prices, budgets = priced(worker, head, attempt, caller, call, run, received.long)
        named = named_objects(worker.models, routed.owned, caller, call, routed.listed)
        if named or call.unsure:  # most calls name none, and make no coroutine
            await check_objects(ports.objects, caller, call, named)
        if ports.cooling.entries:
            check_circuit(worker, routed, attempt, caller, call)
        if opening is not None:
            held = held or await by_head(exchange, caller)  # a caller that is over a limit opens none
            run, prices, budgets = await open_run(ports, opening, service, attribution, call)
    except Refusal as refusal:
        ports.tally.budgets_exceeding += isinstance(refusal, TooManyBudgets)
        if held is None:
            await by_head(exchange, caller)
        raise
    admitted = AdmittedCall(exchange, caller, service, call, held, prices, budgets)
    await admitted.reserve()
    keep_run(ports, caller, run)
    return admitted


async def by_head(exchange: Exchange, caller: Caller) -> AdmittedCall:
    """Reserve one request and one concurrency slot in every limit of the caller, before the body is known."""
    held = AdmittedCall(exchange, caller, NO_SERVICE, _UNREAD)
    await held.reserve()
    return held


async def _form_begun(connection: ClientPort, caller: Caller, routed: RoutedHead, worker: Worker) -> None:
    """Read the beginning of a long multipart form, up to its file; the rest is forwarded as it arrives."""
    body, bytes_max = connection.body, worker.limits.collected_bytes_max
    assert routed.route is not None
    kind = SHAPES[routed.route.meter].form
    assert kind is not None
    form = FormReader(kind, boundary_of(routed.form))
    begun = body.take_parts()
    form.feed(begun)
    body.add(begun)
    body.form = form
    await connection.late_body(caller, bytes_max)
    if connection.body_complete:
        form.end()
    form.close(body.length or 0, bytes_max)


async def _comes_soon(connection: ClientPort, caller: Caller) -> bool:
    """Wait a moment for the rest of the request's body; return whether the body is complete."""
    soon = connection.body_soon(caller)
    if soon is not None:
        await soon
    return connection.body_complete


async def _read_in_turn(  # noqa: PLR0917  # as `read`
    worker: Worker, head: CallHead, received: RequestBody, caller: Caller, body: bytes, look: BodyLook | None,
    says: Mapping[str, str],
) -> CallRequest:  # fmt: skip
    """Read the request from a large body when it is the organization's turn in the queue.

    Raise `Overloaded` if the waiting bodies of this caller exceed its share of memory.
    """
    if not received.claim(caller, len(body)):
        raise full()
    reads = partial(read, worker, head, received, caller, body, look, says)
    call = await worker.bodies.read(caller.organization_id, reads)
    if head.routed.form and not head.routed.metered:
        await _check_upload(worker, head, caller, body)
    return call


async def _check_upload(worker: Worker, head: CallHead, caller: Caller, body: bytes) -> None:
    """Check the lines of a file for a batch that a form uploads, in turns of the organization."""
    routed = head.routed
    paths = BATCH_AT.get(routed.label)
    content = await worker.bodies.read(caller.organization_id, partial(uploaded, routed.form, body))
    if content is not None and paths is not None:
        lines = await worker.bodies.gather(caller.organization_id, batch_lines(content, paths.calls))
        call_of_all = CallRequest("none", routed.family, b"", model=model_of(lines[0]))
        check_batch_models(worker.models, worker.ports.directory, head.attribution, caller, call_of_all)


async def count_in_turn(worker: Worker, caller: Caller, call: CallRequest) -> None:
    """Count the pages and seconds of a call's media when it is the organization's turn."""
    await worker.bodies.read(caller.organization_id, partial(measure_media, call))


def read(  # noqa: PLR0917  # what a request has arrived as
    worker: Worker, head: CallHead, received: RequestBody, caller: Caller, body: bytes,
    look: BodyLook | None = None, says: Mapping[str, str] = NO_WORDS,
) -> CallRequest:  # fmt: skip
    """Read the request of a call from its `body`; raise 413 or 400 for a body that cannot be read.

    `look` has facts about the body, if it was looked at before; `says` as for `admit`.
    """
    routed = head.routed
    refusal = received.failure or head.refusal
    if refusal is not None:
        raise refusal
    assert routed.route is not None
    owned, bounds = routed.owned, worker.bounds
    reads = owned is not None and owned.reads
    form = received.form
    if form is not None:
        call = read_form(routed.route, routed.params, b"", form, bounds)
    else:
        kind, messages = routed.form if routed.metered else b"", received.messages
        params = {**routed.params, **says} if says else routed.params
        call = read_call(
            routed.route, params, body, bounds, reads=reads, look=look, form=kind, messages=messages,
            document=received.document,
        )  # fmt: skip
    if owned is not None:
        if owned.bare and (received.length or routed.chunked):
            raise InvalidRequest(f"{routed.route.path} takes no body with this method.")
        family, document = FAMILIES[call.family], call.document
        if owned.counts and document is not None:
            call.model, call.models_beside = models_counted(
                document, routed.params.get("model"), family.model_lists
            )
        elif owned.reads and document is not None and routed.label not in BATCH_AT:  # its lines are judged
            prefix = family.lists.prefix if family.lists is not None else ""
            call.models_beside = models_stored(document, family.model_lists, prefix)
        if owned.reads and document is not None and call.names.tools:
            find_tools(call, document)
        read_objects(owned, call)
    return call


# The checks of a call's models, and the current prices of all models that it names.
def priced(  # noqa: PLR0917  # what is asked by whom
    worker: Worker, head: CallHead, attempt: Attempt, caller: Caller, call: CallRequest, run: Run | None,
    once: bool = False,
) -> tuple[Service, CallPrices, CallBudgets | None]:  # fmt: skip
    """Return the service, prices and budgets of a call. They stay the same until the call is charged.

    Set `attempt` to the first target of the call's model; with `once` the call has no other target.

    Raise 403 if the key may not use every model that may answer, or if a required price is missing; raise 400
    if the key requires a user and the call names none.
    """
    ports, routed, attribution = worker.ports, head.routed, head.attribution
    metered = routed.metered and not call.free
    rule = judge(
        worker.models, ports.directory, attribution, caller, call,
        caller.acts_for(attribution.user, call.user),
        "this route does not read which one" if routed.any_model else "",
        "x-tollkeeper-user" if metered else "",
    )  # fmt: skip
    if rule is not None:
        _aim(worker.upstreams, attempt, call, rule, once)
    service, prices, budgets = NO_SERVICE, NO_PRICES, None
    if metered:
        if not call.targets:
            call.upstream = attempt.name
        know_upstreams(worker, call, rule, attempt.name)
        overlapping = () if routed.binding is None else routed.binding.overlapping
        service, prices, budgets = price_call(
            ports, caller, routed.service_key, overlapping, attribution, call, run
        )
    elif routed.metered:
        prices = prices_of(ports, caller, service, call, None)
    elif routed.listing is not None:
        narrow(worker, head, caller, call, routed.listing)
    return service, prices, budgets


def _aim(
    upstreams: Mapping[str, Upstream], attempt: Attempt, call: CallRequest, rule: ModelRule, once: bool
) -> None:
    """Set a call's targets by the `rule` of its configured model, and `attempt` to the first of them.

    Raise `InvalidRequest` if no target speaks the API of the call.
    """
    names = {target.upstream for target in rule.targets}
    there = {name: upstream.target for name in names if (upstream := upstreams.get(name)) is not None}
    call.targets = fitting(rule, call.model, call.family, there)
    call.fallback, call.repeats = rule.fallback, is_repeatable(call)
    if call.named or once:  # the objects are kept by one upstream, or the body is sent as it comes
        call.targets = call.targets[:1]
    first = call.targets[0]
    attempt.name, attempt.model = first.upstream, first.model


def know_upstreams(worker: Worker, call: CallRequest, rule: ModelRule | None, name: str) -> None:
    """Set the known facts about a call's targets; without targets, about its model at the upstream `name`."""
    upstreams = worker.upstreams
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


async def _identify_by_any(directory: DirectoryPort, proof: HeaderCredential) -> Caller:
    """Return the caller of the first known digest in `proof`, and move this digest to the front.

    Raise `InvalidApiKey` if no digest is known.
    """
    digests = (proof.digest, *proof.others)
    wrong = InvalidApiKey()
    for digest in digests:
        try:
            caller = directory.cached(digest) or await directory.identify(digest)
        except InvalidApiKey as error:
            wrong = error
            continue
        proof.digest, proof.others = digest, tuple([one for one in digests if one != digest])
        return caller
    raise wrong


# Workloads that identify by the certificate of their connection, such as a SPIFFE id, and use a configured
# key.
#
# Sources: SPIFFE's X.509-SVID (the one URI of a certificate is the id); RFC 5280, 4.2.1.6. The certificate
# was verified in the handshake, by the authorities that settings name.
def _by_certificate(head: CallHead, worker: Worker, transport: Any, refusal: Refusal) -> CallHead:
    """Return a request's head with a key that belongs to the client certificate or the upload's URL.

    Raise `refusal` if the request has neither, or has a credential of its own.
    """
    keys = worker.workloads
    missing = isinstance(refusal, InvalidApiKey) and refusal.failure == "missing"
    if missing and head.routed.route is not None:
        upload, said = upload_named(head.routed.query, head.routed.route)
        digest = passed_digest(said, upload, worker.heads.pepper)
        if digest:
            return head.routed_as(head.routed, HeaderCredential(digest))
    if not keys or head.routed.query_refusal is not None or not missing:
        raise refusal
    digests = keys.get(transport.get_extra_info(WORKLOAD) or "")
    if digests is None:
        raise refusal
    return head.routed_as(head.routed, HeaderCredential(digests[0], others=digests[1:]))
