"""Certificates of an authority of our own, as files."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.core.certificates import TlsFiles


def issued(
    folder: Path,
    authority: trustme.CA,
    *names: str,
    clients: trustme.CA | None = None,
    ends: datetime | None = None,
) -> TlsFiles:
    """A certificate for these names (`localhost` and 127.0.0.1), its key, and who signs those of clients."""
    certificate = authority.issue_cert(*(names or ("localhost", "127.0.0.1")), not_after=ends)
    write(folder / "key.pem", certificate.private_key_pem.bytes())
    write(folder / "cert.pem", b"".join(each.bytes() for each in certificate.cert_chain_pems))
    if clients is not None:
        write(folder / "clients.pem", clients.cert_pem.bytes())
    return TlsFiles(
        str(folder / "clients.pem") if clients is not None else "",
        str(folder / "cert.pem"),
        str(folder / "key.pem"),
    )


def workload(authority: trustme.CA, *uris: str) -> trustme.LeafCert:
    """A client's certificate with these URIs, as SPIFFE has one in each."""
    key = ec.generate_private_key(ec.SECP256R1())
    signer = serialization.load_pem_private_key(authority.private_key_pem.bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    now = datetime.now(UTC)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.load_pem_x509_certificate(authority.cert_pem.bytes()).subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([*names, x509.DNSName("x.example")]), critical=True)
        .sign(signer, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return trustme.LeafCert(private, made.public_bytes(pem), [])


def authority_until(end: datetime) -> bytes:
    """An authority of clients that ends then, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "clients")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - timedelta(days=365))
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


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
