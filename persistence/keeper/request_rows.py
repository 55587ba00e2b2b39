"""Where rows of a request can be: in no month that ended long before it began."""

from __future__ import annotations

# Since when rows of requests that began at `:began` can be, so that months before are not looked at. Nothing
# moves before its request began, but a gateway's clock may be wrong. Where nothing says it: since ever.
SINCE = """CASE WHEN cast(:began AS timestamptz) IS NULL THEN timestamptz '-infinity'
     ELSE least(cast(:began AS timestamptz), now()) - interval '31 days' END"""
