"""Whom a database knows a user as: a login for the writer, and what a user may do."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

import psycopg
from psycopg import sql

from persistence.engine import CONNECT_TIMEOUT_S, plain_url
from persistence.grants import WRITER, roles_of


def admit_writer(url: str, password: str) -> str:
    """Let the writer of the database at `url`, its owner's, log in with this password; the URL for it."""
    with psycopg.connect(plain_url(url), connect_timeout=CONNECT_TIMEOUT_S) as connection:
        user = roles_of(connection.info.dbname)[WRITER]
        # Hashed here: what the server is told, and might log, is not the password.
        digest = connection.pgconn.encrypt_password(password.encode(), user.encode(), b"scram-sha-256")
        told = sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(user), digest.decode())
        connection.execute(told)
    parts = urlsplit(plain_url(url))
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{quote(user, safe='')}:{quote(password, safe='')}@{host}").geturl()
