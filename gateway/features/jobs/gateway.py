"""Jobs of callers, such as batches: a hold is reserved before the job is forwarded, and its result is
charged.

A look at a job's result charges it. Each line has an id of its own, so several looks charge it once. The hold
is released after the last line.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Final
from urllib.parse import quote

import msgspec

from gateway.calls.admit import admit as admit_use
from gateway.calls.aim import fields_allowed
from gateway.calls.charge import ChargedUse, Held, MeteredUse, UseTerms, charge, charge_as_held, release
from gateway.calls.claim import OPENING_MS, hold_request
from gateway.calls.prices import charging_prices, named_prices
from gateway.calls.terms import AdmissionTerms, check_line
from gateway.core.accounts.batch_lines import BatchLine, BatchResult, batch_lines, calls_of, inline_lines
from gateway.core.accounts.call_budgets import CallBudgets
from gateway.core.accounts.call_facts import NONE
from gateway.core.accounts.upstream_jobs import (
    BATCH,
    HOLD_MS_MAX,
    JOB_S_MAX,
    MARK,
    METADATA_MAX,
    RESPONSE,
    RUNNING,
    SECONDS,
    SERVICE_TIER,
    VIDEO,
    Job,
    id_of,
)
from gateway.core.accounts.weights import Weights
from gateway.core.billing.price_book import NO_COUNTS
from gateway.core.billing.service_tiers import place_of, places_of, tier_at
from gateway.core.billing.vector import Vector
from gateway.core.calls.aim import Aim
from gateway.core.calls.call import (
    AnswerFilter,
    Body,
    CallRequest,
    CallSpec,
    Media,
    RequestedUnits,
    UsageBounds,
    write_document,
)
from gateway.core.calls.claims import CallClaim, answer_bound, budget_claim
from gateway.core.calls.estimate import NO_ESTIMATE, Estimate
from gateway.core.calls.facts import aim_of
from gateway.core.calls.output_limits import check_numbers
from gateway.core.calls.parsing import measure_media, read_call
from gateway.core.calls.routes import ModelTarget, Route
from gateway.core.calls.tariff import NO_PRICES, CallPrices
from gateway.core.calls.use_request import LINE, UseRequest
from gateway.core.families.family import BatchPaths, JobPaths, objects_in
from gateway.core.families.header_fields import OURS_PREFIX
from gateway.core.families.objects import ObjectAccess, read_objects
from gateway.core.families.registry import BATCH_AT, JOBS, RESULTS
from gateway.core.metering.meter import Detail
from gateway.core.metering.meters import make_meter
from gateway.core.metering.reading import loose_document
from gateway.core.model import GENERIC, INTEGER_MAX, Admitted, Caller, HoldRequest, Service, Settlement
from gateway.core.wait import OVER, begin
from gateway.errors import (
    InvalidRequest,
    ModelNotAllowed,
    ModelNotPriced,
    ObjectNotFound,
    ServiceNotIncluded,
    UnknownRoute,
)
from gateway.http.admission import NO_WORDS, admit, cached_caller, identify
from gateway.http.admitted_call import NO_UNITS, AdmittedCall
from gateway.http.collections import at_collection
from gateway.http.forward import forward
from gateway.http.ports import JobsPort, Ports
from gateway.http.protocol.answer import refuses
from gateway.http.relay import own_answer, relay
from gateway.http.routing.routed_head import RoutedHead
from gateway.http.server.buffers import RequestDriver
from gateway.http.server.exchange import Attempt, Exchange, Worker

_JSON: Final = [(b"content-type", b"application/json")]
# Bytes of lines that are read at a time, before other organizations' work.
_AT_ONCE: Final = 32 << 10
# How often the first, smallest hold of a batch is renewed while lines are read.
_RENEWED_S: Final = 15.0
# Members of a response that are shown before it is charged, and the statuses of a response with output.
_OF_RUNNING: Final = ("id", "object", "status", "created_at", "model", "background")
_MADE: Final = frozenset({"completed", "incomplete", "failed"})
# Bytes that a line counts for in addition to its body.
_LINE_BYTES: Final = 512
# Statuses by which a proxy reports a failure of the upstream behind it.
_BETWEEN: Final = frozenset({502, 504})
# Fields of a hold request that are summed over the lines of a batch.
_SUMMED: Final = (
    "need", "ceiling", "read", "read_likely", "credits", "units", "money", "money_most",
    "budget_tokens", "budget_tokens_most",
)  # fmt: skip
# The result of a line that is missing.
_MISSING: Final = BatchResult("", 0, "", b"", free=False)
# A line accesses the objects that its body names.
_NAMES: Final = ObjectAccess((), None)


async def create_batch(exchange: Exchange) -> None:
    """Reserve a hold for the likely use of a batch's lines, then have the upstream create the batch.

    A request for a list of batches is answered with those of the caller's organization.
    """
    routed = exchange.head.routed
    if routed.metered or (routed.owned is not None and routed.owned.lists):
        await at_collection(exchange)
        return
    caller = cached_caller(exchange) or await identify(exchange)
    admitted = await admit(exchange, caller)
    ports, paths = exchange.worker.ports, BATCH_AT.get(routed.label)
    jobs = _jobs(ports)
    fetches = paths is not None and not paths.inline
    if fetches:
        _check_metadata(admitted.call)
    if fetches:  # a file's lines stay in memory until their hold is reserved
        with exchange.worker.buffers.files.reading(caller) as arrive:
            job = await _take_job(exchange, admitted, jobs, arrive)
    else:
        job = await _take_job(exchange, admitted, jobs)
    if fetches:
        _mark(admitted.call, job)
    exchange.before_end = partial(_store_batch, exchange, admitted, job, jobs)
    await _forward_and_relay(exchange, admitted, job, jobs, partial(_given_back, ports, job, jobs))


async def run_later(exchange: Exchange, admitted: AdmittedCall) -> None:
    """Start a call whose result comes later; its hold lasts until the result is charged.

    An answer that names no id, or already contains the result, is charged like any other answer.
    """
    worker, attempt = admitted.worker, admitted.attempt
    paths, jobs = JOBS.get(admitted.head.routed.label), _jobs(worker.ports)
    upstreams = worker.upstreams
    names = [target.upstream for target in admitted.call.aim.targets] or [attempt.name]
    if paths is None or any(name in upstreams and upstreams[name].target.path for name in names):
        raise InvalidRequest("Nobody can look at its result on this route.", param="background")
    job = _job_of(admitted, paths)
    try:
        # Before the hold lasts, and before the upstream hears of the job: a worker may end at any time.
        await jobs.open(job)
        held = await admitted.extend_for_job()
    except BaseException:
        begin(jobs.drop(job))  # which may have been stored all the same
        raise
    # Stored with its id, or once its result is unknown.
    job.tokens, job.credits = held.held_tokens, held.held_credits
    job.money, job.budget_tokens = held.money_held, held.budget_tokens_held
    exchange.before_end = partial(_store_started, exchange, admitted, job, jobs)
    await _forward_and_relay(exchange, admitted, job, jobs, partial(jobs.drop, job))


async def _forward_and_relay(
    exchange: Exchange, admitted: AdmittedCall, job: Job, jobs: JobsPort,
    never: Callable[[], Awaitable[object]],
) -> None:  # fmt: skip
    """Forward a job's request and relay the answer.

    Call `never` if the upstream cannot have created the job. If it may have, the job keeps its hold, and
    later checks find out.
    """
    try:
        answer = await forward(exchange, admitted)
        await relay(exchange, admitted, answer)
    except BaseException:
        left = admitted.attempt.forwarded and exchange.connection.body_complete
        if left and not refuses(admitted.attempt.status):
            _leave_unknown(admitted, job, jobs)
        elif admitted.due or not admitted.charges:
            begin(never())
        raise
    await OVER


def _leave_unknown(admitted: AdmittedCall, job: Job, jobs: JobsPort) -> None:
    """Store a job whose result is unknown, for later checks, and hand the call's hold over to the job."""
    attempt = admitted.attempt
    if not job.upstream and not 200 <= attempt.status < 300:
        job.upstream, job.sent = attempt.name, attempt.model
        begin(jobs.keep(job))
    _hand_over(admitted)


