"""The certificate of one port: read from its files, and read again when they change.

A new context is made and never changed: connections keep the one they began with. Where new files are no
pair, the old context stays.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass

from gateway.core.credentials import TlsFiles, UnreadableCertificate, not_after
from gateway.errors import SettingError
from gateway.files import read_regular, require_regular

PEM_BYTES_MAX = 1 << 20
ALPN = "http/1.1"
# Of TLS 1.2; those of 1.3 are all well. Each has forward secrecy and authenticates what it encrypts.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
_FIRST = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class LoadedCertificate:
    """One set of files, read: the context, the certificate, and its end, Unix time.

    `clients_end` is the end of the first authority of clients to end, None where there is none.
    """

    context: ssl.SSLContext
    content: bytes
    ends: float | None
    clients_end: float | None


def load(files: TlsFiles, prefix: str) -> LoadedCertificate:
    """Read certificate, key and, where named, the authorities of clients; `SettingError` names the setting.

    `prefix` is what the names of the settings begin with, such as `TOLLKEEPER_ADMIN_TLS_`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols([ALPN])
    pair = f"{prefix}CERT_FILE={files.certificate!r} and {prefix}KEY_FILE={files.key!r}"
    try:
        require_regular(files.certificate, files.key)
        context.load_cert_chain(files.certificate, files.key, password=lambda: b"")  # nobody is asked for one
        found = _FIRST.search(_read(files.certificate))
        content = found[0] if found else b""
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
        # A client that resumes a session is not verified again: each connection shows its certificate again.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
    ends: float | None
    try:
        ends = not_after(ssl.PEM_cert_to_DER_cert(content.decode("latin-1")))
    except (ValueError, UnreadableCertificate):  # it serves all the same
        ends = None
    authorities = context.get_ca_certs() if files.authority else []
    clients_end = min((ssl.cert_time_to_seconds(str(one["notAfter"])) for one in authorities), default=None)
    return LoadedCertificate(context, content, ends, clients_end)


class Certificates:
    """The context of a port, the one that its files made when they were read last and could be.

    `stale` says why they can be used no longer, empty while they can: then the files before go on.
    """

    def __init__(self, files: TlsFiles, prefix: str) -> None:
        self._files, self._prefix = files, prefix
        self._loaded = load(files, prefix)
        self.stale = ""

    @property
    def context(self) -> ssl.SSLContext:
        """What new connections are made with."""
        return self._loaded.context

    @property
    def content(self) -> bytes:
        """The certificate in use, in PEM."""
        return self._loaded.content

    @property
    def ends(self) -> float | None:
        """Until when the certificate in use is valid, Unix time."""
        return self._loaded.ends

    @property
    def clients_end(self) -> float | None:
        """Until when the authorities of clients are valid, Unix time."""
        return self._loaded.clients_end

    @property
    def paths(self) -> tuple[str, ...]:
        files = self._files
        return tuple(path for path in (files.certificate, files.key, files.authority) if path)

    def renew(self) -> None:
        """Read the files again, for connections that begin from now on."""
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


# What our own commands connect with to ports of ours that speak TLS.
def trusting(files: TlsFiles, prefix: str, trusted: str = "") -> ssl.SSLContext:
    """Return a context that trusts the authority of these files, else the system's, and shows their
    certificate.

    A port's own certificate may stand in the authority's place: then that very one is trusted. `SettingError`
    names the setting, whose name begins with `prefix`, of a file that cannot be used; `trusted` is that of
    the authority where it has another name.
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
    """Return a context for a port of this machine whose certificate is known, whatever names that has."""
    context = trusting(files, prefix, trusted)
    context.check_hostname = False
    return context


def _unusable(place: str, error: Exception) -> SettingError:
    strerror = error.strerror if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else ""
    return SettingError(f"{place} cannot be used: {strerror or 'not PEM, or not a pair'}")
