"""Every error Tollkeeper raises: one root, each class with its reason and HTTP status, else its base's.

The docstring of a class is its message. Which JSON shape a client sees is decided in
`core/families/refusal.py`; nothing here knows an API family.
"""

from __future__ import annotations

from typing import ClassVar


class TollkeeperError(Exception):
    """Something went wrong."""

    reason: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500

    def __init_subclass__(cls, *, reason: str = "", status: int = 0) -> None:
        if reason:
            cls.reason = reason
        if status:
            cls.status = status

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())

    @property
    def message(self) -> str:
        """The text of this error."""
        return str(self.args[0])


class SettingError(TollkeeperError, reason="invalid_setting"):
    """A setting is unknown or invalid."""


class StartError(TollkeeperError, reason="cannot_start"):
    """Tollkeeper cannot start; the message says why, on one line."""


class Refusal(TollkeeperError):
    """A request that the gateway answers itself. Its cost: docs/internals/request.md, Refusals.

    `retry_after_s` is None if no time is known. `retry_helps` says whether waiting under a minute helps
    (None: the field is not sent). `param` names the wrong field of the request, if any. `fields` are response
    fields about what is left of the limit that refused, and `scope` is the owner of that limit, by default
    the gateway. `policy` is its name in `RateLimit-Policy`, empty for none. `budget` is the `BudgetWindow`
    that refused. `reply_to` is the id of the refused message, if it has one.
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
        """The text of this refusal for the caller."""
        return self.message

    @property
    def told_of_field(self) -> str:
        """The text for the caller after the wrong field's name, for APIs whose errors have no such field."""
        return f"{self.param}: {self.told}" if self.param else self.told


class InvalidApiKey(Refusal, reason="invalid_api_key", status=401):
    """The API key is missing, malformed, unknown, expired or revoked."""

    # One of `REASONS` in `gateway/core/failures.py`.
    failure: str = "unknown"


class EndedApiKey(InvalidApiKey):
    """The API key has expired or is revoked."""


class InsufficientCredits(Refusal, reason="insufficient_credits", status=402):
    """The organization's credits do not cover this request."""


class SpendCapReached(Refusal, reason="spend_cap_reached", status=402):
    """The organization's spend cap for this month does not cover this request."""


class TenantBlocked(Refusal, reason="tenant_blocked", status=403):
    """This tenant is blocked: by an administrator, for an unpaid invoice, or as too much of its use waits."""


class ServiceNotIncluded(Refusal, reason="service_not_included", status=403):
    """This service is not included in the organization's subscription."""


class ModelNotAllowed(Refusal, reason="model_not_allowed", status=403):
    """This API key may not use the requested model."""


class ModelNotPriced(Refusal, reason="model_not_priced", status=403):
    """The requested model, or a tool of the call, has no price here."""


class UnknownRoute(Refusal, reason="unknown_route", status=404):
    """No route is configured for this path."""


class ObjectNotFound(Refusal, reason="object_not_found", status=404):
    """No stored object of this id belongs to this organization."""


class MethodNotAllowed(Refusal, reason="method_not_allowed", status=405):
    """This path does not accept this method."""


class InvalidRequest(Refusal, reason="invalid_request", status=400):
    """The request is not valid."""


class MalformedRequest(InvalidRequest):
    """The request is not HTTP/1.1 as this gateway accepts it."""


class FieldsTooLarge(MalformedRequest, status=431):
    """The header fields are larger or more than this gateway accepts."""


class TargetTooLong(MalformedRequest, status=414):
    """The request line is longer than this gateway accepts."""


class UnknownMethod(MalformedRequest, status=501):
    """This gateway does not know this method."""


class UnsupportedVersion(MalformedRequest, status=505):
    """Only HTTP/1.0 and HTTP/1.1 are spoken here."""


class ExpectationFailed(MalformedRequest, status=417):
    """The only expectation this gateway can meet is 100-continue."""


class UpgradeRefused(MalformedRequest, status=426):
    """WebSocket connections are not served here: send the request by HTTP/1.1."""

    fields: tuple[tuple[bytes, bytes], ...] = ((b"upgrade", b"HTTP/1.1"), (b"connection", b"upgrade"))


class RequestTimeout(MalformedRequest, status=408):
    """The request did not arrive in time."""


class TooManyBudgets(InvalidRequest, reason="too_many_budgets", status=400):
    """This call would use more budgets than one call may: ask for fewer models, or leave groups."""


class UserRequired(Refusal, reason="user_required", status=400):
    """This API key needs a user for each call: name one in the field x-tollkeeper-user."""