def _hand_over(admitted: AdmittedCall) -> None:
    """Hand the hold of a call over to its job: the call itself has no charge."""
    if admitted.charges and admitted.due:
        admitted.unwatch_hold()
        admitted.leave_room(admitted.claim.estimate.need)


async def remake(exchange: Exchange) -> None:
    """Create a job that is derived from an existing one, with the existing job's model and length."""
    caller = cached_caller(exchange) or await identify(exchange)
    job = await _jobs(exchange.worker.ports).find(caller, exchange.head.routed.params["id"])
    says = NO_WORDS
    if job is not None and job.kind == VIDEO:
        says = {"model": job.model, "seconds": str(job.seconds)}
    await run_later(exchange, await admit(exchange, caller, says))


def _job_of(admitted: AdmittedCall, paths: JobPaths) -> Job:
    """Return the job that an admitted call starts, with its hold, prices and budgets."""
    claim, decision, prices = admitted.claim, admitted.decision, admitted.prices
    budgets, call = admitted.budgets, admitted.call
    job = _job(admitted, admitted.request_id, admitted.user, admitted.service, decision, prices)
    targets, upstream, sent = call.aim.targets, job.upstream, ""
    if targets:  # with several targets, the upstream is not known yet
        upstream, sent = (targets[0].upstream, targets[0].model) if len(targets) == 1 else ("", "")
    return msgspec.structs.replace(
        job, kind=paths.kind, endpoint=paths.path, model=call.spec.model, beside=call.models_beside,
        upstream=upstream, sent=sent, videos=call.spec.choices,
        seconds=(call.spec.units.likely or {}).get(SECONDS, 0), output_max=call.output_max or 0,
        tiers=call.tiers, units=claim.units, accounts=() if budgets is None else budgets.names,
        held=_likely(prices, claim.estimate, call, budgets),
    )  # fmt: skip


