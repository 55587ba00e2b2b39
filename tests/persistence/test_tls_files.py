"""Certificates of connections to PostgreSQL are changed while a keeper runs: its next ones have them."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from persistence import engine
from tests.certificates import write
from tests.deploy.secured import Authority, SecuredPostgres

SHOWN = text("SELECT client_serial FROM pg_stat_ssl WHERE pid = pg_backend_pid()")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tollkeeper-tls-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder)


@pytest.fixture(scope="module")
def server(folder: Path, authority: Authority) -> Iterator[SecuredPostgres]:
    """It lets in who shows a certificate of its authority."""
    made = SecuredPostgres(folder / "postgres", authority, clients=True)
    made.start()
    yield made
    made.stop()


class Files:
    """What a keeper connects with: the files that its URL names."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        self.folder, self.authority = folder, authority
        self.root, self.certificate, self.key = (
            folder / name for name in ("root.pem", "cert.pem", "key.pem")
        )
        self.believe(authority)

    def believe(self, authority: Authority) -> None:
        write(self.root, authority.file.read_bytes())

    def show(self, authority: Authority, name: str) -> int:
        """Have another certificate shown; its serial number."""
        certificate, key = authority.issue(name)
        write(self.certificate, certificate.read_bytes())
        write(self.key, key.read_bytes())
        self.key.chmod(0o600)
        return x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number


@pytest.fixture
def files(tmp_path: Path, authority: Authority) -> Files:
    return Files(tmp_path, authority)


@pytest.fixture
async def pool(server: SecuredPostgres, files: Files) -> AsyncIterator[AsyncEngine]:
    """As a keeper has it, of the one URL that it was started with."""
    plain = server.url.partition("?")[0]
    said = f"sslmode=verify-full&sslrootcert={files.root}&sslcert={files.certificate}&sslkey={files.key}"
    made = engine.create(f"{plain}?{said}", connections_max=4)
    yield made
    await made.dispose()


async def shown(connection: AsyncConnection) -> int:
    return int((await connection.execute(SHOWN)).scalar_one())


async def test_a_new_certificate_is_shown_by_the_next_connection(pool: AsyncEngine, files: Files) -> None:
    first = files.show(files.authority, "first")
    async with pool.connect() as before:
        assert await shown(before) == first
        second = files.show(files.authority, "second")
        assert second != first
        async with pool.connect() as after:
            assert (await shown(after), await shown(before)) == (second, first)


async def test_a_certificate_of_somebody_else_is_refused_until_a_right_one_is_there(
    pool: AsyncEngine, files: Files, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    other = Authority(elsewhere)
    files.show(files.authority, "right")
    async with pool.connect() as before:
        files.show(other, "wrong")
        with pytest.raises(OperationalError):
            async with pool.connect():
                pass
        assert await shown(before)
        right = files.show(files.authority, "right again")
        async with pool.connect() as after:
            assert await shown(after) == right


async def test_another_authority_is_believed_by_the_next_connection(
    pool: AsyncEngine, files: Files, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    files.show(files.authority, "client")
    files.believe(Authority(elsewhere))
    with pytest.raises(OperationalError, match="certificate verify failed"):
        async with pool.connect():
            pass
    files.believe(files.authority)
    async with pool.connect() as after:
        assert await shown(after)
