"""Any other API: its refusals are RFC 9457 problems, and its bodies are not read."""

from __future__ import annotations

from http import HTTPStatus

from gateway.core.families.family import ApiFamily
from gateway.core.model import GENERIC
from gateway.errors import QuotaHeld, Refusal

# draft-ietf-httpapi-ratelimit-headers-10, 6: problem types, with the policies that a request violates.
_PROBLEM_TYPES = "https://iana.org/assignments/http-problem-types#"


def _problem(refusal: Refusal, request_id: str) -> dict[str, object]:
    """Return a refusal as an RFC 9457 problem, with `reason` and the wrong `param` as extension members."""
    problem: dict[str, object] = {
        "type": f"urn:tollkeeper:{refusal.reason}",
        "title": HTTPStatus(refusal.status).phrase,
        "status": refusal.status,
        "detail": refusal.told,
        "instance": f"urn:uuid:{request_id}",
        "reason": refusal.reason,
    }
    if refusal.policy:
        kind = "temporary-reduced-capacity" if refusal.reason == QuotaHeld.reason else "quota-exceeded"
        problem |= {"type": _PROBLEM_TYPES + kind, "violated-policies": [refusal.policy]}
    if refusal.param:
        problem["param"] = refusal.param
    return problem


FAMILY = ApiFamily(GENERIC, _problem, content_type=b"application/problem+json", credit=())