class RunRequired(Refusal, reason="run_required", status=400):
    """Each of these calls needs a run: name one in the field x-tollkeeper-run."""


class RequestTooLarge(Refusal, reason="request_too_large", status=413):
    """The request body is larger than this gateway accepts."""


class QuotaExceeded(Refusal, reason="quota_exceeded", status=429):
    """The tenant's tokens for this cycle are used up."""


class QuotaHeld(Refusal, reason="quota_held", status=429):
    """What remains is held by calls in flight; retry in a second."""


class BudgetExceeded(Refusal, reason="budget_exceeded", status=429):
    """A budget's amount is used up."""


class RunExceeded(BudgetExceeded, reason="run_exceeded", status=429):
    """A run's amount, or its number of calls, is used up."""


class TooManyRuns(Refusal, reason="too_many_runs", status=429):
    """The tenant has as many runs as may be remembered."""


class TooManyJobs(Refusal, reason="too_many_jobs", status=429):
    """The organization, or the API key, has as many open jobs as it may have."""


class TooManyHolds(Refusal, reason="too_many_holds", status=429):
    """As many holds by the API are open as the organization may have, or as its key leaves to others."""


class RunEnded(Refusal, reason="run_ended", status=409):
    """The run has ended, or one that it draws from has."""


class RunConflict(Refusal, reason="run_conflict", status=409):
    """The run was opened with another amount, number of calls or parent."""


class RunNotFound(Refusal, reason="run_not_found", status=404):
    """No run of this id is open, or ended lately, in this tenant."""


class HoldNotFound(Refusal, reason="hold_not_found", status=404):
    """No hold of this id is open, or ended lately, in this tenant."""


class HoldEnded(Refusal, reason="hold_ended", status=409):
    """The hold has ended: it was settled, released, or its time is over."""


class IdempotencyConflict(Refusal, reason="idempotency_conflict", status=409):
    """The Idempotency-Key was used with another body, or its first request is still running."""


class RateLimited(Refusal, reason="rate_limited", status=429):
    """Too many requests or tokens in a minute."""


class UpstreamLimited(RateLimited):
    """The upstream refuses calls for now, by a limit of its own."""

    scope = "upstream"


class UpstreamFull(UpstreamLimited, reason="capacity_exceeded"):
    """The upstream's capacity is used up, and the call could not wait for its part of it any longer."""


class PriorityNotAllowed(Refusal, reason="priority_not_allowed", status=403):
    """This API key may not claim the priority that its call asks for."""


class ConcurrencyLimited(Refusal, reason="concurrency_limited", status=429):
    """Too many requests at once."""


class UpstreamFailure(Refusal):
    """The upstream failed."""

    # For operators only: one of `CAUSES`, and the error of the system.

    cause: str = "broken"
    detail: str = ""


class UpstreamUnreachable(UpstreamFailure, reason="upstream_unreachable", status=502):
    """The upstream cannot be reached or gave an answer that is not HTTP."""


class UpstreamTimeout(UpstreamFailure, reason="upstream_timeout", status=504):
    """The upstream did not answer in time."""

    cause = "timeout"


class UpstreamSignedOut(UpstreamFailure, reason="upstream_credentials", status=503):
    """The gateway has no valid credentials for the upstream now."""

    cause = "credentials"


class IssuerUnavailable(Refusal, reason="issuer_unavailable", status=503):
    """The keys of the token's issuer cannot be read, so nobody knows whether the token is good."""


class CountersUnavailable(Refusal, reason="counters_unavailable", status=503):
    """The counters cannot be reached or are not verified yet."""

    # The server's error and address are for logs only: callers always get the same message.

    @property
    def told(self) -> str:
        """The text for the caller, without details of this installation."""
        return (CountersUnavailable.__doc__ or "").strip()


class CountersRefused(CountersUnavailable):
    """The counters are reachable, and answered this one request with an error."""


class SlotMoving(CountersRefused):
    """Redis Cluster moves the slot of this request's keys, and not all of them are at this server."""


class ScriptFailed(CountersRefused):
    """A script answered an error that is no outage: asked again, it answers the same."""


class NewerLayout(CountersRefused):
    """A newer version has stored this data in a layout that this one cannot read."""


class Overloaded(Refusal, reason="overloaded", status=503):
    """This gateway is at its own limit."""


class TrialEnded(Overloaded):
    """Others wait for the locks of this trial run, so it was undone: try again in a while."""


class InternalError(Refusal):
    """Something went wrong inside the gateway; its log has more under this request's id."""


