"""Everything before a call is forwarded: identify its caller, read its request, reserve its hold.

A refusal because of the body comes after the admission by the head: a blocked or rate-limited caller gets
that refusal first, and a refused request still counts as one of its sender's requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from gateway.calls.admit import Admission
from gateway.calls.admit import admit as admit_use
from gateway.calls.claim import hold_request
from gateway.calls.permit import check_batch_models
from gateway.calls.ports import DirectoryPort
from gateway.calls.terms import AdmissionTerms
from gateway.core.accounts.batch_lines import batch_lines, model_of, uploaded_batch
from gateway.core.calls.call import (
    UNCOUNTED_BYTES_MAX,
    Body,
    BodyLook,
    CallRequest,
    CallSpec,
    look_out_of_turn,
)
from gateway.core.calls.estimate import NO_ESTIMATE
from gateway.core.calls.forms import FormReader, boundary_of
from gateway.core.calls.parsing import find_tools, measure_media, read_call, read_form
from gateway.core.calls.tariff import NO_PRICES
from gateway.core.calls.use_request import (
    AUTHORIZED,
    CALL,
    FREE_AUTHORIZED,
    FREE_CALL,
    TURN,
    KindOfUse,
    UseRequest,
)
from gateway.core.credentials import WORKLOAD
from gateway.core.families.controlled import models_counted, models_stored
from gateway.core.families.objects import read_objects
from gateway.core.families.registry import BATCH_AT, FAMILIES, SHAPES
from gateway.core.model import GENERIC, NO_SERVICE, Caller
from gateway.errors import (
    InvalidApiKey,
    InvalidRequest,
    Refusal,
    ServiceNotIncluded,
    TooManyBudgets,
    UnknownRoute,
)
from gateway.http.admitted_call import AdmittedCall
from gateway.http.forward import check_circuit
from gateway.http.identity import passed_digest
from gateway.http.model_lists import narrow
from gateway.http.routing.head import CallHead, HeaderCredential
from gateway.http.routing.routed_head import RoutedHead
from gateway.http.routing.routes import upload_named
from gateway.http.server.buffers import full
from gateway.http.server.exchange import Attempt, ClientPort, Exchange, RequestBody, Worker

# The request of a call whose body was not read yet.
_UNREAD: Final = CallRequest("none", GENERIC, Body())
_HEAD_ALONE: Final = AdmissionTerms(NO_SERVICE, NO_PRICES, None, None)
# Without path parameters from a job.
NO_WORDS: Final[Mapping[str, str]] = {}


def cached_caller(exchange: Exchange) -> Caller | None:
    """Return the caller of this call from the caches; None if `identify` has to look it up.

    Raise 404 or 405 for a route that is not configured, 401 for an unreadable credential.
    """
    head, worker = exchange.head, exchange.worker
    ports = worker.ports
    check_route(head.routed, ports.directory)
    refusal = head.routed.query_refusal or head.proof.refusal  # written out: the hot path
    if refusal is not None:
        head = exchange.head = _key_by_certificate(head, worker, exchange.connection.transport, refusal)
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


async def admit(
    exchange: Exchange, caller: Caller, job_params: Mapping[str, str] = NO_WORDS, kind: KindOfUse = CALL
) -> AdmittedCall:
    """Read a call, find its prices, and reserve a hold on every limit; raise a `Refusal` if this fails.

    `job_params` are path parameters from the job that the path names. `kind` is that of a usual call.
    """
    worker, head, connection = exchange.worker, exchange.head, exchange.connection
    ports, routed, received = worker.ports, head.routed, connection.body
    if worker.buffers.pressed:
        worker.buffers.check_new(caller)
    held: AdmittedCall | None = None
    body = b""
    if routed.buffered and received.failure is None:
        if received.long or (not connection.body_complete and not await _comes_soon(connection, caller)):
            held = await reserve_before_body(
                exchange, caller
            )  # blocked, rate and slots come before its bytes
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
        held = await reserve_before_body(exchange, caller)
    try:
        call = (
            read(worker, head, received, caller, body, look, job_params)
            if light
            else await _read_in_turn(worker, head, received, caller, body, look, job_params)
        )
        exchange.call = call
        if call.media.documents or call.media.recordings:
            held = held or await reserve_before_body(exchange, caller)
            await count_in_turn(worker, caller, call)
        if routed.listing is not None:
            call.answer_filter = narrow(worker, head, caller, call, routed.listing)
    except Refusal:
        if held is None:
            await reserve_before_body(exchange, caller)
        raise
    entrance = CallEntrance(exchange, caller, held, kind)
    try:
        admission = await admit_use(worker.admission, entrance.request_of(call), entrance)
    except TooManyBudgets:
        ports.tally.budgets_exceeding += 1
        raise
    finally:
        exchange.unshield()
        note_target(exchange.attempt, call)
    if admission.call is not call:
        call = exchange.call = admission.call
        note_target(exchange.attempt, call)
    service, prices, budgets, _ = admission.terms
    admitted = AdmittedCall(exchange, caller, service, call, entrance.held, prices, budgets, admission)
    if admission.asked_prices is not None and not admission.sealed:
        admitted.asked_body = body
    return admitted


class CallEntrance:
    """The door by which a call comes in: over a connection, perhaps `held` by its head before."""

    __slots__ = ("_caller", "_exchange", "_usual", "held", "is_held", "shield")

    def __init__(
        self, exchange: Exchange, caller: Caller, held: AdmittedCall | None, usual: KindOfUse = CALL
    ) -> None:
        self._exchange, self._caller, self._usual = exchange, caller, usual
        self.held, self.is_held, self.shield = held, held is not None, exchange.shield

    def request_of(self, call: CallRequest, is_called: bool = True) -> UseRequest:
        """Return the request for the use of a call; `is_called`: it is called from here."""
        exchange, head, routed = self._exchange, self._exchange.head, self._exchange.head.routed
        is_free = call.spec.mcp.free or not routed.metered
        usual = self._usual if routed.opens is None else TURN
        kinds = (usual, FREE_CALL) if is_called else (AUTHORIZED, FREE_AUTHORIZED)
        overlapping = () if is_free or routed.binding is None else routed.binding.overlapping
        return UseRequest(
            kinds[is_free], exchange.request_id, self._caller,
            self._caller.acts_for(head.attribution.user, call.spec.user), head.attribution, call,
            routed.service_key if routed.metered else "", exchange.attempt.name, routed.owned,
            "this route does not read which one" if routed.any_model else "", overlapping, routed.listed,
            exchange.connection.body.long, routed.units, "model" in routed.params, head.passed,
        )  # fmt: skip

    def check_paused(self, call: CallRequest) -> None:
        """Raise `UpstreamLimited` if the circuit breaker pauses all upstreams of the call."""
        exchange = self._exchange
        note_target(exchange.attempt, call)
        check_circuit(exchange.worker, exchange.head.routed, exchange.attempt, self._caller, call)

    async def hold_by_head(self) -> None:
        """Reserve by the head, unless that is done."""
        if self.held is None:
            self.held, self.is_held = await reserve_before_body(self._exchange, self._caller), True


def note_target(attempt: Attempt, call: CallRequest) -> None:
    """Set `attempt` to the first target of a call with targets."""
    if call.aim.targets:
        first = call.aim.targets[0]
        attempt.name, attempt.model = first.upstream, first.model


async def reserve_before_body(exchange: Exchange, caller: Caller) -> AdmittedCall:
    """Reserve one request and one concurrency slot in every limit of the caller, before the body is known."""
    user = caller.acts_for(exchange.head.attribution.user)
    claim, request = hold_request(
        caller, exchange.request_id, user, NO_SERVICE, _UNREAD, NO_ESTIMATE, NO_PRICES, None,
        exchange.head.routed.units, False,
    )  # fmt: skip
    held = AdmittedCall(exchange, caller, NO_SERVICE, _UNREAD)
    held.take(Admission(_HEAD_ALONE, claim, request, await held.reserve(request, None), False, _UNREAD))
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
    form.expect_file_to_end(body.length or 0, bytes_max)


async def _comes_soon(connection: ClientPort, caller: Caller) -> bool:
    """Wait a moment for the rest of the request's body; return whether the body is complete."""
    soon = connection.body_soon(caller)
    if soon is not None:
        await soon
    return connection.body_complete