async def _store_started(
    driver: RequestDriver, admitted: AdmittedCall, job: Job, jobs: JobsPort, told: list[str]
) -> None:
    """Store the id of a started job before the client reads this id.

    `told` are the ids of objects in the answer. After an error status the job is deleted if the error proves
    that nothing was created. A 4xx status proves it, and so does any error of an upstream without a list of
    jobs, unless a proxy made the error.
    """
    meter, status, paths = admitted.meter, admitted.attempt.status, JOBS[job.endpoint]
    is_over = not told or meter is None or meter.usage().reported
    if not 200 <= status < 300 and not refuses(status) and (paths.listed or status in _BETWEEN):
        _leave_unknown(admitted, job, jobs)
    elif 200 <= status < 300 and not is_over and await _store_id(driver, admitted.attempt, job, jobs, told):
        _hand_over(admitted)
    else:
        begin(jobs.drop(job))  # no await between this and the charge of the call


async def _store_id(
    driver: RequestDriver, attempt: Attempt, job: Job, jobs: JobsPort, told: list[str]
) -> bool:
    """Store a new job's id without interruption; return False if another job already has this id.

    `told` are the ids in the answer whose owner is still to be stored: a stored id is removed from it.
    """
    made = msgspec.structs.replace(job, id=told[0], status=RUNNING, upstream=attempt.name, sent=attempt.model)
    driver.shielded = True
    try:
        is_own = await jobs.begun(made)
    finally:
        driver.shielded = False
    if is_own:
        told.remove(made.id)  # its owner is noted
    else:
        told.clear()
    return is_own


async def tell_job(exchange: Exchange) -> None:
    """Relay the state of a job, or cancel it; a result is shown only after it is charged."""
    caller = cached_caller(exchange) or await identify(exchange)
    admitted = await admit(exchange, caller)
    jobs, routed = exchange.worker.ports.jobs, exchange.head.routed
    paths = BATCH_AT.get(routed.label)
    if admitted.call.objects.named and jobs is not None:
        id_ = admitted.call.objects.named[0]
        job = await jobs.find(caller, id_)
        if job is not None and job.upstream != exchange.attempt.name:
            admitted.call.take_aim(aim_of(admitted.call, targets=(ModelTarget(job.upstream, ""),)))
        shows = routed.label in RESULTS
        if (shows or routed.method == b"DELETE") and not await _check_upstream(jobs, caller, id_, []):
            what = "has no results" if shows else "cannot be deleted: cancel it first, or wait"
            raise InvalidRequest(f"It is not over, so it {what}.")
        if job is not None and job.kind == RESPONSE and not await _is_over(routed, jobs, job):
            admitted.call.answer_filter = AnswerFilter(narrow=_progress)
        if not shows:
            exchange.before_end = partial(_check_upstream, jobs, caller, id_)
        if paths is not None and paths.results and routed.method == b"GET":
            status, said = await _fetch_state(admitted, jobs, paths)
            await admitted.settle(status, complete=True)
            own_answer(exchange, status, _JSON, said)
            return
    answer = await forward(exchange, admitted)
    await relay(exchange, admitted, answer)
    await OVER


async def _is_over(routed: RoutedHead, jobs: JobsPort, job: Job) -> bool:
    """Return whether a response is charged, so that all of it may be shown.

    Raise `InvalidRequest` if the client asks for a stream before the response is complete.
    """
    if job.is_charged or (routed.method == b"GET" and await jobs.look(job)):
        return True
    if "stream=true" in routed.query:
        raise InvalidRequest("It is not over, so it cannot be streamed.", param="stream")
    return False


def _progress(document: bytes) -> Iterator[bytes]:
    """Yield a response that is not charged yet, without its output; a final status becomes `in_progress`."""
    said = loose_document(document)
    told: dict[str, object] = {name: said[name] for name in _OF_RUNNING if name in said}
    if told.get("status") in _MADE:
        told["status"] = "in_progress"
    yield write_document({**told, "output": []})


async def _fetch_state(admitted: AdmittedCall, jobs: JobsPort, paths: BatchPaths) -> tuple[int, bytes]:
    """Return status and body with the state of a batch; the link to its results points to this gateway."""
    routed = admitted.head.routed
    status, said = await jobs.ask(routed.upstream, routed.sent, paths.headers)
    await _check_upstream(jobs, admitted.caller, admitted.call.objects.named[0], [])
    document = loose_document(said)
    if document.get("results_url"):
        document["results_url"] = paths.results.replace("{id}", quote(str(document.get("id")), safe=""))
        said = write_document(document)
    return status, said


