"""Advice for errors of databases and upstreams: the first row whose words are in the message.

Pure: only text. The composition root appends the advice to the error.
"""

from __future__ import annotations

from functools import partial

REDIS_URL, DATABASE_URL = "TOLLKEEPER_REDIS_URL", "TOLLKEEPER_DATABASE_URL"

_REDIS_HINTS = (
    ("WRONGPASS", f"put the right user and password into {REDIS_URL}"),
    ("NOAUTH", f"put user and password into {REDIS_URL}"),
    ("without any password", f"set a password there, or take it out of {REDIS_URL}"),
    (
        "'function|load'",
        "start a keeper first, which brings the scripts; its user needs +function|load (deploy/users.acl)",
    ),
    ("NOPERM", "give the user what deploy/users.acl says"),
    (
        "unknown command",
        "use a server or service that has that command (docs/howto/cluster.md, Managed services)",
    ),
    ("DB index", f"end {REDIS_URL} in a database the server has, such as /0"),
    ("LOADING", "wait: it reads its append-only file"),
    ("has expired", "renew the server's certificate"),
    ("mismatch", f"the host in {REDIS_URL} must be one of the certificate's names"),
    (
        "certificate required",
        "name ours and its key in TOLLKEEPER_REDIS_CERT_FILE and TOLLKEEPER_REDIS_KEY_FILE",
    ),
    ("certificate", "name the authority that signed it in TOLLKEEPER_REDIS_CA_FILE"),
    ("CERT_FILE", "name a PEM file with the certificate and one with its key"),
    ("CA_FILE", "name a PEM file with the authority's certificate"),
    ("Connection refused", f"start Redis, or correct host and port of {REDIS_URL}"),
    ("Connect call failed", f"start Redis, or correct host and port of {REDIS_URL}"),
    ("resolve", f"correct the host of {REDIS_URL}"),
    ("Name or service", f"correct the host of {REDIS_URL}"),
    (
        "wrong version number",
        f"the server speaks no TLS: turn it on there, or begin {REDIS_URL} with redis://",
    ),
    ("in time", f"look at host, port and firewall; rediss:// in {REDIS_URL} needs a server that speaks TLS"),
    (
        "is no Redis",
        (
            f"correct host and port of {REDIS_URL}: rediss:// where the server speaks TLS, else redis://;"
            " where it asks for a certificate, TOLLKEEPER_REDIS_CERT_FILE and TOLLKEEPER_REDIS_KEY_FILE"
        ),
    ),
    ("", f"look at {REDIS_URL}, and at the server"),
)
LOCKED = "rows and questions wait for it; let it end, or SELECT pg_terminate_backend({})"
PREPARED = "rows and questions wait for it; COMMIT or ROLLBACK PREPARED (pg_prepared_xacts)"
ROWS = "see the log of the keepers, and the other lines here"
QUARANTINE = (
    "see why by tollkeeper quarantine list, then tollkeeper quarantine release (docs/operate/alerts.md,"
    " TollkeeperAccountsQuarantined)"
)
UNPRICED_STEPS = (
    "store a price of the model, or let another's stand in (TOLLKEEPER_PRICE_AS), or change the step"
)
HELD = (
    "revoke the keys that leaked, then tollkeeper quarantine release --accept (docs/howto/backup.md,"
    " Where Redis went on)"
)
LETTERS = "see why by tollkeeper deadletter list (docs/operate/alerts.md, TollkeeperDeadLetters)"
UNMATCHED = "the log has a request of it (docs/counters.md, Holds that do not fit)"
_RIGHTS = (
    "migrate needs the owner of the database, a keeper one who is in the role <database>_writer"
    " (docs/operate/postgresql.md)"
)
_TOO_MANY = (
    "close other sessions, or allow more: max_connections of the server (a keeper wants 42), ALTER ROLE …"
    " CONNECTION LIMIT, ALTER DATABASE … CONNECTION LIMIT, or those of the pooler"
)
# By SQLSTATE, or its class. Libpq gives none if there was no connection: then the message decides.
_BY_SQLSTATE = {
    "53300": _TOO_MANY,
    "53100": "make room on the disk of PostgreSQL",
    "53200": "give PostgreSQL more memory",
    "25006": f"name the primary in {DATABASE_URL}, of several hosts by ?target_session_attrs=read-write",
    "42501": _RIGHTS,
    "42P01": "run tollkeeper migrate",
    "42883": "run tollkeeper migrate",
    "57014": "try again, or allow statements more time (statement_timeout)",
    "55P03": "see who has the lock (pg_locks), and try again",
    "57P03": "wait: it starts, or ends",
    "57": "wait until PostgreSQL has started again",
}
_NOT_CONNECTED = (
    ("too many connections", _TOO_MANY),
    ("too many clients", _TOO_MANY),
    ("remaining connection slots", _TOO_MANY),
    ("no more connections allowed", _TOO_MANY),
    ("starting up", "wait: it starts, or ends"),
    ("shutting down", "wait: it starts, or ends"),
    ("not yet accepting connections", "wait: it starts, or ends"),
    ("not accepting connections", "wait: it starts, or ends"),
    (
        "not currently accepting connections",
        "let it take connections: ALTER DATABASE … ALLOW_CONNECTIONS true",
    ),
    ("session is read-only", "name the primary among the hosts, or promote one: SELECT pg_promote()"),
    ("password authentication failed", f"put the right user and password into {DATABASE_URL}"),
    ("SASL authentication failed", f"put the right user and password into {DATABASE_URL}"),
    ("no password supplied", f"put the password into {DATABASE_URL}"),
    ("pg_hba.conf", "let this user and machine in (pg_hba.conf), or connect with TLS: ?sslmode=verify-full"),
    ("is not permitted to log in", "let it log in: ALTER ROLE … LOGIN"),
    ("permission denied for database", "let it in: GRANT CONNECT ON DATABASE … TO …"),
    ("role ", f"create the user, or put another into {DATABASE_URL}"),
    ("no such user", f"create the user, or put another into {DATABASE_URL}"),
    ("database ", f"create the database (ENCODING 'UTF8'), or put another into {DATABASE_URL}"),
    ("it ended on", "renew the server's certificate"),
    ("does not match host", f"the host in {DATABASE_URL} must be one of the certificate's names"),
    ("certificate", f"name the authority that signed it: ?sslrootcert=… in {DATABASE_URL}"),
    ("does not support SSL", f"turn TLS on there, or take sslmode out of {DATABASE_URL}"),
    ("connection option", f"correct the part of {DATABASE_URL} after the ?"),
    ("resolve", f"correct the host of {DATABASE_URL}"),
    ("Connection refused", f"start PostgreSQL, or correct host and port of {DATABASE_URL}"),
    ("timeout", f"correct host and port of {DATABASE_URL}, or look at the firewall"),
    ("", f"look at {DATABASE_URL}, and at the server"),
)
_UPSTREAM = (
    ("wants other credentials", "put the right user and password into HTTPS_PROXY or HTTP_PROXY"),
    ("does not allow that", "let the proxy allow CONNECT to that host and port, or name it in NO_PROXY"),
    ("it cannot reach the upstream", "correct base_url, or name the upstream in NO_PROXY"),
    ("the proxy ", "look at the proxy of HTTPS_PROXY or HTTP_PROXY, or name the upstream in NO_PROXY"),
    ("has expired", "the upstream's owner must renew it"),
    ("mismatch", "base_url must have one of the certificate's names"),
    ("certificate", "name the authority that signed it as ca_file of the upstream"),
    ("Name or service", "correct base_url, or look at the machine's DNS"),
    ("resolution", "correct base_url, or look at the machine's DNS"),
    ("wrong version number", "it speaks no TLS: base_url must begin with http://"),
    ("", "start it, correct base_url, or look at the firewall"),
)


