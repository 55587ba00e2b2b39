"""Where an archive may be."""

from __future__ import annotations

import pytest

from gateway.errors import ArchiveFailed
from gateway.ops.archive.place import Place


@pytest.mark.parametrize(
    "url",
    ["s3://AKIA:Geheim1@ledgers/all", "s3://AKIA:Geheim1/2@ledgers", "s3://AKIA@ledgers", "S3://a:Geheim1@b"],
)
def test_no_password_stands_in_an_address_which_is_kept_and_shown(url: str) -> None:
    with pytest.raises(ArchiveFailed, match="AWS_ACCESS_KEY_ID") as refused:
        Place(url)
    assert "Geheim1" not in refused.value.message
    assert "AKIA" not in refused.value.message
