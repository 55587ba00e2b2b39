"""Every error Tollkeeper raises: one root, each class with its reason and HTTP status.

The docstring of a class is its message. Which JSON shape a client sees is decided in
`core/families/refusal.py`; nothing here knows an API family.
"""

from __future__ import annotations

from typing import ClassVar


class TollkeeperError(Exception):
    """Something went wrong."""

    reason: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())

    @property
    def message(self) -> str:
        """The sentence a person reads."""
        return str(self.args[0])


class SettingError(TollkeeperError):
    """A setting is unknown or invalid."""

    reason = "invalid_setting"


class StartError(TollkeeperError):
    """Tollkeeper cannot start; the message says why, on one line."""

    reason = "cannot_start"


class Refusal(TollkeeperError):
    """A request that the gateway answers itself. What it costs: docs/internals/request.md, Refusals.

    `retry_after_s` is None where no time is known; `retry_helps` is the answer to
    "does waiting under a minute help?" (None: the field is not sent). `param` names the
    request field that is wrong, where one is. `fields` of the answer tell what is left of the
    limit that refused, `scope` whose limit that is: the gateway's own where it says nothing else. `policy` is
    the name that `RateLimit-Policy` has for it, empty for none; `budget` is the `BudgetWindow` that refused.
    `reply_to` is the id of the message that is refused, where it has one.
    """

    scope: str = "gateway"
    fields: tuple[tuple[bytes, bytes], ...] = ()
    policy: str = ""
    budget: object = None
    reply_to: str | int | None = None

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        retry_helps: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.retry_after_s = retry_after_s
        self.retry_helps = retry_helps

    @property
    def told(self) -> str:
        """What its caller reads."""
        return self.message

    @property
    def told_of_field(self) -> str:
        """The same behind the name of the field, where an API has no place of its own for that."""
        return f"{self.param}: {self.told}" if self.param else self.told


class InvalidApiKey(Refusal):
    """The API key is missing, malformed, unknown, expired or revoked."""

    # `failure` says which, one of `REASONS` in `gateway/core/credentials.py`.

    reason = "invalid_api_key"
    status = 401
    failure: str = "unknown"


class EndedApiKey(InvalidApiKey):
    """The API key has expired or is revoked."""


class InsufficientCredits(Refusal):
    """The organization's credits do not cover this request."""

    reason = "insufficient_credits"
    status = 402


class SpendCapReached(Refusal):
    """The organization's spend cap for this month does not cover this request."""

    reason = "spend_cap_reached"
    status = 402


class TenantBlocked(Refusal):
    """This tenant was blocked by an administrator."""

    reason = "tenant_blocked"
    status = 403


class ServiceNotIncluded(Refusal):
    """This service is not included in the organization's subscription."""

    reason = "service_not_included"
    status = 403


class ModelNotAllowed(Refusal):
    """This API key may not use the requested model."""

    reason = "model_not_allowed"
    status = 403


class ModelNotPriced(Refusal):
    """The requested model, or a tool of the call, has no price here."""

    reason = "model_not_priced"
    status = 403


class UnknownRoute(Refusal):
    """No route is configured for this path."""

    reason = "unknown_route"
    status = 404


class ObjectNotFound(Refusal):
    """No stored object of this id belongs to this organization."""

    reason = "object_not_found"
    status = 404


class MethodNotAllowed(Refusal):
    """This path does not accept this method."""

    reason = "method_not_allowed"
    status = 405


class InvalidRequest(Refusal):
    """The request is not valid."""

    reason = "invalid_request"
    status = 400


class MalformedRequest(InvalidRequest):
    """The request is not HTTP/1.1 as this gateway accepts it."""


class FieldsTooLarge(MalformedRequest):
    """The header fields are larger or more than this gateway accepts."""

    status = 431


class TargetTooLong(MalformedRequest):
    """The request line is longer than this gateway accepts."""

    status = 414


class UnknownMethod(MalformedRequest):
    """This gateway does not know this method."""

    status = 501


class UnsupportedVersion(MalformedRequest):
    """Only HTTP/1.0 and HTTP/1.1 are spoken here."""

    status = 505


class ExpectationFailed(MalformedRequest):
    """The only expectation this gateway can meet is 100-continue."""

    status = 417


class UpgradeRefused(MalformedRequest):
    """WebSocket connections are not served here: send the request by HTTP/1.1."""

    status = 426
    fields: tuple[tuple[bytes, bytes], ...] = ((b"upgrade", b"HTTP/1.1"), (b"connection", b"upgrade"))


