"""How a refusal looks to Gemini's clients."""

from __future__ import annotations

from gateway.errors import Refusal

_STATUSES = {
    401: "UNAUTHENTICATED",
    402: "FAILED_PRECONDITION",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def refusal_of(refusal: Refusal, request_id: str) -> dict[str, object]:
    """The body of a refusal."""
    info: dict[str, object] = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": refusal.reason.upper(),
        "domain": "tollkeeper",
        "metadata": {"request_id": request_id},
    }
    details = [info]
    if refusal.param:
        violation = {"field": refusal.param, "description": refusal.message}
        details.append({"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [violation]})
    if refusal.retry_after_s is not None:
        delay = f"{refusal.retry_after_s}s"
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
    status = _STATUSES.get(refusal.status, "INVALID_ARGUMENT")
    error = {"code": refusal.status, "message": refusal.message, "status": status, "details": details}
    return {"error": error}
