"""What `tollkeeper doctor` says of a pooler between a keeper, or the owner, and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.ops.finding import Finding


def of(url: str, owner_url: str) -> Iterator[Finding]:
    """Whether sessions are shared, and whether the owner, who needs one, has one of its own."""
    from persistence.pooler import ASK_OWNER, is_seen_to_share  # noqa: PLC0415  # heavy to load

    shared = is_seen_to_share(url)
    if shared:
        yield Finding(
            True, "postgresql pooler", "shares sessions (transaction mode), of which a keeper needs none"
        )
    if is_seen_to_share(owner_url) if owner_url != url else shared:
        yield Finding(False, "backup and archive", ASK_OWNER)
