"""Where an archive may be."""

from __future__ import annotations

import re
import sys
from errno import ENOSPC
from pathlib import Path

import pytest

from gateway.errors import MissingExtra, PlaceFailed
from gateway.extras import install
from gateway.ops.storage import FileStore


@pytest.mark.parametrize(
    "url",
    ["s3://AKIA:Geheim1@ledgers/all", "s3://AKIA:Geheim1/2@ledgers", "s3://AKIA@ledgers", "S3://a:Geheim1@b"],
)
def test_archive_address_with_a_password_is_refused_without_showing_the_password(url: str) -> None:
    with pytest.raises(PlaceFailed, match="AWS_ACCESS_KEY_ID") as refused:
        FileStore(url)
    assert "Geheim1" not in refused.value.message
    assert "AKIA" not in refused.value.message


@pytest.mark.parametrize(
    "url",
    [
        "s3://ledgers/all?secret_key=Geheim1",
        "s3://ledgers?region=eu&AWS_SECRET_ACCESS_KEY=Geheim1",
        "s3://ledgers?endpoint_override=AKIA:Geheim1@minio:9000",
    ],
)
def test_archive_address_with_secrets_in_the_query_is_refused_without_showing_the_secrets(url: str) -> None:
    with pytest.raises(PlaceFailed, match="AWS_SECRET_ACCESS_KEY, or AWS_SHARED_CREDENTIALS_FILE") as refused:
        FileStore(url)
    assert "Geheim1" not in refused.value.message


@pytest.mark.parametrize("url", ["", " "])
def test_empty_archive_address_is_refused(url: str) -> None:
    with pytest.raises(PlaceFailed, match="empty"):
        FileStore(url)


def test_archive_address_splits_into_folder_and_name_and_joins_back_unchanged() -> None:
    folder, name = FileStore.parted("s3://ledgers/all/one?region=eu-central-1&scheme=http")
    assert (folder, name) == ("s3://ledgers/all?region=eu-central-1&scheme=http", "one")
    assert FileStore(folder).address(name) == "s3://ledgers/all/one?region=eu-central-1&scheme=http"
    assert FileStore.parted("s3://ledgers") == ("s3://ledgers", "")


def test_every_failed_file_operation_of_an_archive_directory_names_the_directory(tmp_path: Path) -> None:
    place = FileStore(str(tmp_path))
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "full.json").mkdir()
    (tmp_path / "full.json" / "one").write_bytes(b"x")

    def write() -> None:
        with place.write("file/below"):
            raise AssertionError("there is no such directory")

    def full() -> None:
        with place.write("whole"):
            raise OSError(ENOSPC, "No space left on device")

    asked = (
        lambda: place.open("none"), write, full, lambda: place.write_bytes("file/below", b"x"),
        lambda: place.write_json("full.json", {}),
    )  # fmt: skip
    for one in asked:
        with pytest.raises(PlaceFailed, match=str(tmp_path)):
            one()


def test_archive_without_pyarrow_fails_with_the_command_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.fs", None)
    with pytest.raises(MissingExtra, match=re.escape(install("archive"))):
        FileStore(str(tmp_path))
