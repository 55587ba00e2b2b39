"""Where Redis and PostgreSQL are, and the files of TLS; each is a setting."""

from __future__ import annotations

import msgspec

from gateway.settings.kinds import Secret


class Servers(msgspec.Struct, frozen=True, kw_only=True):
    """What a process talks to, and what it shows and believes there."""

    redis_url: Secret = ""
    redis_ca_file: str = ""
    redis_cert_file: str = ""
    redis_key_file: str = ""
    tls_cert_file: str = ""
    tls_key_file: str = ""
    tls_client_ca_file: str = ""
    admin_tls_cert_file: str = ""
    admin_tls_key_file: str = ""
    admin_tls_client_ca_file: str = ""
    ops_tls_cert_file: str = ""
    ops_tls_key_file: str = ""
    ops_tls_client_ca_file: str = ""
    database_url: Secret = ""
    database_owner_url: Secret = ""
    database_read_url: Secret = ""
