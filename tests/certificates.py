"""Certificates of an authority of our own, as files."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme

from gateway.core.certificate import TlsFiles


def issued(
    folder: Path,
    authority: trustme.CA,
    *names: str,
    clients: trustme.CA | None = None,
) -> TlsFiles:
    """A certificate for these names (`localhost` and 127.0.0.1), its key, and who signs those of clients."""
    certificate = authority.issue_cert(*(names or ("localhost", "127.0.0.1")))
    write(folder / "key.pem", certificate.private_key_pem.bytes())
    write(folder / "cert.pem", b"".join(each.bytes() for each in certificate.cert_chain_pems))
    if clients is not None:
        write(folder / "clients.pem", clients.cert_pem.bytes())
    return TlsFiles(
        str(folder / "clients.pem") if clients is not None else "",
        str(folder / "cert.pem"),
        str(folder / "key.pem"),
    )


def write(path: Path, content: bytes) -> None:
    """Replace a file at once, as secrets are replaced."""
    path.parent.mkdir(exist_ok=True, parents=True)
    path.with_suffix(".new").write_bytes(content)
    path.with_suffix(".new").replace(path)


def trusting(authority: trustme.CA, certificate: trustme.LeafCert | None = None) -> ssl.SSLContext:
    """What a client connects with, maybe with a certificate of its own."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if certificate is not None:
        certificate.configure_cert(context)
    return context
