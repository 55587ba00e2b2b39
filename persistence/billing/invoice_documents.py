"""The stored documents of invoices."""

from __future__ import annotations

import hashlib

from sqlalchemy import (
    Connection,
    select,
)
from sqlalchemy.dialects.postgresql import insert

from gateway.errors import Conflict, StoreUnavailable
from persistence.tables import (
    invoice_document,
)

DOCUMENT_BYTES_MAX = 32 * 1024 * 1024


def read_document(
    connection: Connection, invoice_id: int, kind: str, status: str, made: bytes = b""
) -> bytes | None:
    """Return the stored document of an invoice, in the format `kind`, for a status; None if none is stored.

    If `made` is given and none is stored, `made` is stored first. Raise `StoreUnavailable` if the stored
    checksum does not match.
    """
    if made:
        place = {"invoice_id": invoice_id, "format": kind, "status": status}
        if len(made) > DOCUMENT_BYTES_MAX:
            raise Conflict(f"The document is larger than {DOCUMENT_BYTES_MAX} bytes.")
        values = {**place, "content": made, "sha256": hashlib.sha256(made).hexdigest()}
        connection.execute(insert(invoice_document).values(values).on_conflict_do_nothing())
    here = invoice_document.c
    result = connection.execute(
        select(here.content, here.sha256).where(
            here.invoice_id == invoice_id, here.format == kind, here.status == status
        )
    ).first()
    if result is None:
        return None
    content = bytes(result.content)
    if hashlib.sha256(content).hexdigest() != result.sha256:
        raise StoreUnavailable("The document is not what was kept: its digest is another one.")
    return content