def _jobs(ports: Ports) -> JobsPort:
    if ports.jobs is None:
        raise UnknownRoute
    return ports.jobs


def _check_metadata(call: CallRequest) -> None:
    """Raise `InvalidRequest` if a batch's metadata have no room for the hold's id, which is added."""
    found = (call.body.document or {}).get("metadata")
    if found is not None and (not isinstance(found, dict) or len(found) > METADATA_MAX):
        raise InvalidRequest(f"metadata may have {METADATA_MAX} names.", param="metadata")


def _mark(call: CallRequest, job: Job) -> None:
    """Add the hold's id to the metadata of a batch, to find the batch if its own id never arrives."""
    document = call.body.document or {}
    said = document.get("metadata")
    document["metadata"] = {**(said if isinstance(said, dict) else {}), MARK: job.hold_id}
    call.body.changed = True


async def _store_batch(
    driver: RequestDriver, admitted: AdmittedCall, job: Job, jobs: JobsPort, told: list[str]
) -> None:
    """Store the id of a created batch before the client reads this id, or release the batch's hold.

    `told` are the ids in the answer. After a 5xx status the batch may exist: then its hold stays until a
    check finds out.
    """
    attempt = admitted.attempt
    if 200 <= attempt.status < 300 and told:
        if await _store_id(driver, attempt, job, jobs, told):
            return
    elif not refuses(attempt.status):
        return
    await _given_back(admitted.worker.ports, job, jobs)


async def _check_upstream(jobs: JobsPort, caller: Caller, id_: str, told: list[str]) -> bool:
    """Check a job at its upstream; return whether the job is charged, or unknown.

    Otherwise clear `told`, the ids of results in the answer, so that nobody can read the results yet.
    """
    job = await jobs.find(caller, id_)
    if job is None or job.is_charged or await jobs.look(job):
        return True
    told.clear()
    return False


async def _given_back(ports: Ports, job: Job, jobs: JobsPort) -> None:
    service = service_of(ports, job)
    try:
        if service is not None:
            await ports.counters.settle(release_of(job, service))
    finally:  # a job that cannot be deleted is looked at later, and found missing
        await jobs.drop(job)


# The hold of a batch: the sum of its lines' holds at batch prices.
async def _lines(  # noqa: PLR0917  # where the lines of a batch are
    worker: Worker, routed: RoutedHead, caller: Caller, document: Mapping[str, object], jobs: JobsPort,
    arrive: Callable[[int], None],
) -> tuple[str, Route, list[BatchLine]]:  # fmt: skip
    """Return the input file's id of a batch, the route of its calls, and its lines.

    `arrive` is called with the size of each part of the file, in bytes, as it is read.
    """
    paths, upstream = BATCH_AT.get(routed.label), routed.upstream
    model = routed.params.get("model", "")
    if paths is None:
        raise UnknownRoute
    input_id, endpoint = document.get("input_file_id"), document.get("endpoint")
    if paths.inline:
        input_id, endpoint = "", paths.makers.get(routed.label) or next(iter(paths.calls))
    elif not isinstance(input_id, str) or not input_id:
        raise InvalidRequest("input_file_id must name a file.", param="input_file_id")
    if endpoint not in paths.calls:
        raise InvalidRequest(f"endpoint must be one of {', '.join(paths.calls)}.", param="endpoint")
    route = worker.heads.router.route_of("POST", str(endpoint))
    if route is None or route.meter != paths.calls[route.path]:
        raise ServiceNotIncluded(f"Nothing here serves {endpoint}.")
    if paths.makers:
        found = calls_of(document, route.path, paths.inline, model)
    elif paths.inline:
        found = inline_lines(document.get(paths.inline), route.path, paths.inline)
    else:
        content = await jobs.fetch(
            upstream, paths.content(input_id),
            worker.limits.body_bytes_max, arrive,
        )  # fmt: skip
        found = batch_lines(content, (route.path,))
    lines = await worker.bodies.gather(caller.organization_id, found)
    return input_id, route, lines


