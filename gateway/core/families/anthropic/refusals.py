"""How a refusal looks to Anthropic's clients."""

from __future__ import annotations

from gateway.errors import Refusal

_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def refusal_of(refusal: Refusal, request_id: str) -> dict[str, object]:
    """The body of a refusal."""
    other = "invalid_request_error" if refusal.status < 500 else "api_error"
    kind = _TYPES.get(refusal.status, other)
    message = f"{refusal.param}: {refusal.message}" if refusal.param else refusal.message
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
