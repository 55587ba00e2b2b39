"""Who is signed in to the console, and what has come back from providers of identities."""

from __future__ import annotations

from sqlalchemy import PrimaryKeyConstraint, UniqueConstraint

from persistence.tables.columns import identity, integers, moments, table, texts

# Who is signed in to the console: digests of the cookie and of the token it was had for, and whom a provider
# of identities has named.
console_session = table(
    "console_session",
    identity(),
    texts("digest", "token_digest"),
    moments("created_at", "expires_at"),
    texts("issuer?", "identity?", "person?"),
    # What the provider is asked with whether they still may come in, sealed; and when it was asked last.
    texts("renewal?"),
    moments("asked_at"),
    texts("provider_session?"),  # nothing reads it
    # What the provider is shown when they sign out, sealed.
    texts("id_token?"),
    integers("organization_id?"),  # that the token is of; null is of all
    UniqueConstraint("digest"),
)

# Sign-ins that somebody came back from, by a digest of their state: each counts once.
used_sign_in = table("used_sign_in", texts("state"), moments("created_at"), PrimaryKeyConstraint("state"))

# Nothing reads it; keepers of an earlier version write it.
told_sign_out = table(
    "told_sign_out", texts("issuer", "token_id"), moments("created_at"),
    PrimaryKeyConstraint("issuer", "token_id"),
)  # fmt: skip