async def _take_job(
    exchange: Exchange, admitted: AdmittedCall, jobs: JobsPort,
    arrive: Callable[[int], None] = lambda _: None,
) -> Job:  # fmt: skip
    """Reserve one hold for all lines of a batch and return the batch as a job.

    `arrive` is called with the size of each part of the input file, in bytes.
    """
    worker, head, caller = admitted.worker, admitted.head, admitted.caller
    ports, routed, attribution = worker.ports, head.routed, head.attribution
    document = admitted.call.body.document or {}
    input_id, route, lines = await _lines(worker, routed, caller, document, jobs, arrive)
    first = _call_of(route, lines[0], 1, worker.bounds, routed.params)
    hold_id = id_of("hold", ports.refusals.now_ms(), of=admitted.request_id)
    user = caller.acts_for(attribution.user, first.spec.user)
    use = UseRequest(LINE, hold_id, caller, user, attribution, first, route.service)
    with _naming(1), exchange.uninterrupted():
        entrance = _BatchEntrance(use, len(lines), exchange.shield)
        terms, _, least, decision, *_ = await admit_use(worker.admission, use, entrance, entrance)
    service, prices, budgets, _ = terms
    request = replace(least, need=0, ceiling=0, read=0, read_likely=0)
    try:
        renewed = replace(least, raises=True)
        beside = frozenset(first.models_beside)
        likely, prices = await _add_lines(admitted, request, renewed, route, lines, terms, decision, beside)
        request.raises = True
        decision = await admitted.reserve(request, budgets)
    except BaseException:
        begin(ports.counters.settle(release(
            UseTerms(caller, hold_id, use.user, service, NO_PRICES, request.names), HOLD_MS_MAX
        )))  # fmt: skip
        raise
    job = msgspec.structs.replace(
        _job(admitted, hold_id, use.user, service, decision, prices),
        groups=ports.directory.groups(caller, attribution, first), upstream=routed.upstream,
        endpoint=route.path, model=first.spec.model, beside=first.models_beside, input_id=input_id,
        batches=BATCH_AT[routed.label].batches, lines=len(lines), held=likely, units=request.units,
        accounts=request.names,
    )  # fmt: skip
    try:
        # Before the hold lasts, and before the upstream hears of the job: a worker may end at any time.
        await jobs.open(job)
        await admitted.reserve(replace(request, ttl_ms=HOLD_MS_MAX), budgets)
    except Exception:
        begin(_given_back(ports, job, jobs))
        raise
    return job


class _BatchEntrance:
    """The door by which a batch comes in, a call that was admitted itself: its hold is at first the smallest."""

    is_held = False

    def __init__(self, first: UseRequest, lines: int, shield: Callable[[], None]) -> None:
        self._first, self._lines, self.shield = first, lines, shield

    def check_paused(self, call: CallRequest) -> None:
        """Return at once: its upstream begins each line when there is room."""

    def claim(self, terms: AdmissionTerms) -> tuple[CallClaim, HoldRequest]:
        """Return the claim of the first line, and a hold of one input token for each line."""
        use, (service, prices, budgets, _) = self._first, terms
        claim, _ = hold_request(
            use.caller, use.id, use.user, service, use.call, NO_ESTIMATE, prices, budgets, 1, raises=False
        )
        least = self._lines if service.counts_tokens else 0
        request = HoldRequest(
            use.caller, use.id, use.user, service, least, least, units=0, read=least, read_likely=least,
            ttl_ms=OPENING_MS, whole=True,
        )  # fmt: skip
        if budgets is not None:
            request.budgets, request.names = budgets.accounts, budgets.names
        return claim, request

    def enter(self) -> None:
        """Return at once: jobs are counted when they are stored."""

    async def hold_by_head(self) -> None:
        """Return at once: the call that brought the batch is admitted."""


async def _add_lines(  # noqa: PLR0917  # the lines of a batch, and how each is held for
    admitted: AdmittedCall, request: HoldRequest, renewed: HoldRequest, route: Route, lines: list[BatchLine],
    terms: AdmissionTerms, decision: Admitted, beside: frozenset[str],
) -> tuple[int, CallPrices]:  # fmt: skip
    """Add each line of a batch to a hold request, in pieces that alternate with other organizations' work.

    Meanwhile `renewed` keeps the small hold that was reserved first, by `decision`. Each line names the models
    `beside` too. Return the likely cost of all lines in nano-units, and the prices of the last line.
    """
    worker, head, caller = admitted.worker, admitted.head, request.caller
    ports, routed, budgets = worker.ports, head.routed, terms.budgets
    likely, models, prices, number = 0, terms.prices.named, at_batch_prices(terms.prices), 0
    due_s = ports.seconds() + _RENEWED_S
    for piece in _pieces(lines):
        read = partial(_calls_of, route, piece, number + 1, worker.bounds, routed.params)
        calls = await worker.bodies.read(caller.organization_id, read)
        began_s = ports.seconds()
        for call in calls:
            number += 1
            if caller.acts_for(head.attribution.user, call.spec.user) != request.user:
                raise InvalidRequest(f"Line {number}: it must be of the first line's user.", param="user")
            if beside.symmetric_difference(call.models_beside):  # its budgets and prices would be others
                raise InvalidRequest(
                    f"Line {number}: it must name the same other models as the first line, or go into a batch"
                    " of its own.",
                    param="model",
                )
            use = UseRequest(
                LINE, "", caller, request.user, head.attribution, call, route.service, routed.upstream,
                routed.owned,
            )  # fmt: skip
            with _naming(number):
                own = await check_line(worker.admission, use, terms, models)
                if own is not None:
                    models, prices = own.named, at_batch_prices(own)
                likely += _add(worker, request, call, prices, budgets, decision)
        await worker.bodies.rest(ports.seconds() - began_s)
        if ports.seconds() > due_s:
            due_s = ports.seconds() + _RENEWED_S
            await admitted.reserve(renewed, budgets)
    return likely, prices