async def _read_in_turn(  # noqa: PLR0917  # as `read`
    worker: Worker, head: CallHead, received: RequestBody, caller: Caller, body: bytes, look: BodyLook | None,
    job_params: Mapping[str, str],
) -> CallRequest:  # fmt: skip
    """Read the request from a large body when it is the organization's turn in the queue.

    Raise `Overloaded` if the waiting bodies of this caller exceed its share of memory.
    """
    if not received.claim(caller, len(body)):
        raise full()
    reads = partial(read, worker, head, received, caller, body, look, job_params)
    call = await worker.bodies.read(caller.organization_id, reads)
    if head.routed.form and not head.routed.metered:
        await _check_upload(worker, head, caller, body)
    return call


async def _check_upload(worker: Worker, head: CallHead, caller: Caller, body: bytes) -> None:
    """Check the lines of a file for a batch that a form uploads, in turns of the organization."""
    routed = head.routed
    paths = BATCH_AT.get(routed.label)
    content = await worker.bodies.read(caller.organization_id, partial(uploaded_batch, routed.form, body))
    if content is not None and paths is not None:
        lines = await worker.bodies.gather(caller.organization_id, batch_lines(content, paths.calls))
        call_of_all = CallRequest("none", routed.family, Body(), CallSpec(model_of(lines[0])))
        check_batch_models(worker.models, worker.ports.directory, head.attribution, caller, call_of_all)


