"""The end of PostgreSQL's certificate, read from a connection of its own."""

from __future__ import annotations

import socket
import ssl

from psycopg.conninfo import conninfo_to_dict

from gateway.core.certificates import not_after
from persistence.address import plain_url

SSL_REQUEST = (8).to_bytes(4) + (80_877_103).to_bytes(4)
SSL_ANSWER_S_MAX = 5.0


def certificate_end(url: str) -> float | None:
    """Return the end of the server's certificate in Unix time; None if the server speaks no TLS.

    Uses a separate connection, since libpq does not show the verified certificate. Blocks; raises OSError if
    the server does not answer.
    """
    address = conninfo_to_dict(plain_url(url))
    host = str(address.get("host") or "localhost").partition(",")[0]
    if host.startswith("/") or address.get("sslmode") == "disable":
        return None
    port = int(str(address.get("port") or 5432).partition(",")[0])
    with socket.create_connection((host, port), SSL_ANSWER_S_MAX) as plain:
        plain.sendall(SSL_REQUEST)
        if plain.recv(1) != b"S":
            return None
        # No verification, and no data sent: an expired certificate must be seen, too.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(plain, server_hostname=host) as session:
            certificate = session.getpeercert(binary_form=True)
    return not_after(certificate) if certificate else None