@contextmanager
def _naming(number: int) -> Iterator[None]:
    """Name a line of a batch in its refusal, unless the head of the request is at fault."""
    try:
        yield
    except (InvalidRequest, ModelNotAllowed, ModelNotPriced, ObjectNotFound) as error:
        if (error.param or "").startswith(OURS_PREFIX.decode()):
            raise
        raise type(error)(f"Line {number}: {error.told}", param=error.param) from error


def _pieces(lines: list[BatchLine]) -> Iterator[list[BatchLine]]:
    """Yield the lines in pieces that are small enough to be parsed without delaying other calls."""
    piece, size = list[BatchLine](), 0
    for line in lines:
        piece.append(line)
        size += len(bytes(line.body)) + _LINE_BYTES
        if size >= _AT_ONCE:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _calls_of(
    route: Route, lines: list[BatchLine], first: int, bounds: UsageBounds, params: Mapping[str, str]
) -> list[CallRequest]:
    """Return the calls of lines with the objects that each names; `first` is the first line's number."""
    calls = [_call_of(route, line, number, bounds, params) for number, line in enumerate(lines, first)]
    measure_media(*calls)
    for call in calls:
        read_objects(_NAMES, call)
    return calls


def _job(  # noqa: PLR0917  # whose it is, what it holds, at which prices
    admitted: AdmittedCall, hold_id: str, user: str, service: Service, decision: Admitted,
    prices: CallPrices,
) -> Job:  # fmt: skip
    """Return a new job with the amounts that a decision held; its creation time is that of Redis' clock."""
    created_ms, caller, head = decision.now_ms, admitted.caller, admitted.head
    vector, attribution = prices.named[0].vector if prices.named else None, head.attribution
    return Job(
        hold_id, caller.organization_id, caller.tenant_id, caller.key_id, caller.partition, user, service.key,
        admitted.attempt.name, "", "", "", 1, created_ms, created_ms + 1000 * JOB_S_MAX,
        tokens=decision.held_tokens, credits=decision.held_credits, money=decision.money_held,
        budget_tokens=decision.budget_tokens_held, currency="" if vector is None else vector.currency,
        columns=head.said.columns, session=attribution.session,
        metadata=attribution.metadata.decode(), own=prices.own, weights=_packed(decision.weights),
        priced_ms=prices.at_ms, tags=admitted.worker.ports.directory.tags(caller, attribution),
        groups=admitted.groups, substitution=admitted.call.substitution,
    )  # fmt: skip


def _call_of(
    route: Route, line: BatchLine, number: int, bounds: UsageBounds, params: Mapping[str, str]
) -> CallRequest:
    """Return the call in a line of a batch; raise InvalidRequest naming the line."""
    try:
        call = read_call(route, params, bytes(line.body), bounds)
    except InvalidRequest as error:
        raise InvalidRequest(f"Line {number}: {error.told}", param=error.param) from error
    if call.spec.streamed:
        raise InvalidRequest(f"Line {number}: a call of a batch is not streamed.", param="stream")
    call.take_aim(aim_of(call, upstream=route.upstream))
    return call


def _add(  # noqa: PLR0917  # a call, and what holds it
    worker: Worker, request: HoldRequest, call: CallRequest, prices: CallPrices, budgets: CallBudgets | None,
    decision: Admitted,
) -> int:  # fmt: skip
    """Add one more call to a hold request; return the call's likely cost in nano-units.

    Raise `InvalidRequest` for a number in its body that may overrule its maximum, if the plan of `decision`,
    the price or a budget holds its maximum.
    """
    caller, service = request.caller, request.service
    estimate = worker.ports.estimator.hold(call, caller.organization_id, service.key)
    claim, one = hold_request(
        caller, request.request_id, request.user, service, call, estimate, prices, budgets, 1, raises=False
    )
    share = replace(
        decision, held_tokens=one.ceiling, held_credits=one.credits, money_held=one.money,
        budget_tokens_held=one.budget_tokens,
    )  # fmt: skip
    bound = answer_bound(call, claim, share, NO_UNITS if budgets is None else budgets.enforced)
    if bound is not None:
        check_numbers(call, fields_allowed(worker.admission, call, call.aim.upstream), bound)
    for name in _SUMMED:
        setattr(request, name, min(getattr(request, name) + getattr(one, name), INTEGER_MAX))
    return _likely(prices, estimate, call, budgets)


