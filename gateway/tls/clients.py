"""What our own commands connect with to ports of ours that speak TLS."""

from __future__ import annotations

import ssl

from gateway.core.certificate import TlsFiles
from gateway.errors import SettingError
from gateway.files import require_regular


def trusting(files: TlsFiles, prefix: str, trusted: str = "") -> ssl.SSLContext:
    """A context that trusts the authority of these files, else the system's, and shows their certificate.

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
    """A context for a port of this machine whose certificate is known, whatever names that has."""
    context = trusting(files, prefix, trusted)
    context.check_hostname = False
    return context


def _unusable(place: str, error: Exception) -> SettingError:
    strerror = error.strerror if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else ""
    return SettingError(f"{place} cannot be used: {strerror or 'not PEM, or not a pair'}")