class AdminRefusal(TollkeeperError, reason="invalid_request", status=400):
    """The Admin API refuses this request.

    `errors` names the wrong fields, as (field, message) pairs.
    """

    def __init__(self, message: str | None = None, errors: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.errors = errors


class Unauthorized(AdminRefusal, reason="unauthorized", status=401):
    """A valid admin token is needed: send `Authorization: Bearer <token>`."""

    failure: str = "unknown"


class SignInRefused(AdminRefusal, reason="sign_in_refused", status=403):
    """The sign-in could not be completed."""

    failure: str = "malformed"


class Forbidden(AdminRefusal, reason="forbidden", status=403):
    """The role of this token does not allow this."""


class ReadOnly(Forbidden, reason="read_only"):
    """This token may read but not change anything."""


class Forged(AdminRefusal, reason="forged", status=403):
    """This form did not come from a page of this console; load the page again."""


class NotFound(AdminRefusal, reason="not_found", status=404):
    """There is nothing at this address."""


class Conflict(AdminRefusal, reason="conflict", status=409):
    """This contradicts what is stored."""


class NotStoredYet(Conflict):
    """Not everything that happened is stored yet; try again in a moment."""

    retry_after_s: int = 1


class CallsOpen(NotStoredYet):
    """Calls, holds or jobs are still open; try again when they have ended, which takes a job a day at most."""


class AccountsOpen(TollkeeperError):
    """A write compares stored money of an organization whose accounts are not closed: close them first.

    With `tenant_id`, the calls of that tenant alone must have ended.
    """

    def __init__(self, organization_id: int, tenant_id: int | None = None) -> None:
        super().__init__()
        self.organization_id, self.tenant_id = organization_id, tenant_id


class CapabilityNeeded(TollkeeperError):
    """A write uses a capability of this name, which earlier programs that run may not know."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


class UnsupportedEncoding(AdminRefusal, reason="unsupported_encoding", status=415):
    """The body must be sent as it is, without a Content-Encoding."""


class UnsupportedMedia(AdminRefusal, reason="unsupported_media_type", status=415):
    """The body is of a type that is not read here."""


class Unprocessable(AdminRefusal, reason="invalid_fields", status=422):
    """Some fields are wrong."""


class StepRefused(TollkeeperError):
    """One of several writes was refused, so none was done; `number` names it, its cause says why."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class StoreUnavailable(AdminRefusal, reason="store_unavailable", status=503):
    """PostgreSQL does not answer; try again in a moment."""


class StoreTimeout(StoreUnavailable):
    """PostgreSQL took too long."""


class TooManyRequests(AdminRefusal, reason="too_many_requests", status=429):
    """This organization has as much under way as it may: try again in a while."""

    retry_after_s: int = 1


class HourSpent(TooManyRequests, reason="hourly_budget_exceeded"):
    """This organization has used up what may be done for it in an hour."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class LoopsSilent(AdminRefusal, reason="loops_silent", status=503):
    """The loops of this keeper tell nothing any more."""


class MissingExtra(AdminRefusal, reason="extra_not_installed", status=501):
    """This needs an extra that is not installed; the message says how to install it."""

    def __init__(self, command: str) -> None:
        super().__init__(f"This needs libraries that are not installed: {command}")


class CollectorUnavailable(AdminRefusal, reason="collector_unavailable", status=503):
    """The service that collects money does not answer; send it again in a moment."""


class LedgerUnavailable(TollkeeperError, reason="ledger_unavailable", status=503):
    """PostgreSQL cannot be reached; the outbox keeps what happens until it is back."""


class SchemaUnavailable(TollkeeperError, reason="schema_unavailable", status=503):
    """The schema cannot be read or brought up to date."""

    def __init__(self, message: str | None = None, *, sqlstate: str = "") -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class BackupFailed(TollkeeperError, reason="backup_failed"):
    """A backup cannot be made or restored; the message says why, on one line."""


class PlaceFailed(TollkeeperError, reason="place_failed"):
    """An operation on a directory or bucket failed; the message says why, on one line."""


class ArchiveFailed(TollkeeperError, reason="archive_failed"):
    """Months cannot be archived, or an archive cannot be read; the message says why, on one line."""


class LedgerProofFailed(TollkeeperError, reason="ledger_proof_failed"):
    """The ledger cannot be proven or verified; the message says why, on one line."""


class OutOfRange(TollkeeperError, reason="out_of_range", status=409):
    """This would take the account past 9007199254740991, beyond which numbers are not exact."""