_ISSUER = (
    ("the proxy ", "look at the proxy of HTTPS_PROXY or HTTP_PROXY, or name the issuer in NO_PROXY"),
    ("certificate", "name the authority that signed it as ca_file of the issuer"),
    ("No such file", "correct jwks_file or token_file of the issuer"),
    ("answers 40", "say with token_file what it is asked with, or correct jwks_uri"),
    ("answers 3", "name the place itself as jwks_uri: nobody is followed elsewhere"),
    ("another issuer", "write `issuer` as its discovery document does, to the last character"),
    ("", "correct issuer or jwks_uri, or look at the firewall"),
)


def _find_hint(rows: tuple[tuple[str, str], ...], text: str) -> str:
    return next(hint for words, hint in rows if words in text)


def postgresql_hint(text: str, sqlstate: str = "") -> str:
    """Return the advice for an error of PostgreSQL: by its SQLSTATE if known, else by its message `text`."""
    found = _BY_SQLSTATE.get(sqlstate) or _BY_SQLSTATE.get(sqlstate[:2])
    return found or _find_hint(_NOT_CONNECTED, text)


redis_hint = partial(_find_hint, _REDIS_HINTS)
# Also for an issuer whose keys cannot be read.
upstream_hint, issuer_hint = partial(_find_hint, _UPSTREAM), partial(_find_hint, _ISSUER)