class RequestTimeout(MalformedRequest):
    """The request did not arrive in time."""

    status = 408


class TooManyBudgets(InvalidRequest):
    """Budgets of more models are about this call than it may take from: ask for fewer models at once."""


class UserRequired(Refusal):
    """This API key needs a user for each call: name one in the field x-tollkeeper-user."""

    reason = "user_required"
    status = 400


class RunRequired(Refusal):
    """Each of these calls needs a run: name one in the field x-tollkeeper-run."""

    reason = "run_required"
    status = 400


class RequestTooLarge(Refusal):
    """The request body is larger than this gateway accepts."""

    reason = "request_too_large"
    status = 413


class QuotaExceeded(Refusal):
    """The tenant's tokens for this cycle are used up."""

    reason = "quota_exceeded"
    status = 429


class QuotaHeld(Refusal):
    """What remains is held by calls in flight; retry in a second."""

    reason = "quota_held"
    status = 429


class BudgetExceeded(Refusal):
    """A budget's amount is used up."""

    reason = "budget_exceeded"
    status = 429


class RunExceeded(BudgetExceeded):
    """A run's amount, or its number of calls, is used up."""

    reason = "run_exceeded"
    status = 429


class TooManyRuns(Refusal):
    """The tenant has as many runs as may be remembered."""

    reason = "too_many_runs"
    status = 429


class RunEnded(Refusal):
    """The run has ended, or one that it draws from has."""

    reason = "run_ended"
    status = 409


class RunConflict(Refusal):
    """The run was opened with another amount, number of calls or parent."""

    reason = "run_conflict"
    status = 409


class RunNotFound(Refusal):
    """No run of this id is open, or ended lately, in this tenant."""

    reason = "run_not_found"
    status = 404


class HoldNotFound(Refusal):
    """No hold of this id is open, or ended lately, in this tenant."""

    reason = "hold_not_found"
    status = 404


class HoldEnded(Refusal):
    """The hold has ended: it was settled, released, or its time is over."""

    reason = "hold_ended"
    status = 409


class IdempotencyConflict(Refusal):
    """The Idempotency-Key was used with another body, or its first request is still running."""

    reason = "idempotency_conflict"
    status = 409


class RateLimited(Refusal):
    """Too many requests or tokens in a minute."""

    reason = "rate_limited"
    status = 429


class UpstreamLimited(RateLimited):
    """The upstream has enough for now, by a limit of its own."""

    scope = "upstream"


class UpstreamFull(UpstreamLimited):
    """The upstream's capacity is used up, and the call could not wait for its part of it any longer."""

    reason = "capacity_exceeded"


class PriorityNotAllowed(Refusal):
    """This API key may not claim the priority that its call asks for."""

    reason = "priority_not_allowed"
    status = 403


class ConcurrencyLimited(Refusal):
    """Too many requests at once."""

    reason = "concurrency_limited"
    status = 429


class UpstreamFailure(Refusal):
    """The upstream failed."""

    # Both for operators alone: one of a few words, and what the machine says.

    cause: str = "broken"
    detail: str = ""


class UpstreamUnreachable(UpstreamFailure):
    """The upstream cannot be reached or gave an answer that is not HTTP."""

    reason = "upstream_unreachable"
    status = 502


class UpstreamTimeout(UpstreamFailure):
    """The upstream did not answer in time."""

    reason = "upstream_timeout"
    status = 504
    cause = "timeout"


class UpstreamSignedOut(UpstreamFailure):
    """The gateway has no valid credentials for the upstream now."""

    reason = "upstream_credentials"
    status = 503
    cause = "credentials"


class IssuerUnavailable(Refusal):
    """The keys of the token's issuer cannot be read, so nobody knows whether the token is good."""

    reason = "issuer_unavailable"
    status = 503


class CountersUnavailable(Refusal):
    """The counters cannot be reached or are not verified yet."""

    # What a server said, and where it is, is for logs: a caller reads the same whatever it was.
    reason = "counters_unavailable"
    status = 503

    @property
    def told(self) -> str:
        """What its caller reads."""
        return (CountersUnavailable.__doc__ or "").strip()


class CountersRefused(CountersUnavailable):
    """The counters are there and answered this one question with an error."""


class NewerLayout(CountersRefused):
    """A newer version has stored what this one was asked about."""