def _likely(prices: CallPrices, estimate: Estimate, call: CallRequest, budgets: CallBudgets | None) -> int:
    """Return the likely cost of a call, in nano-units."""
    named = [match.vector for match in prices.named if match.vector is not None]
    hold = "" if budgets is None else budgets.hold
    return budget_claim(named[:1], estimate, call, hold).money if named else 0


def at_batch_prices(prices: CallPrices) -> CallPrices:
    """Return these prices with the discount for batches."""
    named = tuple([
        one if one.vector is None else replace(one, vector=at_batch_price(one.vector)) for one in prices.named
    ])  # fmt: skip
    return replace(prices, vectors=tuple([at_batch_price(vector) for vector in prices.vectors]), named=named)


def at_batch_price(vector: Vector) -> Vector:
    """Return a price whose usual amounts are the model's amounts for batches, if these differ."""
    if SERVICE_TIER in vector.tiers:
        return vector.tiers[SERVICE_TIER]
    factor = vector.service_tiers.get(SERVICE_TIER)
    places = places_of(vector)
    if factor is None:
        return vector._replace(service_tiers=places, tiers={})

    def times(prices: tuple[int, ...]) -> tuple[int, ...]:
        return tuple([-(-price * factor[0] // factor[1]) for price in prices])

    return vector._replace(
        prices=times(vector.prices), request=times((vector.request,))[0], service_tiers=places, tiers={},
        context_tiers=tuple([(above, times(dearer)) for above, dearer in vector.context_tiers]),
    )  # fmt: skip


def _packed(weights: Weights | None) -> tuple[tuple[int, ...], int, int] | None:
    return None if weights is None else (weights.by_kind, weights.read, weights.written)


# The charge of a job, once its result exists.
def service_of(ports: Ports, job: Job) -> Service | None:
    """Return the service of a job at its organization's price.

    The usual price applies if the organization may not use the service any more.
    """
    try:
        found = ports.directory.resolve(job.caller, job.service)
    except ServiceNotIncluded:
        found = None
    return found or ports.directory.service(job.service)


def release_of(job: Job, service: Service) -> Settlement:
    """Return the settlement that releases the hold of a job."""
    return release(_terms(job, job.hold_id, service, NO_PRICES), HOLD_MS_MAX)


def line_charges(  # noqa: PLR0917  # whose job it is, and its result
    ports: Ports, job: Job, service: Service, route: Route, results: Iterable[BatchResult], answered: int,
    bounds: UsageBounds, ago_s: float, each: bool = False,
) -> Iterator[ChargedUse | None]:  # fmt: skip
    """Yield the charge of each line of a batch's result; None for a line that used nothing.

    `ago_s` is the job's age in seconds, and `answered` the number of lines that have an answer. `each`: the
    upstream reports every choice of an answer by itself. A line that is missing or has unreadable usage costs
    its share of the hold. A repeated line costs nothing more.
    """
    prices, there = _prices_then(ports, job, service), set[str]()
    for number, line in enumerate(results, 1):
        of = job.hold_id if line.custom_id else f"{job.hold_id} unnamed"
        id_ = id_of(line.custom_id or str(number), job.created_ms, of=of)
        charged = None
        if id_ not in there:  # a repeated line is charged once
            charged = _charge_of_result(ports, job, service, route, line, id_, prices, ago_s, bounds, each)
            if charged is None and not line.free:
                charged = _share(job, id_, service, line, ago_s)
        if charged is not None:
            there.add(id_)
        yield charged if charged is not None and charged.settlement.charge else None
    for number in range(len(there), min(answered, job.lines)):
        id_ = id_of(str(number), job.created_ms, of=f"{job.hold_id} missing")
        yield _share(job, id_, service, _MISSING, ago_s)


def call_charge(  # noqa: PLR0917  # whose job it is, and its result
    ports: Ports, job: Job, service: Service, route: Route, body: bytes, free: bool, bounds: UsageBounds,
    ago_s: float, each: bool = False,
) -> ChargedUse | None:  # fmt: skip
    """Return the charge of a job of one call, created `ago_s` seconds ago, from its result `body`.

    A result without usage costs the whole hold, or nothing (None) if the job may be `free`. `each`: the
    upstream reports every choice by itself.
    """
    line = BatchResult("", 200, "", body, free)
    prices = _prices_then(ports, job, service)
    charged = _charge_of_result(ports, job, service, route, line, job.hold_id, prices, ago_s, bounds, each)
    return charged or (None if free else unread_charge(job, service, ago_s))


def _charge_of_result(  # noqa: PLR0917  # as `line_charges`
    ports: Ports, job: Job, service: Service, route: Route, line: BatchResult, id_: str, prices: CallPrices,
    ago_s: float, bounds: UsageBounds, each: bool,
) -> ChargedUse | None:  # fmt: skip
    """Return the charge of a result from its reported usage; None if no usage is reported.

    `id_` becomes the id of the charge. `each`: the upstream reports every choice by itself.
    """
    spec = CallSpec(job.model)
    if job.kind == VIDEO:
        spec = CallSpec(job.model, choices=job.videos, units=RequestedUnits({SECONDS: job.seconds}))
    elif each:
        spec = CallSpec(job.model, choices=max(1, len(objects_in(loose_document(line.body), "choices"))))
    most = job.output_max or None
    call = CallRequest(route.meter, route.family, Body(), spec, most, models_beside=job.beside, reports=True)
    call.aim = Aim(call.said, reports_each=each)
    meter = make_meter(call, line.status, b"application/json", bounds=bounds)
    meter.whole(line.body)
    if job.kind != VIDEO:  # a report without a prompt is none: the rest of the hold is the prompt's
        tokens = max(1, -(-(job.budget_tokens or job.tokens) // job.lines) - meter.output)
        call.media = Media(tokens=tokens)
    usage, detail = meter.usage(), meter.detail
    passes = job.kind == RESPONSE and not line.free and usage.total > max(job.tokens, job.budget_tokens) > 0
    has_use = usage.reported and (usage.total > 0 or job.kind == VIDEO)
    if not passes and not has_use:
        return None
    if job.kind == BATCH:
        detail.service_tier = tier_at(SERVICE_TIER, place_of(detail.service_tier))
    use = _use(job, route.family, line, ago_s, detail)
    use.counts, use.total, use.units, use.estimated = detail.counts(usage), usage.total, 1, usage.estimated
    use.at_ms = job.created_ms
    ended_ms = prices.at_ms + use.duration_ms
    return charge(ports.directory.price, ended_ms, use, _terms(job, id_, service, prices))


def _share(job: Job, id_: str, service: Service, line: BatchResult, ago_s: float) -> ChargedUse:
    """Return the charge of a line with unreadable usage: the hold divided by the job's number of lines."""

    def share(whole: int) -> int:
        return -(-whole // job.lines)

    one = msgspec.structs.replace(
        job, tokens=share(job.tokens), credits=share(job.credits), units=share(job.units),
        money=share(job.money), budget_tokens=share(job.budget_tokens), held=share(job.held),
    )  # fmt: skip
    return _charge_as_held(one, id_, service, line, ago_s)


def unread_charge(job: Job, service: Service, ago_s: float) -> ChargedUse:
    """Return the charge of a job with an unreadable result: its whole hold, marked estimated."""
    return _charge_as_held(job, job.hold_id, service, _MISSING, ago_s)


def _charge_as_held(job: Job, id_: str, service: Service, line: BatchResult, ago_s: float) -> ChargedUse:
    detail = Detail()
    detail.service_tier = SERVICE_TIER if job.kind == BATCH else ""
    use = _use(job, GENERIC, line, ago_s, detail)
    use.estimated, use.total, use.units = True, job.budget_tokens or job.tokens, job.units
    held = Held(job.tokens, job.credits, job.money, job.budget_tokens, job.held)
    return charge_as_held(use, _terms(job, id_, service, NO_PRICES), held)


def _use(job: Job, family: str, line: BatchResult, ago_s: float, detail: Detail) -> MeteredUse:
    """Return the `MeteredUse` of a job or of one of its lines, without amounts yet."""
    return MeteredUse(
        used=True, counts=NO_COUNTS, total=0, units=0, estimated=False, detail=detail, model=job.model, route=job.endpoint, family=family, status=line.status,
        duration_ms=max(0, int(1000 * ago_s)), session=job.session, upstream_id=line.request_id,
        metadata=msgspec.Raw(job.metadata.encode()) if job.metadata else NONE, sent=job.sent,
        tiers=job.tiers,
    )  # fmt: skip


def _terms(job: Job, id_: str, service: Service, prices: CallPrices) -> UseTerms:
    return UseTerms(
        job.caller, id_, job.user, service, prices, job.accounts, bool(job.accounts), job.currency,
        job.weighing, job.columns, job.tags, job.groups, job.substitution,
    )  # fmt: skip


def _prices_then(ports: Ports, job: Job, service: Service) -> CallPrices:
    """Return the prices of a job at its `priced_ms`."""
    at_ms = job.priced_ms or job.created_ms
    call = CallRequest("none", GENERIC, Body(), CallSpec(job.model), models_beside=job.beside)
    targets = (ModelTarget(job.upstream, job.sent),) if job.sent else ()
    call.take_aim(aim_of(call, targets=targets, upstream=job.upstream))
    named = named_prices(ports.directory, job.caller, call, job.own, at_ms)
    return CallPrices(charging_prices(service, call, named), named, at_ms, job.own, hourly=True)
