"""The certificate of one port, read from its files, and again after they change.

Each time a new context is made: existing connections keep theirs. If the new files are invalid, the old
context stays in use.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass

from gateway.core.certificates import TlsFiles, UnreadableCertificate, not_after
from gateway.errors import SettingError
from gateway.files import read_regular, require_regular

PEM_BYTES_MAX = 1 << 20
ALPN = "http/1.1"
# Ciphers of TLS 1.2, with forward secrecy and authenticated encryption, as all of TLS 1.3 are.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
_FIRST = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class LoadedCertificate:
    """One set of certificate files, as read: the TLS context, the certificate, and its end as Unix time.

    `clients_end` is the earliest end of the clients' authorities, None without authorities.
    """

    context: ssl.SSLContext
    content: bytes
    ends: float | None
    clients_end: float | None


def load(files: TlsFiles, prefix: str) -> LoadedCertificate:
    """Read certificate, key and the optional authorities of clients; `SettingError` names the setting.

    `prefix` is the prefix of the settings' names, such as `TOLLKEEPER_ADMIN_TLS_`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols([ALPN])
    pair = f"{prefix}CERT_FILE={files.certificate!r} and {prefix}KEY_FILE={files.key!r}"
    try:
        require_regular(files.certificate, files.key)
        context.load_cert_chain(files.certificate, files.key, password=lambda: b"")  # no password prompt
        match = _FIRST.search(_read(files.certificate))
        content = match[0] if match else b""
    except (OSError, ValueError) as error:
        raise SettingError(f"{pair} cannot be used: {_why_no_pair(error)}") from error
    if files.authority:
        place = f"{prefix}CLIENT_CA_FILE={files.authority!r}"
        try:
            require_regular(files.authority)
            context.load_verify_locations(files.authority)
        except (OSError, ValueError) as error:
            why = "no PEM file of certificates" if isinstance(error, ssl.SSLError) else _strerror(error)
            raise SettingError(f"{place} cannot be used: {why}") from error
        context.verify_mode = ssl.CERT_REQUIRED
        # A resumed session would not verify the client again: each connection must show its certificate.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
    ends: float | None
    try:
        ends = not_after(ssl.PEM_cert_to_DER_cert(content.decode("latin-1")))
    except (ValueError, UnreadableCertificate):  # the certificate is used without a known end
        ends = None
    authorities = context.get_ca_certs() if files.authority else []
    clients_end = min(
        (ssl.cert_time_to_seconds(str(authority["notAfter"])) for authority in authorities), default=None
    )
    return LoadedCertificate(context, content, ends, clients_end)


class Certificates:
    """The TLS context of a port, from the last valid reading of its files.

    `stale` is the reason why the present files cannot be used, empty if they can; the earlier files then stay
    in use.
    """

    def __init__(self, files: TlsFiles, prefix: str) -> None:
        self._files, self._prefix = files, prefix
        self._loaded = load(files, prefix)
        self.stale = ""

    @property
    def context(self) -> ssl.SSLContext:
        """The TLS context for new connections."""
        return self._loaded.context

    @property
    def content(self) -> bytes:
        """The certificate in use, as PEM."""
        return self._loaded.content

    @property
    def ends(self) -> float | None:
        """The expiry of the certificate in use as Unix time, None if unknown."""
        return self._loaded.ends

    @property
    def clients_end(self) -> float | None:
        """The earliest expiry of the authorities for client certificates in Unix time; None without them."""
        return self._loaded.clients_end

    @property
    def paths(self) -> tuple[str, ...]:
        files = self._files
        return tuple(path for path in (files.certificate, files.key, files.authority) if path)

    def renew(self) -> None:
        """Read the files again, for new connections."""
        try:
            self._loaded = load(self._files, self._prefix)
        except SettingError as error:
            self.stale = error.message
        else:
            self.stale = ""


def _read(path: str) -> bytes:
    return read_regular(path, PEM_BYTES_MAX)


def _why_no_pair(error: Exception) -> str:
    if not isinstance(error, ssl.SSLError):
        return _strerror(error)
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key is not that of the certificate"
    return "not PEM, not a pair, or the key is encrypted"


def _strerror(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or "no path"


# TLS contexts with which the program's commands connect to its own ports.
def trusting(files: TlsFiles, prefix: str, trusted: str = "") -> ssl.SSLContext:
    """Return a client's TLS context, with the trusted authority and the client's certificate in `files`.

    Without an authority, those of the system are trusted. If the server's own certificate is in its place,
    exactly that certificate is trusted. `SettingError` names the setting of an unusable file: `prefix` begins
    its name, and `trusted` is the full name of the authority's setting if that differs.
    """
    try:
        require_regular(files.authority)
        context = ssl.create_default_context(cafile=files.authority or None)
    except (OSError, ValueError) as error:
        raise _unusable(f"{trusted or f'{prefix}CA_FILE'}={files.authority!r}", error) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if files.certificate or files.key:
        pair = f"{prefix}CERT_FILE={files.certificate!r} and {prefix}KEY_FILE={files.key!r}"
        try:
            require_regular(files.certificate, files.key)
            context.load_cert_chain(files.certificate, files.key or None, password=lambda: b"")
        except (OSError, ValueError) as error:
            raise _unusable(pair, error) from error
    return context


def pinned(files: TlsFiles, prefix: str, trusted: str = "") -> ssl.SSLContext:
    """Return a client's TLS context for a port of this machine; the host's name is not checked."""
    context = trusting(files, prefix, trusted)
    context.check_hostname = False
    return context


def _unusable(place: str, error: Exception) -> SettingError:
    strerror = error.strerror if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else ""
    return SettingError(f"{place} cannot be used: {strerror or 'not PEM, or not a pair'}")
