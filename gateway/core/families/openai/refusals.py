"""How a refusal looks to OpenAI's clients."""

from __future__ import annotations

from gateway.errors import Refusal

_TYPES = {402: "billing_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {
    "quota_exceeded": "insufficient_quota",
    "rate_limited": "rate_limit_exceeded",
    "concurrency_limited": "rate_limit_exceeded",
}


def refusal_of(refusal: Refusal, request_id: str) -> dict[str, object]:
    """The body of a refusal."""
    other = "invalid_request_error" if refusal.status < 500 else "server_error"
    kind = _TYPES.get(refusal.status, other)
    code = _CODES.get(refusal.reason, refusal.reason)
    if code == "insufficient_quota":
        kind = code
    return {"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": code}}