class Overloaded(Refusal):
    """This gateway is at its own limit."""

    reason = "overloaded"
    status = 503


class TrialEnded(Overloaded):
    """Somebody waits for what is held for this, so it was undone: try again in a while."""


class InternalError(Refusal):
    """Something went wrong inside the gateway; its log has more under this request's id."""


class AdminRefusal(TollkeeperError):
    """The Admin API refuses this request.

    `errors` names the wrong fields, as (field, message) pairs.
    """

    reason = "invalid_request"
    status = 400

    def __init__(self, message: str | None = None, errors: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.errors = errors


class Unauthorized(AdminRefusal):
    """A valid admin token is needed: send `Authorization: Bearer <token>`."""

    reason = "unauthorized"
    status = 401
    failure: str = "unknown"


class SignInRefused(AdminRefusal):
    """The sign-in could not be completed."""

    reason = "sign_in_refused"
    status = 403
    failure: str = "malformed"


class Forbidden(AdminRefusal):
    """The role of this token does not allow this."""

    reason = "forbidden"
    status = 403


class ReadOnly(Forbidden):
    """This token may read but not change anything."""

    reason = "read_only"


class Forged(AdminRefusal):
    """This form did not come from a page of this console; load the page again."""

    reason = "forged"
    status = 403


class NotFound(AdminRefusal):
    """There is nothing at this address."""

    reason = "not_found"
    status = 404


class Conflict(AdminRefusal):
    """This contradicts what is stored."""

    reason = "conflict"
    status = 409


class UnsupportedEncoding(AdminRefusal):
    """The body must be sent as it is, without a Content-Encoding."""

    reason = "unsupported_encoding"
    status = 415


class UnsupportedMedia(AdminRefusal):
    """The body is of a type that is not read here."""

    reason = "unsupported_media_type"
    status = 415


class Unprocessable(AdminRefusal):
    """Some fields are wrong."""

    reason = "invalid_fields"
    status = 422


class StepRefused(TollkeeperError):
    """One of several writes was refused, so none was done; `number` names it, its cause says why."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class StoreUnavailable(AdminRefusal):
    """PostgreSQL does not answer; try again in a moment."""

    reason = "store_unavailable"
    status = 503


class StoreTimeout(StoreUnavailable):
    """PostgreSQL took too long."""


class TooManyRequests(AdminRefusal):
    """This organization has as much under way as it may: try again in a while."""

    reason = "too_many_requests"
    status = 429
    retry_after_s: int = 1


class HourSpent(TooManyRequests):
    """This organization has used up what may be done for it in an hour."""

    reason = "hourly_budget_exceeded"

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class LoopsSilent(AdminRefusal):
    """The loops of this keeper tell nothing any more."""

    reason = "loops_silent"
    status = 503


class MissingExtra(AdminRefusal):
    """This needs an extra that is not installed; the message says how to install it."""

    reason = "extra_not_installed"
    status = 501

    def __init__(self, extra: str) -> None:
        super().__init__(f"This needs libraries that are not installed: {install(extra)}")


def install(extra: str) -> str:
    """The command that brings an extra of the package."""
    return f"pip install 'tollkeeper[{extra}]'"


class CollectorUnavailable(AdminRefusal):
    """The service that collects money does not answer; send it again in a moment."""

    reason = "collector_unavailable"
    status = 503


class LedgerUnavailable(TollkeeperError):
    """PostgreSQL cannot be reached; the outbox keeps what happens until it is back."""

    reason = "ledger_unavailable"
    status = 503


class SchemaUnavailable(TollkeeperError):
    """The schema cannot be read or brought up to date."""

    reason = "schema_unavailable"
    status = 503


class BackupFailed(TollkeeperError):
    """A backup cannot be made or restored; the message says why, on one line."""

    reason = "backup_failed"


class PlaceFailed(TollkeeperError):
    """A directory or a bucket does not do what is asked of it; the message says why, on one line."""

    reason = "place_failed"


class ArchiveFailed(TollkeeperError):
    """Months cannot be archived, or an archive cannot be read; the message says why, on one line."""

    reason = "archive_failed"


class LedgerProofFailed(TollkeeperError):
    """The ledger cannot be proven or verified; the message says why, on one line."""

    reason = "ledger_proof_failed"


class OutOfRange(TollkeeperError):
    """This would take the account past 9007199254740991, beyond which numbers are not exact."""

    reason = "out_of_range"
    status = 409