async def count_in_turn(worker: Worker, caller: Caller, call: CallRequest) -> None:
    """Count the pages and seconds of a call's media when it is the organization's turn."""
    await worker.bodies.read(caller.organization_id, partial(measure_media, call))


def read(  # noqa: PLR0917  # what a request has arrived as
    worker: Worker, head: CallHead, received: RequestBody, caller: Caller, body: bytes,
    look: BodyLook | None = None, job_params: Mapping[str, str] = NO_WORDS,
) -> CallRequest:  # fmt: skip
    """Read the request of a call from its `body`; raise 413 or 400 for a body that cannot be read.

    `look` has facts about the body, if it was looked at before; `job_params` as for `admit`.
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
        params = {**routed.params, **job_params} if job_params else routed.params
        call = read_call(
            routed.route, params, body, bounds, reads=reads, look=look, form=kind, messages=messages,
            document=received.document,
        )  # fmt: skip
    if owned is not None:
        if owned.bare and (received.length or routed.chunked):
            raise InvalidRequest(f"{routed.route.path} takes no body with this method.")
        family, document = FAMILIES[call.family], call.body.document
        if owned.counts and document is not None:
            named = routed.params.get("model")
            model, call.models_beside = models_counted(document, named, family.model_lists)
            call.spec = CallSpec(model)
        elif owned.reads and document is not None and routed.label not in BATCH_AT:  # its lines are judged
            prefix = family.lists.prefix if family.lists is not None else ""
            call.models_beside = models_stored(document, family.model_lists, prefix)
        if owned.reads and document is not None and call.body.names.tools:
            find_tools(call, document)
        read_objects(owned, call)
    return call


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
def _key_by_certificate(head: CallHead, worker: Worker, transport: Any, refusal: Refusal) -> CallHead:
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
